// The integer operators of the exact profile on the processor, bit for bit as hpcm_codec/ops/integer.py defines them.
// A plain C interface; planes are contiguous, h×w×C or T×C. Threads share out whole results, so they change no number.
#include <cmath>

#include "integer_branch.h"
#include "integer_depthwise.h"
#include "integer_linear.h"
#include "integer_mixing.h"
#include "integer_steps.h"
#include "integer_weights.h"
#include "rans_decoder.h"
#include "rans_encoder.h"
#include "symbol_check.h"
#include "threads.h"

namespace hpcm {

// ---- layer norm

inline int64_t square_root(int64_t x) {
  int64_t root = static_cast<int64_t>(std::sqrt(static_cast<double>(x)));
  while (root * root > x) --root;
  while ((root + 1) * (root + 1) <= x) ++root;
  return root;
}

struct Norm {
  std::vector<double> gamma, beta;  // in units of the output; beta with the half that rounds

  Norm(const int32_t* gammas, const int32_t* betas, int64_t channels, int64_t shift) {
    // of values below 2^51, shifts beyond 52 leave as little as 52
    const double unit = std::ldexp(1.0, -static_cast<int>(std::min<int64_t>(shift, 52))), half = shift ? 0.5 : 0;
    for (int64_t c = 0; c < channels; ++c) {
      gamma.push_back(gammas[c] * unit);
      beta.push_back(betas[c] * unit + half);
    }
  }
};

inline void add_up(const int16_t* x, int64_t channels, int64_t& sum, int64_t& squares) {
  constexpr int64_t most = 16 * 2 * kWidth;  // a lane's squares stay below 2^31
  sum = squares = 0;
  for (; channels > 0; channels -= most, x += most) {
    Ints sums{}, parts{};
    for (int64_t c = 0; c < std::min(most, channels); c += 2 * kWidth) {
      const Ints pairs = load_part<Ints>(x + c, channels - c);
      sums = multiply_add(sums, pairs, Ints{} + 0x10001);
      parts = multiply_add(parts, pairs, pairs);
    }
    for (int n = 0; n < kWidth; ++n) {
      sum += sums[n];
      squares += parts[n];
    }
  }
}

// All numbers are integers (or halves, and so on) below 2^52 units in float64, where products and sums are not
// rounded, and the floor of a quotient is right: a rounded quotient of a and b is off by less than a / b · 2^-52 < 1 /
// b, and cannot cross an integer.
void layer_norm_token(const int16_t* x, const Norm& norm, int16_t* y, int64_t channels, int64_t epsilon) {
  int64_t sum, squares;
  add_up(x, channels, sum, squares);
  const double root = static_cast<double>(square_root(channels * squares - sum * sum + epsilon));
  const double times = static_cast<double>(channels) * 8192, offset = root - static_cast<double>(sum) * 8192;
  const double *gamma = norm.gamma.data(), *beta = norm.beta.data();
  for (int64_t c = 0; c < channels; ++c) {
    const double normalised = std::floor((times * x[c] + offset) / (2 * root));
    const double value = std::floor(normalised * gamma[c] + beta[c]);
    y[c] = static_cast<int16_t>(static_cast<int32_t>(std::min<double>(kLimit, std::max<double>(-kLimit, value))));
  }
}

}  // namespace hpcm

// All integers are int64, and the last is the number of threads.

extern "C" void hpcm_integer_pack(const int16_t* weight, int16_t* packed, int64_t outputs, int64_t inputs, int64_t) {
  hpcm::pack(weight, outputs, inputs, inputs, packed);
}

// segments: count × (address, inputs, row and column strides), all in int16 numbers, even numbers of inputs; offset:
// bias plus rounding; offset and shift padded to blocks of 16; factor and added may be null. parts: 1, or 2 for outputs
// of 2×2.
extern "C" void hpcm_integer_linear(const int64_t* segments, int64_t count, const int16_t* packed,
                                    const int32_t* offset, const int32_t* shift, const int16_t* factor,
                                    const int16_t* added, int64_t cell, int16_t* y, int64_t height, int64_t width,
                                    int64_t outputs, int64_t parts, int64_t leaky, int64_t limit, int64_t threads) {
  hpcm::Linear layer{{},    count,   0,     packed, offset,
                     shift, factor,  added, cell,   y,
                     width, outputs, parts, leaky,  static_cast<int32_t>(limit)};
  hpcm::set_segments(layer, segments);
  hpcm::linear(layer, height, threads);
}

