// The integer operators of the exact profile on the processor, bit for bit as hpcm_codec/ops/integer.py defines them.
// A plain C interface; planes are contiguous, h×w×C or T×C. Threads share out whole results, so they change no number.
#include "integer_mixing.h"
#include "rans_decoder.h"

#include <cmath>

namespace hpcm {

constexpr int64_t kWorkPerThread = 1 << 23;  // multiply-adds, about 0.1 ms: less does not pay for waking a thread

// Calls body(n) for n below `items`, which take `work` multiply-adds or as much time, all together.
template <class Body>
void for_each(int64_t items, int64_t work, int64_t threads, const Body& body) {
  threads = std::max<int64_t>(1, std::min(threads, work / kWorkPerThread));
  if (threads == 1) {
    for (int64_t n = 0; n < items; ++n) body(n);
    return;
  }
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(dynamic)
  for (int64_t n = 0; n < items; ++n) body(n);
}

// The same for so many elements, `work` each, in runs: body(first, end).
template <class Body>
void for_each_run(int64_t elements, int64_t work, int64_t threads, const Body& body) {
  constexpr int64_t run = 1 << 14;
  for_each((elements + run - 1) / run, elements * work, threads,
           [&](int64_t n) { body(n * run, std::min(elements, (n + 1) * run)); });
}

// The same for tokens of so many channels: body(token).
template <class Body>
void for_each_token(int64_t tokens, int64_t channels, int64_t work, int64_t threads, const Body& body) {
  constexpr int64_t run = 16;
  for_each((tokens + run - 1) / run, tokens * channels * work, threads, [&](int64_t n) {
    for (int64_t t = n * run; t < std::min(tokens, (n + 1) * run); ++t) body(t);
  });
}

// ---- linear

struct Linear {
  const int16_t* x;        // T×2·pairs
  const int16_t* packed;   // as `pack` makes it
  const int32_t* offset;   // bias and rounding of the shift, and the shift, padded to blocks
  const int32_t* shift;
  const int16_t* factor;  // N, or null
  const int16_t* added;   // T×N, or null
  int16_t* y;             // T×N
  int64_t pairs, outputs, leaky;
};

inline Ints finish(Ints value, const Linear& layer, int64_t at, int64_t output, int64_t live) {
  value = clamped(value >> load<Ints>(layer.shift + output));
  if (layer.leaky) value = value < 0 ? (value * 328 + (1 << 14)) >> 15 : value;
  if (layer.factor) value = (value * widen(load_part<Shorts>(layer.factor + output, live)) + (1 << 11)) >> 12;
  if (layer.added) value += widen(load_part<Shorts>(layer.added + at, live));
  return clamped(value);
}

template <int rows, int blocks>
void linear_tile(const Linear& layer, int64_t row, int64_t block) {
  Ints sums[rows][blocks * kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < blocks * kVectors; ++v) sums[r][v] = load<Ints>(layer.offset + block * kBlock + v * kWidth);
  }
  products<rows, blocks>(layer.x + row * 2 * layer.pairs, 2 * layer.pairs,
                         layer.packed + block * layer.pairs * 2 * kBlock, layer.pairs, sums);
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < blocks * kVectors; ++v) {
      const int64_t output = block * kBlock + v * kWidth, at = (row + r) * layer.outputs + output;
      const int64_t live = layer.outputs - output;
      if (live <= 0) continue;
      store_part(__builtin_convertvector(finish(sums[r][v], layer, at, output, live), Shorts), layer.y + at, live);
    }
  }
}

template <int rows>
void linear_rows(const Linear& layer, int64_t& row, int64_t end, int64_t block, int64_t blocks) {
  for (; row + rows <= end; row += rows) {
    if (blocks == kBlocks) {
      linear_tile<rows, kBlocks>(layer, row, block);
    } else {
      for (int64_t n = 0; n < blocks; ++n) linear_tile<rows, 1>(layer, row, block + n);
    }
  }
  if constexpr (rows > 1) linear_rows<rows / 2>(layer, row, end, block, blocks);
}

void linear(const Linear& layer, int64_t tokens, int64_t threads) {
  constexpr int64_t chunk = 64;  // rows whose inputs stay in the cache while the panels of weights pass
  const int64_t blocks = (layer.outputs + kBlock - 1) / kBlock, panels = (blocks + kBlocks - 1) / kBlocks;
  const int64_t chunks = (tokens + chunk - 1) / chunk;
  for_each(chunks * panels, tokens * layer.pairs * 2 * blocks * kBlock, threads, [&](int64_t n) {
    int64_t row = n / panels * chunk;
    const int64_t block = n % panels * kBlocks;
    linear_rows<kRows>(layer, row, std::min(tokens, row + chunk), block, std::min<int64_t>(kBlocks, blocks - block));
  });
}

// ---- depthwise

struct Depthwise {
  const int16_t *x, *kernel;
  const int32_t *bias, *shift;
  int16_t* y;
  int64_t height, width, channels;
};

