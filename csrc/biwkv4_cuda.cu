// Bi-WKV4 on an NVIDIA GPU: the passes of biwkv4.h, one thread per (batch, chunk, channel), a warp along 32
// neighbouring channels so that every access to memory is coalesced. float32 arithmetic on float, half and bfloat16
// tensors. No atomics: gradients are the same every time. Build with -fmad=false, which keeps the result equal to the
// C++ and the PyTorch one.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "biwkv4.h"

namespace hpcm {

template <>
struct Access<float, __half> {
  static HPCM_HD void load(float& lane, const __half* from, int) { lane = __half2float(*from); }
  static HPCM_HD void store(float lane, __half* to, int) { *to = __float2half_rn(lane); }
};

template <>
struct Access<float, __nv_bfloat16> {
  static HPCM_HD void load(float& lane, const __nv_bfloat16* from, int) { lane = __bfloat162float(*from); }
  static HPCM_HD void store(float lane, __nv_bfloat16* to, int) { *to = __float2bfloat16_rn(lane); }
};

constexpr int kWarp = 32, kChunksPerBlock = 4, kPartRows = 16;

// Runs body for every place of the grid's (channel, chunk, batch); chunks and batch stride over grids smaller than the
// problem.
template <class Body>
__device__ void at_each_place(const Extent& extent, int64_t chunks, const Body& body) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  if (c >= extent.channels) return;
  for (int64_t b = blockIdx.z; b < extent.batch; b += gridDim.z)
    for (int64_t j = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; j < chunks;
         j += static_cast<int64_t>(gridDim.y) * blockDim.y)
      body(Place{b, j, c, 1});
}

template <int N, class Tokens>
__global__ void summarise_kernel(Tokens tokens, Workspace<float, N> work, const float* w) {
  at_each_place(work.extent, work.extent.chunks(), [&](const Place& p) { summarise<float, N>(tokens, work, w, p); });
}

template <int N>
__global__ void carry_kernel(Workspace<float, N> work, const float* w) {
  at_each_place(work.extent, 1, [&](const Place& p) { carry<float, N>(work, w, p); });
}

template <class Element>
__global__ void forward_kernel(KeyValues<float, 2, Element> tokens, Workspace<float, 2> work, const float* w,
                               const float* u, Element* y) {
  at_each_place(work.extent, work.extent.chunks(),
                [&](const Place& p) { outputs_forward<float>(tokens, work, w, u, y, p); });
}

template <class Element>
__global__ void backward_kernel(KeyValues<float, 4, Element> tokens, Workspace<float, 4> work, const float* w,
                                const float* u, const Element* grad_y, float* grad_k, float* grad_v,
                                float* grad_w_parts, float* grad_u_parts, Gradients<float> gradients) {
  at_each_place(work.extent, work.extent.chunks(), [&](const Place& p) {
    outputs_backward<float>(tokens, work, w, u, grad_y, grad_k, grad_v, grad_w_parts, grad_u_parts, gradients, p);
  });
}

template <class Element>
__global__ void gradients_kernel(KeyValues<float, 2, Element> tokens, Gradients<float> gradients,
                                 Workspace<float, 2> work, const float* w, float* grad_k, float* grad_v) {
  at_each_place(work.extent, work.extent.chunks(),
                [&](const Place& p) { outputs_gradients<float>(tokens, gradients, work, w, grad_k, grad_v, p); });
}

// The chunks' shares of 32 channels, added up by a block: each row of threads takes every kPartRows-th share, then the
// rows' sums are added in their order.
__global__ void add_parts_kernel(const float* grad_w_parts, const float* grad_u_parts, float* grad_w, float* grad_u,
                                 Extent extent) {
  __shared__ double sums[2][kPartRows][kWarp];
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const int64_t parts = c < extent.channels ? extent.batch * extent.chunks() : 0;
  double sum_w = 0, sum_u = 0;
  for (int64_t n = threadIdx.y; n < parts; n += kPartRows) {
    sum_w += static_cast<double>(grad_w_parts[n * extent.channels + c]);
    sum_u += static_cast<double>(grad_u_parts[n * extent.channels + c]);
  }
  sums[0][threadIdx.y][threadIdx.x] = sum_w;
  sums[1][threadIdx.y][threadIdx.x] = sum_u;
  __syncthreads();
  if (threadIdx.y > 1 || c >= extent.channels) return;
  double sum = 0;
  for (int row = 0; row < kPartRows; ++row) sum += sums[threadIdx.y][row][threadIdx.x];
  (threadIdx.y == 0 ? grad_w : grad_u)[c] = static_cast<float>(sum);
}

struct Launch {
  dim3 grid, block;
};

Launch launch_over(const Extent& extent, int64_t chunks) {
  const int rows = static_cast<int>(std::min<int64_t>(kChunksPerBlock, chunks));
  const auto cells = [](int64_t n) {
    return static_cast<unsigned>(std::min<int64_t>(n, 65535));
  };  // the hardware's limit for y and z
  return {dim3(static_cast<unsigned>((extent.channels + kWarp - 1) / kWarp), cells((chunks + rows - 1) / rows),
               cells(extent.batch)),
          dim3(kWarp, rows)};
}

