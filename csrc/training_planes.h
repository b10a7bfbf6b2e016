// What a training step computes on planes besides matrix products: depthwise convolutions, factors of residual
// branches, and how a product's blocks are finished. Planes are tokens × channels in bfloat16 (batch, row, column;
// channels last). A plane that residual blocks add to has numbers of type Stream: bfloat16 or float32.
#pragma once
#include "matrix_product.h"

namespace hpcm {

struct Plane {
  int64_t batch, height, width, channels;
  int64_t tokens() const { return batch * height * width; }
};

// ---- finishing a product

// y = leaky(sum + bias) · factor + added, each where it is wanted; `before` keeps what the factor is applied to.
template <class Stream>
struct Finish {
  int64_t outputs;
  Stream* y;
  const float* bias = nullptr;
  bool leaky = false;
  const float* factor = nullptr;
  int64_t tokens_of_factor = 0;  // tokens that share a row of factors; 0: all
  int64_t first_token = 0;       // of the first row, among those that the factors are for
  BFloat16* before = nullptr;    // this and `kept` for the backward pass, much later
  BFloat16* kept = nullptr;      // y once more
  const Stream* added = nullptr;
  int64_t added_tokens = INT64_MAX;     // after which `added` repeats
  const BFloat16* activated = nullptr;  // y is a gradient: times the slope of LeakyReLU where its output is this
  bool far = false;                     // y and `added` are not in the caches

  void announce(const Place& place, Ahead& ahead) const {  // the memory that a block meets
    if (!far && matrix_unit()) return;                     // it takes less time than fetching does
    const int64_t at = place.row * outputs + place.column;
    ahead.add(y + at, place.columns, place.rows, outputs);
    if (activated) ahead.add(activated + at, place.columns, place.rows, outputs);
    if (added) ahead.add(added + added_at(place.row) * outputs + place.column, place.columns, place.rows, outputs);
  }
  void operator()(const Place& place, const Block& block) const {
    place.columns == kEdge ? rows<true>(place, block) : rows<false>(place, block);
  }

 private:
  // A row is two vectors. whole: all its columns are there. What rows share is read once.
  template <bool whole>
  void rows(const Place& place, const Block& block) const {
    const int64_t output = place.column, live = whole ? kEdge : place.columns;
    Floats bias_of[2] = {}, factor_of[2] = {}, value[2], more[2];
    if (bias) take(bias + output, live, bias_of);
    int64_t other_factors = 0;  // the token from which on they are others than those read last
    for (int64_t r = 0; r < place.rows; ++r) {
      const int64_t token = place.row + r, at = token * outputs + output;
      take(block.sums[r], kEdge, value);
      if (bias) each(value, bias_of, [](Floats a, Floats b) { return a + b; });
      if (leaky) each(value, value, sloped);
      if (before) keep<whole>(value, live, before + at);
      if (factor) {
        if (token >= other_factors) {
          const int64_t row = factors_of(token);
          take(factor + row * outputs + output, live, factor_of);
          other_factors = tokens_of_factor ? (row + 1) * tokens_of_factor - first_token : INT64_MAX;
        }
        each(value, factor_of, [](Floats a, Floats b) { return a * b; });
      }
      if (added) {
        take(added + added_at(token) * outputs + output, live, more);
        each(value, more, [](Floats a, Floats b) { return a + b; });
      }
      if (activated) {
        take(activated + at, live, more);
        each(value, more, sloped);
      }
      put<whole>(value, live, y + at);
      if (kept) keep<whole>(value, live, kept + at);
    }
  }