// A run of `columns` outputs of one row from channel c on, for one vector of channels: every input is loaded once and
// meets the kernel's columns in registers. whole: all channels of the vector are there.
template <int size, int columns, bool whole>
void depthwise_run(const Depthwise& layer, int64_t row, int64_t column, int64_t c) {
  constexpr int reach = size / 2;
  const int16_t nothing[kWidth] = {};
  const int64_t live = whole ? kWidth : layer.channels - c;
  const auto get = [live](const int16_t* from) {
    return widen(whole ? load<Shorts>(from) : load_part<Shorts>(from, live));
  };
  const Ints shift = load_part<Ints>(layer.shift + c, live);
  const Ints offset = load_part<Ints>(layer.bias + c, live) + (((Ints{} + 1) << shift) >> 1);
  Ints sums[columns];
#pragma GCC unroll 16
  for (int n = 0; n < columns; ++n) sums[n] = offset;
  for (int above = 0; above < size; ++above) {
    const int64_t from = row + above - reach;
    if (from < 0 || from >= layer.height) continue;
    Ints weights[size];
#pragma GCC unroll 8
    for (int n = 0; n < size; ++n) {
      // the odd half of a pair is zero, so multiply_add is one multiplication whatever the inputs' odd halves are
      weights[n] = get(layer.kernel + (above * size + n) * layer.channels + c) & 0xffff;
    }
    const int16_t* inputs = layer.x + from * layer.width * layer.channels + c;
#pragma GCC unroll 16
    for (int n = 0; n < columns + size - 1; ++n) {
      const int64_t at = column + n - reach;
      const Ints input = get(at < 0 || at >= layer.width ? nothing : inputs + at * layer.channels);
#pragma GCC unroll 8
      for (int k = 0; k < size; ++k) {
        if (n - k >= 0 && n - k < columns) sums[n - k] = multiply_add(sums[n - k], input, weights[k]);
      }
    }
  }
  int16_t* y = layer.y + (row * layer.width + column) * layer.channels + c;
#pragma GCC unroll 16
  for (int n = 0; n < columns; ++n) {
    if (column + n >= layer.width) return;
    store_part(__builtin_convertvector(clamped(sums[n] >> shift), Shorts), y + n * layer.channels, live);
  }
}

template <int size>
void depthwise(const Depthwise& layer, int64_t threads) {
  constexpr int columns = 8;
  const int64_t work = layer.height * layer.width * layer.channels * size * size * 2;
  for_each(layer.height, work, threads, [&](int64_t row) {
    for (int64_t c = 0; c < layer.channels; c += kWidth) {
      // the last vector reaches back over channels that are done already, rather than over the end
      const int64_t first = std::max<int64_t>(0, std::min(c, layer.channels - kWidth));
      for (int64_t column = 0; column < layer.width; column += columns) {
        if (layer.channels >= kWidth) {
          depthwise_run<size, columns, true>(layer, row, column, first);
        } else {
          depthwise_run<size, columns, false>(layer, row, column, first);
        }
      }
    }
  });
}

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

// All numbers are integers (or halves, and so on) below 2^52 units in float64, where products and sums are exact, and so
// is the floor of a quotient: a rounded quotient of a and b is off by less than a / b · 2^-52 < 1 / b, and cannot cross
// an integer.
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

// x: T×2·pairs; offset: bias plus rounding; offset and shift padded to blocks of 16; factor and added may be null.
extern "C" void hpcm_integer_linear(const int16_t* x, const int16_t* packed, const int32_t* offset,
                                    const int32_t* shift, const int16_t* factor, const int16_t* added, int16_t* y,
                                    int64_t tokens, int64_t pairs, int64_t outputs, int64_t leaky, int64_t threads) {
  hpcm::linear({x, packed, offset, shift, factor, added, y, pairs, outputs, leaky}, tokens, threads);
}

// size: 3 or 5
extern "C" void hpcm_integer_depthwise(const int16_t* x, const int16_t* kernel, const int32_t* bias,
                                       const int32_t* shift, int16_t* y, int64_t height, int64_t width,
                                       int64_t channels, int64_t size, int64_t threads) {
  const hpcm::Depthwise layer{x, kernel, bias, shift, y, height, width, channels};
  size == 3 ? hpcm::depthwise<3>(layer, threads) : hpcm::depthwise<5>(layer, threads);
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

// table: 4096 numbers
extern "C" void hpcm_integer_gate(const int16_t* control, const int16_t* x, const int16_t* table, int16_t* y,
                                  int64_t elements, int64_t threads) {
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
    }
  });
}

extern "C" void hpcm_integer_squared_relu(const int16_t* x, int16_t* y, int64_t elements, int64_t shift,
                                          int64_t threads) {
  const int by = static_cast<int>(std::min<int64_t>(shift, 29));  // squares are below 2^26: after 27 bits nothing is left
  const int32_t rounding = (1 << by) >> 1;
  hpcm::for_each_run(elements, 16, threads, [&](int64_t first, int64_t end) {
    for (int64_t n = first; n < end; ++n) {
      const int32_t positive = std::max<int32_t>(x[n], 0);
      y[n] = hpcm::saturate((positive * positive + rounding) >> by);
    }
  });
}

// rows, columns: of a window, at most 64 positions; at most 32 channels a head.
extern "C" void hpcm_integer_window_attention(const int16_t* q, const int16_t* k, const int16_t* v,
                                              const int16_t* table, int16_t* y, int64_t height, int64_t width,
                                              int64_t channels, int64_t heads, int64_t rows, int64_t columns,
                                              int64_t multiplier, int64_t shift, int64_t size, int64_t threads) {
  std::vector<int16_t> weights = hpcm::with_end<int16_t>(table, size);
  for (int16_t& weight : weights) weight = static_cast<int16_t>((weight + 2) >> 2);
  const hpcm::Attention attention{q,    k,       v,          y,     height,         width, channels, heads,
                                  rows, columns, multiplier, shift, weights.data(), size};
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

// Reads symbols until one cannot be read; returns in place[2] how many there were. place: the stream's state and position.
// starts: where each table begins in `cumulative`. Every table has at least 3 numbers.
extern "C" void hpcm_rans_decode(const uint32_t* words, int64_t count, int64_t* place, const int32_t* indexes,
                                  int64_t wanted, const int32_t* cumulative, const int64_t* starts,
                                  const int32_t* sizes, const int32_t* offsets, int64_t largest, int32_t* symbols) {
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
