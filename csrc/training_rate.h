// The rate of a coding step in training: latents rounded and placed, their likelihoods under a generalised Gaussian of
// shape 1.5, and the gradients of both. Planes are batch × height × width × channels; a step's latents are packed batch
// × n, in the order of its pieces, then of their places, then of their channels.
#pragma once
#include <cmath>
#include <utility>

#include "matrix_product.h"

namespace hpcm {

// Rows row, row + stride, … and columns likewise of the channels first … last-1.
struct Piece {
  int64_t first, last, row, column, stride;
};

struct Step {
  const Piece* pieces;
  int64_t count, batch, height, width;
};

// Calls body(b, token, packed, first, last) for every place of every piece: `packed` is where its first latent is
// packed.
template <class Body>
void for_each_position(const Step& step, const Body& body) {
  int64_t packed = 0;
  for (int64_t b = 0; b < step.batch; ++b)
    for (const Piece* piece = step.pieces; piece < step.pieces + step.count; ++piece)
      for (int64_t h = piece->row; h < step.height; h += piece->stride)
        for (int64_t w = piece->column; w < step.width; w += piece->stride) {
          body(b, (b * step.height + h) * step.width + w, packed, piece->first, piece->last);
          packed += piece->last - piece->first;
        }
}

inline Floats exponential(Floats x) {  // to 2 units in the last place between -87 and 88, constant outside
  x = x < -87.0f ? splat(-87.0f) : (x > 88.0f ? splat(88.0f) : x);
  constexpr float magic = 12582912.0f;  // 1.5·2²³ leaves no room for a fraction
  const Floats n = (x * 1.44269504f + magic) - magic;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  typedef int32_t Integers __attribute__((vector_size(64)));
  return p * bits_as<Floats>((__builtin_convertvector(n, Integers) + 127) << 23);
}

inline Floats magnitude(Floats x) { return bits_as<Floats>(bits_as<Words>(x) & 0x7fffffffu); }

inline Floats square_root(Floats x) {
#ifdef __AVX512F__
  return bits_as<Floats>(_mm512_sqrt_ps(bits_as<__m512>(x)));
#else
  for (int n = 0; n < kLanes; ++n) x[n] = std::sqrt(x[n]);
  return x;
#endif
}

// 1 − cdf by a cubic through a table of log(1 − cdf) and its slope (times the spacing) at multiples of `spacing`.
struct Survival {
  const float* table;
  int64_t size;  // entries of two numbers
  float per_unit, density_at_zero;

  Floats operator()(Floats v) const {
    const Floats place = magnitude(v) * per_unit, last = splat(static_cast<float>(size - 2));
    const Floats inside = place < last ? place : last;
    Floats y0, d0, y1, d1, x;
    for (int n = 0; n < kLanes; ++n) {
      const int64_t entry = static_cast<int64_t>(inside[n]);
      x[n] = inside[n] - static_cast<float>(entry);
      y0[n] = table[2 * entry];
      d0[n] = table[2 * entry + 1];
      y1[n] = table[2 * entry + 2];
      d1[n] = table[2 * entry + 3];
    }
    const Floats rise = y1 - y0;
    const Floats tail = exponential(y0 + x * (d0 + x * ((3.0f * rise - 2.0f * d0 - d1) + x * (d0 + d1 - 2.0f * rise))));
    return v != v ? v : (v < 0 ? 1.0f - tail : tail);  // NaN stays
  }
  Floats density(Floats v) const {
    const Floats size_of = magnitude(v);
    return density_at_zero * exponential(-size_of * square_root(size_of));
  }
};

struct Bounds {
  float smallest_log_scale, largest_log_scale, smallest_likelihood;
};

// Mean and scale of a vector of latents, from the network's parameters and the gain of the rate.
struct Distribution {
  Floats log_gain, mean, log_scale, scale;
  Distribution(const BFloat16* params, const float* log_gains, int64_t channels, int64_t c, int64_t live,
               const Bounds& bounds) {
    log_gain = read(log_gains + c, live);
    mean = read(params + channels + c, live) * exponential(log_gain);
    log_scale = read(params + c, live) + log_gain;
    Floats inside = log_scale < bounds.smallest_log_scale ? splat(bounds.smallest_log_scale) : log_scale;
    inside = inside > bounds.largest_log_scale ? splat(bounds.largest_log_scale) : inside;
    scale = exponential(inside);
  }
};

struct StepForward {
  const BFloat16* params;  // tokens × 2·channels: log-scales, means
  const float* latents;    // packed, in quantisation steps
  const float* noise;      // packed
  const float* log_gain;   // batch × channels
  BFloat16* decoded;       // tokens × channels; only the step's places are written
  float* likelihood;       // packed, as are the two below
  float* by_latent;        // derivative of the likelihood by the latent
  float* by_log_scale;     // and by the logarithm of the scale
};

inline void code_step(const Step& step, int64_t channels, const Survival& survival, const Bounds& bounds,
                      const StepForward& io) {
  for_each_position(step, [&](int64_t b, int64_t token, int64_t packed, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c += kLanes, packed += kLanes) {
      const int64_t live = last - c;
      const Distribution d(io.params + token * 2 * channels, io.log_gain + b * channels, channels, c, live, bounds);
      const Floats residual = read(io.latents + packed, live) - d.mean;
      constexpr float magic = 12582912.0f;
      const Floats rounded = (residual + magic) - magic;
      write((rounded + d.mean) * exponential(-d.log_gain), io.decoded + token * channels + c, live);
      const Floats rated = residual + read(io.noise + packed, live), size = magnitude(rated);
      const Floats near = (size - 0.5f) / d.scale, far = (size + 0.5f) / d.scale;
      const Floats mass = survival(near) - survival(far);
      write(mass < bounds.smallest_likelihood ? splat(bounds.smallest_likelihood) : mass, io.likelihood + packed, live);
      const Floats at_near = survival.density(near), at_far = survival.density(far);
      const Floats slope = (at_far - at_near) / d.scale;
      write(rated < 0 ? -slope : slope, io.by_latent + packed, live);
      write(at_near * near - at_far * far, io.by_log_scale + packed, live);
    }
  });
}