// added + factor · project(leaky(expand(x))); segments as above, of places that follow each other; factor may be null.
extern "C" void hpcm_integer_branch(const int64_t* segments, int64_t count, const int16_t* packed,
                                    const int32_t* offset, const int32_t* shift, int64_t hidden, int64_t hidden_limit,
                                    const int16_t* project_packed, const int32_t* project_offset,
                                    const int32_t* project_shift, const int16_t* factor, const int16_t* added,
                                    int16_t* y, int64_t places, int64_t outputs, int64_t limit, int64_t threads) {
  hpcm::Linear expand{{},      count, 0,       packed, offset, shift, nullptr,
                      nullptr, 0,     nullptr, places, hidden, 1,     1,
                      static_cast<int32_t>(hidden_limit)};
  const hpcm::Linear project{{},    1, hidden / 2, project_packed, project_offset, project_shift, factor,
                             added, 0, y,          places,         outputs,        1,             0,
                             static_cast<int32_t>(limit)};
  hpcm::set_segments(expand, segments);
  hpcm::branch(expand, project, places, threads);
}

// Returns how many rows cannot be done, in failed.
extern "C" void hpcm_integer_make_linear(const uint8_t* stored, const int8_t* exponents, int64_t bits,
                                         const float* rows, const float* factor, const float* input, const double* bias,
                                         const int64_t* fraction, int64_t bound, int64_t outputs, int64_t inputs,
                                         int16_t* packed, int32_t* offset, int32_t* shift, int64_t* failed,
                                         int64_t threads) {
  const hpcm::Matrix matrix{stored, exponents, bits, rows, factor, input, bias, fraction, bound, outputs, inputs};
  *failed = hpcm::make_linear(matrix, packed, offset, shift, threads);
}

// rows: N×K, float64, in units of their inputs.
extern "C" void hpcm_integer_make_rows(const double* rows, const double* bias, const int64_t* fraction, int64_t bound,
                                       int64_t outputs, int64_t inputs, int16_t* integers, int32_t* offset,
                                       int32_t* shift, int64_t* failed, int64_t) {
  *failed = 0;
  for (int64_t n = 0; n < outputs; ++n) {
    *failed += !hpcm::integer_row(rows + n * inputs, inputs, bias[n], static_cast<int>(fraction[n]), bound,
                                  integers + n * inputs, offset[n], shift[n]);
  }
}

extern "C" void hpcm_integer_unpack(const uint8_t* stored, const int8_t* exponents, int64_t bits, float* rows,
                                    int64_t outputs, int64_t inputs, int64_t threads) {
  hpcm::for_each(outputs, outputs * inputs * 16, threads, [&](int64_t n) {
    hpcm::unpack_row(stored + n * (inputs * bits / 8), inputs, bits, exponents[n], rows + n * inputs);
  });
}

// size: 3 or 5
extern "C" void hpcm_integer_depthwise(const int16_t* x, const int16_t* kernel, const int32_t* bias,
                                       const int32_t* shift, int16_t* y, int64_t height, int64_t width,
                                       int64_t channels, int64_t size, int64_t limit, int64_t threads) {
  const hpcm::Depthwise layer{x, kernel, bias, shift, y, height, width, channels, static_cast<int32_t>(limit)};
  size == 3 ? hpcm::depthwise<3>(layer, threads) : hpcm::depthwise<5>(layer, threads);
}