template <int N, class Tokens>
void chunk_states(const Tokens& tokens, const Workspace<float, N>& work, const float* w, cudaStream_t stream) {
  const Launch every_chunk = launch_over(work.extent, work.extent.chunks()), every_row = launch_over(work.extent, 1);
  summarise_kernel<N, Tokens><<<every_chunk.grid, every_chunk.block, 0, stream>>>(tokens, work, w);
  carry_kernel<N><<<every_row.grid, every_row.block, 0, stream>>>(work, w);
}

template <class Element>
void forward(const float* w, const float* u, const Element* k, const Element* v, Element* y, float* scratch,
             const Extent& extent, cudaStream_t stream) {
  const KeyValues<float, 2, Element> tokens{k, v, extent};
  const Workspace<float, 2> work{scratch, extent};
  const Launch launch = launch_over(extent, extent.chunks());
  chunk_states<2>(tokens, work, w, stream);
  forward_kernel<Element><<<launch.grid, launch.block, 0, stream>>>(tokens, work, w, u, y);
}

template <class Element>
void backward(const float* w, const float* u, const Element* k, const Element* v, const Element* grad_y, float* grad_w,
              float* grad_u, float* grad_k, float* grad_v, float* scratch, const Extent& extent, cudaStream_t stream) {
  const int64_t states = extent.batch * extent.chunks() * extent.channels;
  const Workspace<float, 4> work{scratch, extent};
  const Workspace<float, 2> gradient_work{scratch, extent};  // the forward states are done with by then
  float* grad_w_parts = scratch + 12 * states;
  float* grad_u_parts = grad_w_parts + states;
  const Gradients<float> gradients{grad_u_parts + states, extent};
  const KeyValues<float, 4, Element> tokens{k, v, extent};
  const KeyValues<float, 2, Element> plain_tokens{k, v, extent};
  const Launch launch = launch_over(extent, extent.chunks());
  chunk_states<4>(tokens, work, w, stream);
  backward_kernel<Element><<<launch.grid, launch.block, 0, stream>>>(tokens, work, w, u, grad_y, grad_k, grad_v,
                                                                     grad_w_parts, grad_u_parts, gradients);
  chunk_states<2>(gradients, gradient_work, w, stream);
  gradients_kernel<Element>
      <<<launch.grid, launch.block, 0, stream>>>(plain_tokens, gradients, gradient_work, w, grad_k, grad_v);
  const dim3 block(kWarp, kPartRows);
  add_parts_kernel<<<static_cast<unsigned>((extent.channels + kWarp - 1) / kWarp), block, 0, stream>>>(
      grad_w_parts, grad_u_parts, grad_w, grad_u, extent);
}

}  // namespace hpcm

// Each returns nullptr, or the launch's error message. The caller has made the tensors' device the current one;
// `stream` belongs to it.
#define HPCM_INTERFACE(suffix, Element)                                                                             \
  extern "C" const char* hpcm_biwkv4_forward_##suffix(const float* w, const float* u, const Element* k,             \
                                                      const Element* v, Element* y, float* scratch, int64_t batch,  \
                                                      int64_t length, int64_t channels, int chunk, void* stream) {  \
    hpcm::forward<Element>(w, u, k, v, y, scratch, {batch, length, channels, chunk},                                \
                           static_cast<cudaStream_t>(stream));                                                      \
    const cudaError_t status = cudaGetLastError();                                                                  \
    return status == cudaSuccess ? nullptr : cudaGetErrorString(status);                                            \
  }                                                                                                                 \
  extern "C" const char* hpcm_biwkv4_backward_##suffix(                                                             \
      const float* w, const float* u, const Element* k, const Element* v, const Element* grad_y, float* grad_w,     \
      float* grad_u, float* grad_k, float* grad_v, float* scratch, int64_t batch, int64_t length, int64_t channels, \
      int chunk, void* stream) {                                                                                    \
    hpcm::backward<Element>(w, u, k, v, grad_y, grad_w, grad_u, grad_k, grad_v, scratch,                            \
                            {batch, length, channels, chunk}, static_cast<cudaStream_t>(stream));                   \
    const cudaError_t status = cudaGetLastError();                                                                  \
    return status == cudaSuccess ? nullptr : cudaGetErrorString(status);                                            \
  }

HPCM_INTERFACE(float32, float)
HPCM_INTERFACE(float16, __half)
HPCM_INTERFACE(bfloat16, __nv_bfloat16)

// Whether the current device can run this build: nullptr, or why not (driver too old, built for another architecture).
extern "C" const char* hpcm_biwkv4_check() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, hpcm::add_parts_kernel);
  cudaGetLastError();  // leave no error behind for the next caller
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}
