// Bi-WKV4 on the processor: the passes of biwkv4.h over vectors of 64 bytes (16 floats or 8 doubles) of neighbouring
// channels, shared out among threads by OpenMP. A plain C interface, so that no header of torch is needed and one build
// serves every caller.
#include <algorithm>

#include "biwkv4.h"

namespace hpcm {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t FloatMask __attribute__((vector_size(64)));
typedef double Doubles __attribute__((vector_size(64)));
typedef int64_t DoubleMask __attribute__((vector_size(64)));

template <class Lane, class LaneReal, class Mask, class Bits, int mantissa_bits, int bias>
struct VectorTraits {
  using Real = LaneReal;
  static constexpr int width = sizeof(Lane) / sizeof(Real);
  static HPCM_HD Lane splat(Real x) { return Lane{} + x; }
  static HPCM_HD Lane select(Mask mask, Lane a, Lane b) { return mask ? a : b; }
  static HPCM_HD Lane round_even(Lane x) {  // adding 1.5 * 2^mantissa leaves no room for a fraction
    const Real magic = static_cast<Real>(Bits(3) << (mantissa_bits - 1));
    return (x + magic) - magic;
  }
  static HPCM_HD Lane power_of_two(Lane n) {
    const Mask bits = (__builtin_convertvector(n, Mask) + Bits(bias)) << Bits(mantissa_bits);
    Lane result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
  }
};

template <>
struct LaneTraits<Floats> : VectorTraits<Floats, float, FloatMask, int32_t, 23, 127> {};
template <>
struct LaneTraits<Doubles> : VectorTraits<Doubles, double, DoubleMask, int64_t, 52, 1023> {};

template <class Lane, class Real>
struct VectorAccess {
  static HPCM_HD void load(Lane& lane, const Real* from, int live) {
    if (live == LaneTraits<Lane>::width) {
      std::memcpy(&lane, from, sizeof lane);
    } else {
      lane = Lane{};
      for (int n = 0; n < live; ++n) lane[n] = from[n];
    }
  }
  static HPCM_HD void store(const Lane& lane, Real* to, int live) {
    if (live == LaneTraits<Lane>::width) {
      std::memcpy(to, &lane, sizeof lane);
    } else {
      for (int n = 0; n < live; ++n) to[n] = lane[n];
    }
  }
};

template <>
struct Access<Floats, float> : VectorAccess<Floats, float> {};
template <>
struct Access<Doubles, double> : VectorAccess<Doubles, double> {};

constexpr int64_t kMergesPerThread = 1 << 17;  // about half a millisecond: less is faster without another thread

// Calls body(place) for every (batch, chunk, block of channels), or every (batch, block of channels) when chunks is 1;
// a place takes about `merges` merges.
template <class Lane, class Body>
void for_each_place(const Extent& extent, int64_t chunks, int64_t merges, int threads, const Body& body) {
  const int width = LaneTraits<Lane>::width;
  const int64_t blocks = (extent.channels + width - 1) / width, places = extent.batch * chunks * blocks;
  const int64_t useful = places * width * merges / kMergesPerThread;
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, useful)));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t n = 0; n < places; ++n) {
    const int64_t c = n % blocks * width;
    body(Place{n / blocks / chunks, n / blocks % chunks, c,
               static_cast<int>(std::min<int64_t>(width, extent.channels - c))});
  }
}

template <class Lane, int N, class Tokens>
void chunk_states(const Tokens& tokens, const Workspace<Lane, N>& work, const RealOf<Lane>* w, int threads) {
  const Extent& extent = work.extent;
  for_each_place<Lane>(extent, extent.chunks(), extent.chunk, threads,
                       [&](const Place& p) { summarise<Lane, N>(tokens, work, w, p); });
  for_each_place<Lane>(extent, 1, extent.chunks(), threads, [&](const Place& p) { carry<Lane, N>(work, w, p); });
}