  template <class Element>
  static void take(const Element* from, int64_t live, Floats (&to)[2]) {
    to[0] = read(from, live);
    to[1] = live > kLanes ? read(from + kLanes, live - kLanes) : Floats{};
  }
  template <bool whole, class Element>
  static void put(const Floats (&value)[2], int64_t live, Element* to) {
    if constexpr (whole) {
      write_both(value[0], value[1], to);
    } else {
      write(value[0], to, live);
      if (live > kLanes) write(value[1], to + kLanes, live - kLanes);
    }
  }
  template <bool whole>
  static void keep(const Floats (&value)[2], int64_t live, BFloat16* to) {
    if constexpr (whole) {
      write_past_caches(value[0], value[1], to);
    } else {
      put<whole>(value, live, to);
    }
  }
  template <class Operation>
  static void each(Floats (&value)[2], const Floats (&by)[2], const Operation& operation) {
    value[0] = operation(value[0], by[0]);
    value[1] = operation(value[1], by[1]);
  }
  // The slope of LeakyReLU, where what was activated is `by`.
  static Floats sloped(Floats value, Floats by) { return by > 0 ? value : value * kLeakySlope; }
  int64_t factors_of(int64_t token) const { return tokens_of_factor ? (first_token + token) / tokens_of_factor : 0; }
  int64_t added_at(int64_t token) const { return token < added_tokens ? token : token % added_tokens; }
};

template <int inputs, class Stream>
void product(const Input (&input)[inputs], int64_t tokens, const Finish<Stream>& finish, int64_t threads) {
  for_each(blocks_of(tokens, kRows), threads, [&](int64_t n) {
    const int64_t first = n * kRows, next = first + kRows;
    Ahead later(threads);
    for (const Input& one : input) later.add(one.x + next * one.width, std::min(kRows, tokens - next) * one.width);
    multiply_rows(input, finish.outputs, first, std::min(kRows, tokens - first), finish, later);
  });
}

// ---- factors of a residual branch

// The gradients of y = branch · factor for the tokens first … end-1: of the branch (its first token being `first`), and
// of the factors, added to. `tokens` share a row of factors.
template <class Stream>
void factor_backward(const Stream* g, const BFloat16* branch, const float* factor, int64_t tokens, int64_t channels,
                     int64_t first, int64_t end, BFloat16* branch_gradient, float* factor_gradient, int64_t threads) {
  const int64_t wide = blocks_of(blocks_of(channels, 2 * kEdge), threads) * 2 * kEdge;  // whole lines of memory
  for_each(blocks_of(channels, wide), threads, [&](int64_t n) {
    for (int64_t t = first; t < end; ++t) {  // in the order of memory
      const int64_t at = t * channels, factor_at = (t / tokens) * channels;
      for (int64_t c = n * wide; c < std::min(channels, (n + 1) * wide); c += kLanes) {
        const int64_t live = channels - c;
        const Floats value = read(g + at + c, live);
        float* sums = factor_gradient + factor_at + c;
        write(read(sums, live) + value * read(branch + at + c, live), sums, live);
        write(value * read(factor + factor_at + c, live), branch_gradient + at - first * channels + c, live);
      }
    }
  });
}

// ---- depthwise convolutions, zeros outside the plane; taps: size² × channels, float32

// Rows of 32 channels in float32, `size / 2` zeros on each side: the inputs of a depthwise convolution of a
// plane.
template <int size, class Element>
class Rows {
 public:
  Rows(const Element* x, const Plane& plane, int64_t channel, float* memory)
      : x_(x), plane_(plane), channel_(channel), memory_(memory), stride_((plane.width + size - 1) * kEdge) {
    std::memset(memory, 0, static_cast<size_t>(size * stride_) * sizeof(float));
  }
  static int64_t memory(const Plane& plane) { return size * (plane.width + size - 1) * kEdge; }

  void fetch(int64_t row) {  // row: -pad … height+pad-1; the ring holds the last `size` of them
    float* to = memory_ + slot(row) * stride_ + kEdge * (size / 2);
    if (row < 0 || row >= plane_.height) {
      std::memset(to, 0, static_cast<size_t>(plane_.width * kEdge) * sizeof(float));
      return;
    }
    const Element* from = x_ + row * plane_.width * plane_.channels + channel_;
    const int64_t live = plane_.channels - channel_;
    for (int64_t w = 0; w < plane_.width; ++w, from += plane_.channels, to += kEdge) {
      store(read(from, live), to);
      store(live > kLanes ? read(from + kLanes, live - kLanes) : Floats{}, to + kLanes);
    }
  }
  // Where the rows that a convolution sees at row h begin.
  void around(int64_t h, const float* (&from)[size]) const {
    for (int i = 0; i < size; ++i) from[i] = memory_ + slot(h + i - size / 2) * stride_;
  }

