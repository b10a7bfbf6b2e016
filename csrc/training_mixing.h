// What an RWKV block of a training step computes between its products: Bi-WKV4 gated by σ(r), gates, squared ReLU,
// layer normalisation. Tokens are batch × length × channels in bfloat16; vectors run over 16 neighbouring channels.
#pragma once
#include "training_rate.h"

namespace hpcm {

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

// Calls body(b, channel, live) for every picture of the batch and every 16 channels.
template <class Body>
void for_each_lane(int64_t batch, int64_t channels, int64_t threads, const Body& body) {
  const int64_t blocks = blocks_of(channels, kLanes);
  for_each(batch * blocks, threads, [&](int64_t n) {
    const int64_t channel = n % blocks * kLanes;
    body(n / blocks, channel, std::min(kLanes, channels - channel));
  });
}

struct Tokens {
  int64_t batch, length, channels;
};

// Bi-WKV4 of 16 channels of a picture by plain sums of exponentials, relative to the largest key. The only error is
// rounding as long as no sum that matters vanishes beside it: `fits` says whether exponents stay within kReach.
class PlainWkv {
 public:
  static constexpr float kReach = 60.0f;
  static constexpr int kPlanes = 12;

  PlainWkv(const Tokens& tokens, const float* w, const float* u, const BFloat16* k, const BFloat16* v, int64_t b,
           int64_t channel, int64_t live, float* memory)
      : length_(tokens.length), channels_(tokens.channels), live_(live), memory_(memory) {
    const int64_t at = b * length_ * channels_ + channel;
    decay_ = read(w + channel, live);
    boost_ = read(u + channel, live);
    Floats largest = read(k + at, live), smallest = largest;
    for (int64_t t = 1; t < length_; ++t) {
      const Floats key = read(k + at + t * channels_, live);
      largest = key > largest ? key : largest;
      smallest = key < smallest ? key : smallest;
    }
    fits_ = true;
    const Floats reach = largest - smallest + magnitude(decay_) * static_cast<float>(length_) + magnitude(boost_);
    for (int64_t n = 0; n < live; ++n) fits_ = fits_ && reach[n] < kReach;
    if (!fits_) return;
    const Floats step = exponential(-decay_), own = exponential(boost_);
    Floats value{}, weight{};  // sums over the tokens behind
    for (int64_t t = length_ - 1; t >= 0; --t) {
      const Floats e = exponential(read(k + at + t * channels_, live) - largest),
                   x = read(v + at + t * channels_, live);
      put(0, t, e);
      put(1, t, x);
      put(2, t, value);
      put(3, t, weight);
      value = step * value + e * x;
      weight = step * weight + e;
    }
    value = weight = Floats{};  // and before
    for (int64_t t = 0; t < length_; ++t) {
      const Floats e = get(0, t), x = get(1, t), total = get(3, t) + weight + own * e;
      put(4, t, 1.0f / total);
      put(5, t, (get(2, t) + value + own * e * x) / total);
      put(6, t, value);
      put(7, t, weight);
      value = step * value + e * x;
      weight = step * weight + e;
    }
  }
  bool fits() const { return fits_; }
  Floats result(int64_t t) const { return get(5, t); }

  // Gradients from those of the results: each(t, of the key, of the value); returns those of decay and boost.
  template <class Gradient, class Each>
  std::pair<Floats, Floats> differentiate(const Gradient& gradient, const Each& each) {
    const Floats step = exponential(-decay_), own = exponential(boost_);
    Floats by_step{}, by_own{};
    // p, q: derivatives by the sums above and below; sums of them over the tokens behind, and how sums vary with `step`
    Floats p_behind{}, q_behind{};
    Sums sums;
    for (int64_t t = length_ - 1; t >= 0; --t) {
      const Floats p = gradient(t) * get(4, t), q = -p * get(5, t), e = get(0, t), x = get(1, t);
      put(8, t, p);
      put(9, t, q);
      put(10, t, p_behind);
      put(11, t, q_behind);
      p_behind = step * p_behind + p;
      q_behind = step * q_behind + q;
      by_step += p * sums.value_slope + q * sums.weight_slope;
      sums.pass(step, e, x);
    }
    Floats p_before{}, q_before{};
    sums = Sums{};
    for (int64_t t = 0; t < length_; ++t) {
      const Floats p = get(8, t), q = get(9, t), e = get(0, t), x = get(1, t);
      const Floats by_value = get(10, t) + p_before + own * p, by_weight = get(11, t) + q_before + own * q;
      each(t, e * (x * by_value + by_weight), e * by_value);
      by_own += e * (x * p + q);
      p_before = step * p_before + p;
      q_before = step * q_before + q;
      by_step += p * sums.value_slope + q * sums.weight_slope;
      sums.pass(step, e, x);
    }
    return {-step * by_step, own * by_own};
  }