// y = x · factor / 2^shift, rounded and clamped; factor: int64, or null for 1. |x · factor| < 2^62.
extern "C" void hpcm_integer_rescale(const int32_t* x, const int64_t* factor, int16_t* y, int64_t tokens,
                                     int64_t channels, int64_t shift, int64_t limit, int64_t threads) {
  const int64_t rounding = (int64_t{1} << shift) >> 1;
  hpcm::for_each_token(tokens, channels, 16, threads, [&](int64_t t) {
    const int32_t* from = x + t * channels;
    int16_t* to = y + t * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t value = ((factor ? from[c] * factor[c] : from[c]) + rounding) >> shift;
      to[c] = static_cast<int16_t>(std::min(limit, std::max(-limit, value)));
    }
  });
}

// The table indexes and means of a step's latents; params: h×w×2M, logarithms of scales and means; real: the means times
// unit.
extern "C" void hpcm_step_parameters(const int64_t* pieces, int64_t count, const int16_t* params,
                                     const int64_t* log_gain, const float* unit, uint8_t* levels, int16_t* means,
                                     float* real, int64_t height, int64_t width, int64_t channels, int64_t offset,
                                     int64_t multiplier, int64_t shift, int64_t highest, int64_t) {
  const int64_t rounding = (int64_t{1} << shift) >> 1;
  const auto level_of = [=](int16_t scale, int64_t c) {
    const int64_t level = ((scale + log_gain[c] + offset) * multiplier + rounding) >> shift;
    return static_cast<uint8_t>(std::min(highest, std::max<int64_t>(0, level)));
  };
  hpcm::step_parameters(reinterpret_cast<const hpcm::Piece*>(pieces), count, params, unit, levels, means, real, height,
                        width, channels, level_of);
}

// The same of scales that are not logarithms: an index is how many of the ascending thresholds scale · 2^shift reaches.
extern "C" void hpcm_step_parameters_linear(const int64_t* pieces, int64_t count, const int16_t* params,
                                            const int64_t* shift, const float* unit, uint8_t* levels, int16_t* means,
                                            float* real, int64_t height, int64_t width, int64_t channels,
                                            const int32_t* thresholds, int64_t number, int64_t) {
  const auto level_of = [=](int16_t scale, int64_t c) {
    const int64_t value = scale * (int64_t{1} << shift[c]);
    return static_cast<uint8_t>(std::upper_bound(thresholds, thresholds + number, value) - thresholds);
  };
  hpcm::step_parameters(reinterpret_cast<const hpcm::Piece*>(pieces), count, params, unit, levels, means, real, height,
                        width, channels, level_of);
}

// Puts a step's decoded latents into latents (int32 h×w×M): symbols times the inverse gain, and means.
extern "C" void hpcm_step_place(const int64_t* pieces, int64_t count, const int32_t* symbols, const int16_t* means,
                                const int64_t* inverse_gain, int32_t* latents, int64_t height, int64_t width,
                                int64_t channels, int64_t shift, int64_t fine, int64_t) {
  const int64_t rounding = (int64_t{1} << shift) >> 1, most = 1 << 30;
  const auto* of_step = reinterpret_cast<const hpcm::Piece*>(pieces);
  hpcm::for_step(of_step, count, height, width, channels, [&](int64_t packed, int64_t place, int64_t c) {
    const int64_t value =
        ((symbols[packed] * inverse_gain[c] + rounding) >> shift) + means[packed] * (int64_t{1} << fine);
    latents[place] = static_cast<int32_t>(std::min(most, std::max(-most, value)));
  });
}

// The window of a picture at (top, left), height×width, with its border repeated `margin` times, as int16 of three
// colours: table[pixel]. What lies beyond the picture's rows×columns repeats its last ones.
extern "C" void hpcm_pixels_in(const uint8_t* pixels, int64_t rows, int64_t columns, int64_t colours, int64_t top,
                               int64_t left, int64_t height, int64_t width, int64_t margin, const int16_t* table,
                               int16_t* y, int64_t) {
  for (int64_t i = -margin; i < height + margin; ++i) {
    const int64_t row = std::min(rows - 1, top + std::min(height - 1, std::max<int64_t>(0, i)));
    for (int64_t j = -margin; j < width + margin; ++j) {
      const int64_t column = std::min(columns - 1, left + std::min(width - 1, std::max<int64_t>(0, j)));
      const uint8_t* from = pixels + (row * columns + column) * colours;
      for (int64_t c = 0; c < 3; ++c) *y++ = table[from[colours == 3 ? c : 0]];
    }
  }
}