 private:
  int64_t slot(int64_t row) const { return (row + size) % size; }
  const Element* x_;
  const Plane& plane_;
  int64_t channel_;
  float* memory_;
  int64_t stride_;
};

// y = depthwise(x) + bias + added; flipped: with the kernel turned by 180°, which is what gradients of x need. `kept`,
// if there, is y once more, for later.
template <int size, class X, class Y>
void depthwise(const X* x, const float* taps, const float* bias, const Y* added, Y* y, BFloat16* kept,
               const Plane& plane, bool flipped, int64_t threads) {
  constexpr int pad = size / 2, together = 2;  // places that share what they load
  const int64_t slabs = blocks_of(plane.channels, kEdge);
  for_each(plane.batch * slabs, threads, [&](int64_t n) {
    static thread_local Scratch<float> memory;
    const int64_t channel = n % slabs * kEdge, picture = n / slabs * plane.height * plane.width;
    const int64_t live[2] = {plane.channels - channel, plane.channels - channel - kLanes};
    using Window = Rows<size, X>;
    Window rows(x + picture * plane.channels, plane, channel, memory.get(Window::memory(plane)));
    Floats kernel[size * size][2], start[2];
    for (int half = 0; half < 2; ++half) {
      const int64_t c = channel + half * kLanes;
      const bool there = live[half] > 0;
      start[half] = bias && there ? read(bias + c, live[half]) : Floats{};
      for (int t = 0; t < size * size; ++t) {
        const float* tap = taps + (flipped ? size * size - 1 - t : t) * plane.channels + c;
        kernel[t][half] = there ? read(tap, live[half]) : Floats{};
      }
    }
    const auto put = [&](int64_t token, Floats first, Floats second) {
      const int64_t at = token * plane.channels + channel;
      if (live[1] >= kLanes) {
        if (added) {
          first += read(added + at);
          second += read(added + at + kLanes);
        }
        write_both(first, second, y + at);
        if (kept) write_past_caches(first, second, kept + at);
        return;
      }
      const Floats both[] = {first, second};
      for (int half = 0; half < 2 && live[half] > 0; ++half) {
        const int64_t c = at + half * kLanes;
        const Floats value = added ? both[half] + read(added + c, live[half]) : both[half];
        write(value, y + c, live[half]);
        if (kept) write(value, kept + c, live[half]);
      }
    };
    for (int64_t h = -pad; h < pad; ++h) rows.fetch(h);
    for (int64_t h = 0; h < plane.height; ++h) {
      rows.fetch(h + pad);
      const float* from[size];
      rows.around(h, from);
      const int64_t line = picture + h * plane.width;
      int64_t w = 0;
      for (; w + together <= plane.width; w += together) {
        Floats a0 = start[0], a1 = start[1], b0 = start[0], b1 = start[1];
#pragma GCC unroll 5
        for (int i = 0; i < size; ++i)
#pragma GCC unroll 6
          for (int j = 0; j <= size; ++j) {
            const float* at = from[i] + (w + j) * kEdge;
            const Floats x0 = load<Floats>(at), x1 = load<Floats>(at + kLanes);
            if (j < size) {
              a0 += kernel[i * size + j][0] * x0;
              a1 += kernel[i * size + j][1] * x1;
            }
            if (j > 0) {
              b0 += kernel[i * size + j - 1][0] * x0;
              b1 += kernel[i * size + j - 1][1] * x1;
            }
          }
        put(line + w, a0, a1);
        put(line + w + 1, b0, b1);
      }
      for (; w < plane.width; ++w) {
        Floats a0 = start[0], a1 = start[1];
        for (int t = 0; t < size * size; ++t) {
          const float* at = from[t / size] + (w + t % size) * kEdge;
          a0 += kernel[t][0] * load<Floats>(at);
          a1 += kernel[t][1] * load<Floats>(at + kLanes);
        }
        put(line + w, a0, a1);
      }
    }
  });
}

// Gradients of a depthwise convolution's taps (size² × channels) and of its bias, if wanted: written, or added.
template <int size, class X>
void depthwise_gradient(const X* x, const BFloat16* g, float* taps, float* bias, const Plane& plane, bool added,
                        int64_t threads) {
  constexpr int pad = size / 2;
  for_each(blocks_of(plane.channels, kEdge), threads, [&](int64_t slab) {
    static thread_local Scratch<float> memory;
    const int64_t channel = slab * kEdge;
    Floats sums[2][size * size] = {}, totals[2] = {};
    for (int64_t b = 0; b < plane.batch; ++b) {
      const int64_t picture = b * plane.height * plane.width;
      using Window = Rows<size, X>;
      Window rows(x + picture * plane.channels, plane, channel, memory.get(Window::memory(plane)));
      for (int64_t h = -pad; h < pad; ++h) rows.fetch(h);
      for (int64_t h = 0; h < plane.height; ++h) {
        rows.fetch(h + pad);
        const float* from[size];
        rows.around(h, from);
        for (int half = 0; half < 2; ++half) {
          const int64_t c = channel + half * kLanes, live = plane.channels - c;
          if (live <= 0) continue;
          Floats parts[size * size] = {}, total{};
          const BFloat16* gradient = g + (picture + h * plane.width) * plane.channels + c;
          for (int64_t w = 0; w < plane.width; ++w, gradient += plane.channels) {
            const Floats value = read(gradient, live);
            total += value;
#pragma GCC unroll 5
            for (int i = 0; i < size; ++i)
#pragma GCC unroll 5
              for (int j = 0; j < size; ++j)
                parts[i * size + j] += value * load<Floats>(from[i] + (w + j) * kEdge + half * kLanes);
          }
          for (int t = 0; t < size * size; ++t) sums[half][t] += parts[t];
          totals[half] += total;
        }
      }
    }
    for (int half = 0; half < 2; ++half) {
      const int64_t c = channel + half * kLanes, live = plane.channels - c;
      if (live <= 0) continue;
      const auto put = [&](Floats sum, float* to) { write(added ? sum + read(to, live) : sum, to, live); };
      for (int t = 0; t < size * size; ++t) put(sums[half][t], taps + t * plane.channels + c);
      if (bias) put(totals[half], bias + c);
    }
  });
}

}  // namespace hpcm
