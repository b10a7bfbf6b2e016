// The operators of a training step on the processor, as hpcm_codec/ops/training.py calls them. A plain C interface;
// planes are tokens × channels in bfloat16, weights and their gradients float32, weights of products packed
// (matrix_product.h). Pointers without a type are to streams: float32 if `wide`, else bfloat16.
#include <type_traits>

#include "training_block.h"
#include "training_mixing.h"
#include "training_patches.h"

using namespace hpcm;

// Calls body with a null pointer whose type is that of a stream's numbers: float* if `wide`, else BFloat16*.
template <class Body>
static void with_stream(int64_t wide, const Body& body) {
  wide ? body(static_cast<float*>(nullptr)) : body(static_cast<BFloat16*>(nullptr));
}

extern "C" {

int64_t hpcm_training_packed_size(int64_t inputs, int64_t outputs) { return packed_size(inputs, outputs); }

void hpcm_training_pack(const float* weight, BFloat16* forward, BFloat16* backward, int64_t stride, int64_t outputs,
                        int64_t inputs, int64_t threads) {
  for_each(2, threads, [&](int64_t n) {
    if (n == 0) pack_forward(weight, stride, outputs, inputs, forward);
    if (n == 1) pack_backward(weight, stride, outputs, inputs, backward);
  });
}

// y = leaky(x₁·W₁ᵀ + x₂·W₂ᵀ + bias) + added; x₂ may be null, the rest too. `added` repeats after so many tokens.
void hpcm_training_linear(const BFloat16* x1, const BFloat16* weights1, const BFloat16* x2, const BFloat16* weights2,
                          const float* bias, const void* added, void* y, int64_t tokens, int64_t width1, int64_t width2,
                          int64_t outputs, int64_t leaky, int64_t added_tokens, int64_t wide, int64_t threads) {
  with_stream(wide, [&](auto* stream) {
    using Stream = std::remove_pointer_t<decltype(stream)>;
    Finish<Stream> finish{outputs, static_cast<Stream*>(y)};
    finish.bias = bias;
    finish.leaky = leaky != 0;
    finish.added = static_cast<const Stream*>(added);
    finish.added_tokens = added_tokens;
    finish.far = true;
    if (x2) {
      product<2>({{x1, width1, weights1}, {x2, width2, weights2}}, tokens, finish, threads);
    } else {
      product<1>({{x1, width1, weights1}}, tokens, finish, threads);
    }
  });
}

void hpcm_training_weight_gradient(const BFloat16* g, const BFloat16* x, float* gradient, float* sums, int64_t tokens,
                                   int64_t outputs, int64_t inputs, int64_t stride, int64_t added, int64_t threads) {
  weight_gradient(g, outputs, x, inputs, tokens, gradient, stride, added != 0, threads);
  if (sums) column_sums(g, tokens, outputs, sums, false, threads);
}

void hpcm_training_depthwise(const BFloat16* x, const float* taps, const float* bias, const BFloat16* added,
                             BFloat16* y, int64_t size, int64_t flipped, int64_t batch, int64_t height, int64_t width,
                             int64_t channels, int64_t threads) {
  const Plane plane{batch, height, width, channels};
  const auto compute = size == 3 ? depthwise<3, BFloat16, BFloat16> : depthwise<5, BFloat16, BFloat16>;
  compute(x, taps, bias, added, y, nullptr, plane, flipped != 0, threads);
}

void hpcm_training_depthwise_gradient(const BFloat16* x, const BFloat16* g, float* taps, float* bias, int64_t size,
                                      int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t threads) {
  const Plane plane{batch, height, width, channels};
  const auto compute = size == 3 ? depthwise_gradient<3, BFloat16> : depthwise_gradient<5, BFloat16>;
  compute(x, g, taps, bias, plane, false, threads);
}

// A residual block; `branch` and `factor` may be null.
void hpcm_training_residual(const void* x, const float* taps, const float* taps_bias, const BFloat16* expand,
                            const float* expand_bias, const BFloat16* project, const float* project_bias,
                            const float* factor, BFloat16* shifted, BFloat16* hidden, BFloat16* branch, void* y,
                            int64_t factor_rows, int64_t batch, int64_t height, int64_t width, int64_t channels,
                            int64_t hidden_channels, int64_t wide, int64_t threads) {
  const BlockSize size{{batch, height, width, channels}, hidden_channels, factor_rows};
  with_stream(wide, [&](auto* stream) {
    using Stream = std::remove_pointer_t<decltype(stream)>;
    const BlockForward<Stream> io{static_cast<const Stream*>(x),
                                  taps,
                                  taps_bias,
                                  expand,
                                  expand_bias,
                                  project,
                                  project_bias,
                                  factor,
                                  shifted,
                                  hidden,
                                  branch,
                                  static_cast<Stream*>(y)};
    residual(size, io, threads);
  });
}

// Its gradients from g, that of y. expand and project are packed for gradients; factor_gradient begins as zeros; the
// gradients of expand and project are added to where said.
void hpcm_training_residual_backward(const void* g, const void* x, const BFloat16* shifted, const BFloat16* hidden,
                                     const BFloat16* branch, const float* taps, const BFloat16* expand,
                                     const BFloat16* project, const float* factor, void* x_gradient,
                                     float* taps_gradient, float* taps_bias_gradient, float* expand_gradient,
                                     float* expand_bias_gradient, float* project_gradient, float* project_bias_gradient,
                                     float* factor_gradient, int64_t factor_rows, int64_t batch, int64_t height,
                                     int64_t width, int64_t channels, int64_t hidden_channels, int64_t expand_added,
                                     int64_t project_added, int64_t wide, int64_t threads) {
  const BlockSize size{{batch, height, width, channels}, hidden_channels, factor_rows};
  with_stream(wide, [&](auto* stream) {
    using Stream = std::remove_pointer_t<decltype(stream)>;
    const BlockBackward<Stream> io{static_cast<const Stream*>(g),
                                   static_cast<const Stream*>(x),
                                   shifted,
                                   hidden,
                                   branch,
                                   taps,
                                   expand,
                                   project,
                                   factor,
                                   static_cast<Stream*>(x_gradient),
                                   taps_gradient,
                                   taps_bias_gradient,
                                   expand_gradient,
                                   expand_bias_gradient,
                                   project_gradient,
                                   project_bias_gradient,
                                   factor_gradient,
                                   expand_added != 0,
                                   project_added != 0};
    residual_backward(size, io, threads);
  });
}

void hpcm_training_take_patches(const float* image, BFloat16* patches, int64_t repeat, int64_t batch, int64_t height,
                                int64_t width, int64_t rows, int64_t columns, int64_t edge, int64_t stride,
                                int64_t first, int64_t beyond, int64_t threads) {
  take_patches(image, patches, {batch, height, width, rows, columns, edge, stride, first, beyond}, repeat != 0,
               threads);
}

void hpcm_training_add_patches(const BFloat16* patches, const float* bias, float* image, int64_t batch, int64_t height,
                               int64_t width, int64_t rows, int64_t columns, int64_t edge, int64_t stride,
                               int64_t first, int64_t beyond, int64_t threads) {
  add_patches(patches, bias, image, {batch, height, width, rows, columns, edge, stride, first, beyond}, threads);
}

// One coding step; `numbers`: entries per unit of the table, density at zero, and the three bounds.
void hpcm_training_code_step(const BFloat16* params, const float* latents, const float* noise, const float* log_gain,
                             BFloat16* decoded, float* likelihood, float* by_latent, float* by_log_scale,
                             const Piece* pieces, const float* table, const float* numbers, int64_t count,
                             int64_t entries, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t) {
  code_step({pieces, count, batch, height, width}, channels, {table, entries, numbers[0], numbers[1]},
            {numbers[2], numbers[3], numbers[4]},
            {params, latents, noise, log_gain, decoded, likelihood, by_latent, by_log_scale});
}

void hpcm_training_code_step_backward(const BFloat16* params, const float* latents, const float* log_gain,
                                      const float* likelihood, const float* by_latent, const float* by_log_scale,
                                      const float* likelihood_gradient, const BFloat16* decoded_gradient,
                                      BFloat16* params_gradient, float* latents_gradient, float* log_gain_gradient,
                                      const Piece* pieces, const float* numbers, int64_t count, int64_t batch,
                                      int64_t height, int64_t width, int64_t channels, int64_t) {
  code_step_backward({pieces, count, batch, height, width}, channels, {numbers[2], numbers[3], numbers[4]},
                     {params, latents, log_gain, likelihood, by_latent, by_log_scale, likelihood_gradient,
                      decoded_gradient, params_gradient, latents_gradient, log_gain_gradient});
}

void hpcm_training_take(const float* plane, float* packed, const Piece* pieces, int64_t count, int64_t batch,
                        int64_t height, int64_t width, int64_t channels, int64_t) {
  take({pieces, count, batch, height, width}, channels, plane, packed);
}

void hpcm_training_place(const float* packed, float* plane, const Piece* pieces, int64_t count, int64_t batch,
                         int64_t height, int64_t width, int64_t channels, int64_t) {
  place({pieces, count, batch, height, width}, channels, packed, plane);
}

int64_t hpcm_training_gated_wkv(const float* w, const float* u, const BFloat16* k, const BFloat16* v, const BFloat16* r,
                                BFloat16* y, int64_t batch, int64_t length, int64_t channels, int64_t threads) {
  return gated_wkv({batch, length, channels}, w, u, k, v, r, y, threads);
}

void hpcm_training_gated_wkv_backward(const float* w, const float* u, const BFloat16* k, const BFloat16* v,
                                      const BFloat16* r, const BFloat16* g, float* w_gradient, float* u_gradient,
                                      BFloat16* k_gradient, BFloat16* v_gradient, BFloat16* r_gradient, int64_t batch,
                                      int64_t length, int64_t channels, int64_t threads) {
  gated_wkv_backward({batch, length, channels}, w, u, k, v, r, g, w_gradient, u_gradient, k_gradient, v_gradient,
                     r_gradient, threads);
}

void hpcm_training_gate(const BFloat16* r, const BFloat16* x, BFloat16* y, int64_t count, int64_t threads) {
  gate(r, x, y, count, threads);
}

void hpcm_training_gate_backward(const BFloat16* r, const BFloat16* x, const BFloat16* g, BFloat16* r_gradient,
                                 BFloat16* x_gradient, int64_t count, int64_t threads) {
  gate_backward(r, x, g, r_gradient, x_gradient, count, threads);
}

void hpcm_training_squared_relu(const BFloat16* x, BFloat16* y, int64_t count, int64_t threads) {
  squared_relu(x, y, count, threads);
}

void hpcm_training_squared_relu_backward(const BFloat16* x, const BFloat16* g, BFloat16* gradient, int64_t count,
                                         int64_t threads) {
  squared_relu_backward(x, g, gradient, count, threads);
}

void hpcm_training_layer_norm(const BFloat16* x, const float* weight, const float* bias, const float* epsilon,
                              BFloat16* y, float* moments, int64_t tokens, int64_t channels, int64_t threads) {
  layer_norm(x, weight, bias, *epsilon, y, moments, tokens, channels, threads);
}

void hpcm_training_layer_norm_backward(const BFloat16* x, const float* weight, const float* moments, const BFloat16* g,
                                       BFloat16* x_gradient, float* weight_gradient, float* bias_gradient,
                                       int64_t tokens, int64_t channels, int64_t) {
  layer_norm_backward(x, weight, moments, g, x_gradient, weight_gradient, bias_gradient, tokens, channels);
}

// y = x + branch · factor, x may be null; and the gradients of branch and factor, the latter added to.
void hpcm_training_scaled_add(const BFloat16* x, const BFloat16* branch, const float* factor, BFloat16* y, int64_t rows,
                              int64_t tokens, int64_t channels, int64_t threads) {
  scaled_add(x, branch, factor, rows, tokens, channels, y, threads);
}

void hpcm_training_scaled_add_backward(const BFloat16* g, const BFloat16* branch, const float* factor,
                                       BFloat16* branch_gradient, float* factor_gradient, int64_t rows, int64_t tokens,
                                       int64_t channels, int64_t threads) {
  factor_backward(g, branch, factor, tokens, channels, 0, rows * tokens, branch_gradient, factor_gradient, threads);
}

}  // extern "C"