struct StepBackward {
  const BFloat16* params;
  const float *latents, *log_gain, *likelihood, *by_latent, *by_log_scale;  // as in StepForward
  const float* likelihood_gradient;                                         // packed
  const BFloat16* decoded_gradient;                                         // tokens × channels
  BFloat16* params_gradient;  // tokens × 2·channels, zero outside the step's places
  float* latents_gradient;    // packed
  float* log_gain_gradient;   // batch × channels, added to
};

inline void code_step_backward(const Step& step, int64_t channels, const Bounds& bounds, const StepBackward& io) {
  for_each_position(step, [&](int64_t b, int64_t token, int64_t packed, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c += kLanes, packed += kLanes) {
      const int64_t live = last - c;
      const Distribution d(io.params + token * 2 * channels, io.log_gain + b * channels, channels, c, live, bounds);
      const Floats likelihood = read(io.likelihood + packed, live);
      Floats g = read(io.likelihood_gradient + packed, live);
      g = (likelihood <= bounds.smallest_likelihood) & (g > 0) ? Floats{} : g;
      const Floats by_latent = g * read(io.by_latent + packed, live);
      Floats by_log_scale = g * read(io.by_log_scale + packed, live);
      const auto blocked = ((d.log_scale < bounds.smallest_log_scale) & (by_log_scale > 0)) |
                           ((d.log_scale > bounds.largest_log_scale) & (by_log_scale < 0));
      by_log_scale = blocked ? Floats{} : by_log_scale;
      // Rounding passes gradients on, so that what was decoded follows the latent and not the mean.
      const Floats decoded = read(io.decoded_gradient + token * channels + c, live) * exponential(-d.log_gain);
      const Floats latent = read(io.latents + packed, live);
      constexpr float magic = 12582912.0f;
      const Floats value = ((latent - d.mean + magic) - magic) + d.mean;
      write(by_latent + decoded, io.latents_gradient + packed, live);
      write(by_log_scale, io.params_gradient + token * 2 * channels + c, live);
      write(-by_latent * exponential(d.log_gain), io.params_gradient + token * 2 * channels + channels + c, live);
      float* gain = io.log_gain_gradient + b * channels + c;
      write(read(gain, live) + by_log_scale - by_latent * d.mean - decoded * value, gain, live);
    }
  });
}

// Latents of a plane packed, and back; numbers outside the step's places are undefined.
inline void take(const Step& step, int64_t channels, const float* plane, float* packed) {
  for_each_position(step, [&](int64_t, int64_t token, int64_t at, int64_t first, int64_t last) {
    std::memcpy(packed + at, plane + token * channels + first, static_cast<size_t>(last - first) * sizeof(float));
  });
}

inline void place(const Step& step, int64_t channels, const float* packed, float* plane) {
  for_each_position(step, [&](int64_t, int64_t token, int64_t at, int64_t first, int64_t last) {
    std::memcpy(plane + token * channels + first, packed + at, static_cast<size_t>(last - first) * sizeof(float));
  });
}

}  // namespace hpcm