 private:
  // Of weights and weighted values over the tokens passed, and their derivatives by `step`.
  struct Sums {
    Floats value{}, weight{}, value_slope{}, weight_slope{};
    void pass(Floats step, Floats e, Floats x) {
      value_slope = step * value_slope + value;
      weight_slope = step * weight_slope + weight;
      value = step * value + e * x;
      weight = step * weight + e;
    }
  };
  Floats get(int plane, int64_t t) const { return load<Floats>(memory_ + (plane * length_ + t) * kLanes); }
  void put(int plane, int64_t t, Floats x) { store(x, memory_ + (plane * length_ + t) * kLanes); }
  int64_t length_, channels_, live_;
  float* memory_;
  Floats decay_, boost_;
  bool fits_ = false;
};

// y = σ(r) · BiWKV4(w, u, k, v); false, and nothing of use written, where exponents reach too far.
inline bool gated_wkv(const Tokens& tokens, const float* w, const float* u, const BFloat16* k, const BFloat16* v,
                      const BFloat16* r, BFloat16* y, int64_t threads) {
  bool fits = true;
  for_each_lane(tokens.batch, tokens.channels, threads, [&](int64_t b, int64_t channel, int64_t live) {
    static thread_local Scratch<float> memory;
    const PlainWkv wkv(tokens, w, u, k, v, b, channel, live, memory.get(PlainWkv::kPlanes * tokens.length * kLanes));
    if (!wkv.fits()) {
#pragma omp atomic write
      fits = false;
      return;
    }
    for (int64_t t = 0; t < tokens.length; ++t) {
      const int64_t at = (b * tokens.length + t) * tokens.channels + channel;
      write(sigmoid(read(r + at, live)) * wkv.result(t), y + at, live);
    }
  });
  return fits;
}

// Its gradients; those of w and u for each picture of the batch (batch × channels).
inline void gated_wkv_backward(const Tokens& tokens, const float* w, const float* u, const BFloat16* k,
                               const BFloat16* v, const BFloat16* r, const BFloat16* g, float* w_gradient,
                               float* u_gradient, BFloat16* k_gradient, BFloat16* v_gradient, BFloat16* r_gradient,
                               int64_t threads) {
  for_each_lane(tokens.batch, tokens.channels, threads, [&](int64_t b, int64_t channel, int64_t live) {
    static thread_local Scratch<float> memory;
    PlainWkv wkv(tokens, w, u, k, v, b, channel, live, memory.get(PlainWkv::kPlanes * tokens.length * kLanes));
    const auto place = [&](int64_t t) { return (b * tokens.length + t) * tokens.channels + channel; };
    const auto [by_w, by_u] = wkv.differentiate(
        [&](int64_t t) {
          const Floats gate = sigmoid(read(r + place(t), live)), gradient = read(g + place(t), live);
          write(gradient * wkv.result(t) * gate * (1.0f - gate), r_gradient + place(t), live);
          return gradient * gate;
        },
        [&](int64_t t, Floats by_key, Floats by_value) {
          write(by_key, k_gradient + place(t), live);
          write(by_value, v_gradient + place(t), live);
        });
    write(by_w, w_gradient + b * tokens.channels + channel, live);
    write(by_u, u_gradient + b * tokens.channels + channel, live);
  });
}

// y = σ(r) · x and its gradients.
inline void gate(const BFloat16* r, const BFloat16* x, BFloat16* y, int64_t count, int64_t threads) {
  for_each_vector(count, threads, [&](int64_t at, int64_t live) {
    write(sigmoid(read(r + at, live)) * read(x + at, live), y + at, live);
  });
}

inline void gate_backward(const BFloat16* r, const BFloat16* x, const BFloat16* g, BFloat16* r_gradient,
                          BFloat16* x_gradient, int64_t count, int64_t threads) {
  for_each_vector(count, threads, [&](int64_t at, int64_t live) {
    const Floats open = sigmoid(read(r + at, live)), gradient = read(g + at, live);
    write(gradient * read(x + at, live) * open * (1.0f - open), r_gradient + at, live);
    write(gradient * open, x_gradient + at, live);
  });
}

// y = max(x, 0)² and its gradient.
inline void squared_relu(const BFloat16* x, BFloat16* y, int64_t count, int64_t threads) {
  for_each_vector(count, threads, [&](int64_t at, int64_t live) {
    const Floats value = read(x + at, live), positive = value < 0 ? Floats{} : value;  // NaN stays
    write(positive * positive, y + at, live);
  });
}

inline void squared_relu_backward(const BFloat16* x, const BFloat16* g, BFloat16* gradient, int64_t count,
                                  int64_t threads) {
  for_each_vector(count, threads, [&](int64_t at, int64_t live) {
    const Floats value = read(x + at, live), positive = value < 0 ? Floats{} : value;  // NaN stays
    write(2.0f * positive * read(g + at, live), gradient + at, live);
  });
}

inline float sum_of(Floats x) {
  float sum = 0;
  for (int64_t n = 0; n < kLanes; ++n) sum += x[n];
  return sum;
}

// Calls body(c, live) for every 16 of so many channels.
template <class Body>
inline void for_each_channel(int64_t channels, const Body& body) {
  for (int64_t c = 0; c < channels; c += kLanes) body(c, std::min(kLanes, channels - c));
}

// Layer normalisation over channels: y = (x - mean) / deviation · weight + bias; keeps (mean, 1 / deviation) of each
// token.
inline void layer_norm(const BFloat16* x, const float* weight, const float* bias, float epsilon, BFloat16* y,
                       float* moments, int64_t tokens, int64_t channels, int64_t threads) {
  constexpr int64_t run = 64;
  const float share = 1.0f / static_cast<float>(channels);
  for_each(blocks_of(tokens, run), threads, [&](int64_t n) {
    for (int64_t t = n * run; t < std::min(tokens, (n + 1) * run); ++t) {
      const BFloat16* from = x + t * channels;
      Floats sum{}, squares{};
      for_each_channel(channels, [&](int64_t c, int64_t live) { sum += read(from + c, live); });
      const float mean = sum_of(sum) * share;
      for_each_channel(channels, [&](int64_t c, int64_t live) {
        Floats away = read(from + c, live) - mean;
        if (live < kLanes)
          for (int64_t i = live; i < kLanes; ++i) away[i] = 0;
        squares += away * away;
      });
      const float inverse = 1.0f / std::sqrt(sum_of(squares) * share + epsilon);
      for_each_channel(channels, [&](int64_t c, int64_t live) {
        const Floats normal = (read(from + c, live) - mean) * inverse;
        write(normal * read(weight + c, live) + read(bias + c, live), y + t * channels + c, live);
      });
      moments[2 * t] = mean;
      moments[2 * t + 1] = inverse;
    }
  });
}

// Its gradients; those of weight and bias are added to.
inline void layer_norm_backward(const BFloat16* x, const float* weight, const float* moments, const BFloat16* g,
                                BFloat16* x_gradient, float* weight_gradient, float* bias_gradient, int64_t tokens,
                                int64_t channels) {
  const float share = 1.0f / static_cast<float>(channels);
  for (int64_t t = 0; t < tokens; ++t) {
    const BFloat16 *from = x + t * channels, *gradient = g + t * channels;
    const float mean = moments[2 * t], inverse = moments[2 * t + 1];
    Floats sum{}, product{};
    for_each_channel(channels, [&](int64_t c, int64_t live) {
      const Floats normal = (read(from + c, live) - mean) * inverse, by_result = read(gradient + c, live);
      const Floats by_normal = by_result * read(weight + c, live);
      sum += by_normal;
      product += by_normal * normal;
      write(read(weight_gradient + c, live) + by_result * normal, weight_gradient + c, live);
      write(read(bias_gradient + c, live) + by_result, bias_gradient + c, live);
    });
    const float mean_gradient = sum_of(sum) * share, slope = sum_of(product) * share;
    for_each_channel(channels, [&](int64_t c, int64_t live) {
      const Floats normal = (read(from + c, live) - mean) * inverse;
      const Floats by_normal = read(gradient + c, live) * read(weight + c, live);
      write((by_normal - mean_gradient - normal * slope) * inverse, x_gradient + t * channels + c, live);
    });
  }
}

// y = x + branch · factor (rows × channels, each for `tokens` tokens).
inline void scaled_add(const BFloat16* x, const BFloat16* branch, const float* factor, int64_t rows, int64_t tokens,
                       int64_t channels, BFloat16* y, int64_t threads) {
  constexpr int64_t run = 64;
  for_each(blocks_of(rows * tokens, run), threads, [&](int64_t n) {
    for (int64_t t = n * run; t < std::min(rows * tokens, (n + 1) * run); ++t)
      for_each_channel(channels, [&](int64_t c, int64_t live) {
        const int64_t at = t * channels + c;
        const Floats scale = read(factor + t / tokens * channels + c, live);
        write((x ? read(x + at, live) : Floats{}) + read(branch + at, live) * scale, y + at, live);
      });
  });
}

}  // namespace hpcm