template <class Lane, class Real = RealOf<Lane>>
void forward(const Real* w, const Real* u, const Real* k, const Real* v, Real* y, Real* scratch, const Extent& extent,
             int threads) {
  const KeyValues<Lane, 2, Real> tokens{k, v, extent};
  const Workspace<Lane, 2> work{scratch, extent};
  chunk_states<Lane, 2>(tokens, work, w, threads);
  for_each_place<Lane>(extent, extent.chunks(), extent.chunk, threads,
                       [&](const Place& p) { outputs_forward<Lane>(tokens, work, w, u, y, p); });
}

template <class Lane, class Real = RealOf<Lane>>
void backward(const Real* w, const Real* u, const Real* k, const Real* v, const Real* grad_y, Real* grad_w,
              Real* grad_u, Real* grad_k, Real* grad_v, Real* scratch, const Extent& extent, int threads) {
  const int64_t states = extent.batch * extent.chunks() * extent.channels;
  const Workspace<Lane, 4> work{scratch, extent};
  const Workspace<Lane, 2> gradient_work{scratch, extent};  // the forward states are done with by then
  Real* grad_w_parts = scratch + 12 * states;
  Real* grad_u_parts = grad_w_parts + states;
  const Gradients<Lane> gradients{grad_u_parts + states, extent};
  const KeyValues<Lane, 4, Real> tokens{k, v, extent};
  const KeyValues<Lane, 2, Real> plain_tokens{k, v, extent};
  chunk_states<Lane, 4>(tokens, work, w, threads);
  for_each_place<Lane>(extent, extent.chunks(), extent.chunk, threads, [&](const Place& p) {
    outputs_backward<Lane>(tokens, work, w, u, grad_y, grad_k, grad_v, grad_w_parts, grad_u_parts, gradients, p);
  });
  chunk_states<Lane, 2>(gradients, gradient_work, w, threads);
  for_each_place<Lane>(extent, extent.chunks(), extent.chunk, threads, [&](const Place& p) {
    outputs_gradients<Lane>(plain_tokens, gradients, gradient_work, w, grad_k, grad_v, p);
  });
  for (int64_t c = 0; c < extent.channels; ++c) {
    grad_w[c] = add_parts(grad_w_parts, extent, c);
    grad_u[c] = add_parts(grad_u_parts, extent, c);
  }
}

}  // namespace hpcm

// scratch: forward 8, backward 14 numbers per (batch, chunk, channel), and backward another 4 per (batch, token,
// channel).
// *_scalar: the instantiation that a CUDA thread runs, one channel at a time; for tests.
#define HPCM_INTERFACE(suffix, Lane, Real)                                                                          \
  extern "C" void hpcm_biwkv4_forward_##suffix(const Real* w, const Real* u, const Real* k, const Real* v, Real* y, \
                                               Real* scratch, int64_t batch, int64_t length, int64_t channels,      \
                                               int chunk, int threads) {                                            \
    hpcm::forward<Lane>(w, u, k, v, y, scratch, {batch, length, channels, chunk}, threads);                         \
  }                                                                                                                 \
  extern "C" void hpcm_biwkv4_backward_##suffix(const Real* w, const Real* u, const Real* k, const Real* v,         \
                                                const Real* grad_y, Real* grad_w, Real* grad_u, Real* grad_k,       \
                                                Real* grad_v, Real* scratch, int64_t batch, int64_t length,         \
                                                int64_t channels, int chunk, int threads) {                         \
    hpcm::backward<Lane>(w, u, k, v, grad_y, grad_w, grad_u, grad_k, grad_v, scratch,                               \
                         {batch, length, channels, chunk}, threads);                                                \
  }

HPCM_INTERFACE(float32, hpcm::Floats, float)
HPCM_INTERFACE(float64, hpcm::Doubles, double)
HPCM_INTERFACE(float32_scalar, float, float)