// Pixels at (top, left) of drawn blocks, …×columns×edge×edge×3 in units of 2^-shift: height×width×3, or of their means.
extern "C" void hpcm_pixels_out(const int16_t* blocks, int64_t columns, int64_t edge, int64_t top, int64_t left,
                                int64_t height, int64_t width, int64_t shift, int64_t grey, uint8_t* pixels, int64_t) {
  const int32_t rounding = (1 << shift) >> 1;
  for (int64_t i = top; i < top + height; ++i) {
    for (int64_t j = left; j < left + width; ++j) {
      const int16_t* from = blocks + ((i / edge * columns + j / edge) * edge * edge + i % edge * edge + j % edge) * 3;
      if (grey) {
        const int32_t sum = std::max(0, from[0] + from[1] + from[2]), divisor = 3 << shift;
        *pixels++ = static_cast<uint8_t>(std::min(255, (2 * sum + divisor) / (2 * divisor)));
        continue;
      }
      for (int64_t c = 0; c < 3; ++c) {
        *pixels++ = static_cast<uint8_t>(std::min(255, std::max(0, (from[c] + rounding) >> shift)));
      }
    }
  }
}

extern "C" void hpcm_integer_scale(const int16_t* x, const int16_t* factor, int16_t* y, int64_t tokens,
                                   int64_t channels, int64_t threads) {
  hpcm::for_each_token(tokens, channels, 16, threads, [&](int64_t t) {
    const int16_t* from = x + t * channels;
    int16_t* to = y + t * channels;
    for (int64_t c = 0; c < channels; ++c) to[c] = hpcm::saturate((from[c] * factor[c] + (1 << 11)) >> 12);
  });
}

extern "C" void hpcm_integer_layer_norm(const int16_t* x, const int32_t* gamma, const int32_t* beta, int16_t* y,
                                        int64_t tokens, int64_t channels, int64_t shift, int64_t epsilon,
                                        int64_t threads) {
  const hpcm::Norm norm(gamma, beta, channels, shift);
  hpcm::for_each_token(tokens, channels, 64, threads, [&](int64_t t) {
    hpcm::layer_norm_token(x + t * channels, norm, y + t * channels, channels, epsilon);
  });
}

// table: 4096 numbers; added may be null
extern "C" void hpcm_integer_gate(const int16_t* control, const int16_t* x, const int16_t* table, const int16_t* added,
                                  int16_t* y, int64_t elements, int64_t threads) {
  hpcm::for_each_run(elements, 32, threads, [&](int64_t first, int64_t end) {
    constexpr int64_t most = 512;
    int32_t index[most];
    int16_t open[most];
    for (; first < end; first += most) {
      const int64_t count = std::min(most, end - first);
      for (int64_t n = 0; n < count; ++n) {
        index[n] = std::min(2047, std::max(-2048, static_cast<int>(control[first + n]))) + 2048;
      }
      hpcm::look_up(table, index, count, open);
      for (int64_t n = 0; n < count; ++n) {
        y[first + n] = hpcm::saturate((x[first + n] * open[n] + (1 << 13)) >> 14);
      }
      for (int64_t n = 0; added && n < count; ++n) y[first + n] = hpcm::saturate(y[first + n] + added[first + n]);
    }
  });
}

extern "C" void hpcm_integer_squared_relu(const int16_t* x, int16_t* y, int64_t elements, int64_t shift,
                                          int64_t threads) {
  const int by =
      static_cast<int>(std::min<int64_t>(shift, 29));  // squares are below 2^26: after 27 bits nothing is left
  const int32_t rounding = (1 << by) >> 1;
  hpcm::for_each_run(elements, 16, threads, [&](int64_t first, int64_t end) {
    for (int64_t n = first; n < end; ++n) {
      const int32_t positive = std::max<int32_t>(x[n], 0);
      y[n] = hpcm::saturate((positive * positive + rounding) >> by);
    }
  });
}

// rows, columns: of a window, at most 64 places; at most 32 channels a head.
extern "C" void hpcm_integer_window_attention(const int16_t* q, const int16_t* k, const int16_t* v,
                                              const int16_t* table, int16_t* y, int64_t height, int64_t width,
                                              int64_t channels, int64_t heads, int64_t rows, int64_t columns,
                                              int64_t multiplier, int64_t shift, int64_t size, int64_t threads) {
  std::vector<int16_t> weights = hpcm::with_end<int16_t>(table, size);
  for (int16_t& weight : weights) weight = static_cast<int16_t>((weight + 2) >> 2);
  const hpcm::Attention attention{q,     k,    v,       y,          height, width,          channels,
                                  heads, rows, columns, multiplier, shift,  weights.data(), size};
  const int64_t down = (height + rows - 1) / rows, across = (width + columns - 1) / columns;
  hpcm::for_each(down * across * heads, height * width * rows * columns * (channels * 4 + heads * 64), threads,
                 [&](int64_t n) {
                   const int64_t window = n / heads;
                   hpcm::attend(attention, window / across * rows, window % across * columns, n % heads);
                 });
}

// growth: length×C; fading: (length+1)×C.
extern "C" void hpcm_integer_bi_wkv(const int16_t* key, const int16_t* value, const int32_t* growth,
                                    const int32_t* fading, const int32_t* itself, const int16_t* table, int16_t* y,
                                    int64_t tokens, int64_t channels, int64_t length, int64_t size, int64_t threads) {
  const std::vector<int32_t> weights = hpcm::with_end<int32_t>(table, size);
  hpcm::for_each((channels + hpcm::kLanes - 1) / hpcm::kLanes, tokens * channels * 200, threads, [&](int64_t n) {
    const int64_t c = n * hpcm::kLanes;
    hpcm::bi_wkv(key + c, value + c, growth + c, fading + c, itself + c, weights, y + c, tokens, channels, length,
                 channels - c);
  });
}

// Reads symbols until one cannot be read; returns in place[2] how many there were. place: the stream's state and
// position. starts: where each table begins in `cumulative`. Every table has at least 3 numbers.
extern "C" void hpcm_rans_decode(const uint32_t* words, int64_t count, int64_t* place, const int32_t* indexes,
                                 int64_t wanted, const int32_t* cumulative, const int64_t* starts, const int32_t* sizes,
                                 const int32_t* offsets, int64_t largest, int32_t* symbols) {
  hpcm::Stream stream{words, count, place[1], static_cast<uint64_t>(place[0])};
  int64_t read = 0;
  for (; read < wanted; ++read) {
    const int32_t table = indexes[read];
    const int64_t symbol = stream.symbol(cumulative + starts[table], sizes[table]) + offsets[table];
    if (!stream.sound) break;
    symbols[read] = static_cast<int32_t>(std::min(largest, std::max(-largest, symbol)));
  }
  place[0] = static_cast<int64_t>(stream.state);
  place[1] = stream.position;
  place[2] = read;
}

// Symbols under their tables, as hpcm_rans_decode takes them, into a stream at the end of `words`; place: their number,
// and in place[1] how many words the stream takes. An escaped symbol takes up to 12 words.
extern "C" void hpcm_rans_encode(const int32_t* symbols, const uint8_t* indexes, int64_t count,
                                 const int32_t* cumulative, const int64_t* starts, const int32_t* sizes,
                                 const int32_t* offsets, uint32_t* words, int64_t room, int64_t* place) {
  hpcm::Intervals intervals;
  intervals.kept.reserve(count + count / 8);
  for (int64_t n = 0; n < count; ++n) {
    const int32_t table = indexes[n];
    intervals.add(static_cast<int64_t>(symbols[n]) - offsets[table], cumulative + starts[table], sizes[table]);
  }
  place[1] = hpcm::write_intervals(intervals.kept.data(), static_cast<int64_t>(intervals.kept.size()), words, room);
}

// Continues a symbol check over the bytes of symbols (int32, little-endian).
extern "C" void hpcm_symbol_check(const uint8_t* bytes, int64_t count, uint16_t* check) {
  *check = hpcm::symbol_check(bytes, count, *check);
}
