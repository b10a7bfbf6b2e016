// The integer operators of the exact profile on the processor, bit for bit as hpcm_codec/ops/integer.py defines them.
// A plain C interface; planes are contiguous, h×w×C or T×C. Threads share out whole results, so they change no number.
#include "integer.h"

#include <cmath>
#include <vector>

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

inline int16_t saturate(int32_t x) { return static_cast<int16_t>(std::min(kLimit, std::max(-kLimit, x))); }

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

// A run of `columns` outputs of one row, for one vector of channels: every input is loaded once and meets the kernel's
// columns in registers.
template <int size, int columns>
void depthwise_run(const int16_t* x, const int16_t* kernel, Ints offset, Ints shift, int16_t* y, int64_t height,
                   int64_t width, int64_t channels, int64_t row, int64_t column, int64_t live) {
  constexpr int reach = size / 2;
  Ints sums[columns];
  for (int n = 0; n < columns; ++n) sums[n] = offset;
  for (int above = 0; above < size; ++above) {
    const int64_t from = row + above - reach;
    if (from < 0 || from >= height) continue;
    Ints weights[size];
    for (int n = 0; n < size; ++n) {
      // the odd half of a pair is zero, so multiply_add is one multiplication whatever the inputs' odd halves are
      weights[n] = widen(load_part<Shorts>(kernel + (above * size + n) * channels, live)) & 0xffff;
    }
#pragma GCC unroll 16
    for (int n = 0; n < columns + size - 1; ++n) {
      const int64_t at = column + n - reach;
      if (at < 0 || at >= width) continue;
      const Ints input = widen(load_part<Shorts>(x + (from * width + at) * channels, live));
#pragma GCC unroll 8
      for (int k = 0; k < size; ++k) {
        if (n - k >= 0 && n - k < columns) sums[n - k] = multiply_add(sums[n - k], input, weights[k]);
      }
    }
  }
  for (int n = 0; n < columns && column + n < width; ++n) {
    const Shorts value = __builtin_convertvector(clamped(sums[n] >> shift), Shorts);
    store_part(value, y + (row * width + column + n) * channels, live);
  }
}

template <int size>
void depthwise(const int16_t* x, const int16_t* kernel, const int32_t* bias, const int32_t* shift, int16_t* y,
               int64_t height, int64_t width, int64_t channels, int64_t threads) {
  constexpr int columns = 8;
  for_each(height, height * width * channels * size * size * 2, threads, [&](int64_t row) {
    for (int64_t c = 0; c < channels; c += kWidth) {
      const int64_t live = channels - c;
      const Ints shifts = load_part<Ints>(shift + c, live);
      const Ints offset = load_part<Ints>(bias + c, live) + ((((Ints{} + 1) << shifts)) >> 1);
      for (int64_t column = 0; column < width; column += columns) {
        depthwise_run<size, columns>(x + c, kernel + c, offset, shifts, y + c, height, width, channels, row, column,
                                     live);
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

// All numbers are integers below 2^52 in float64, where products and sums are exact, and so is the floor of a quotient:
// a rounded quotient of a and b is off by less than a / b · 2^-52 < 1 / b, and cannot cross an integer.
void layer_norm_token(const int16_t* x, const int32_t* gamma, const int32_t* beta, int16_t* y, int64_t channels,
                      int64_t shift, int64_t epsilon) {
  int64_t sum = 0, squares = 0;
  for (int64_t c = 0; c < channels; ++c) {
    sum += x[c];
    squares += static_cast<int32_t>(x[c]) * x[c];
  }
  const double root = static_cast<double>(square_root(channels * squares - sum * sum + epsilon));
  const double times = static_cast<double>(channels), total = static_cast<double>(sum), twice = 2 * root;
  // more than 52 bits are zero either way
  const double unit = std::ldexp(1.0, -static_cast<int>(std::min<int64_t>(shift, 52))), rounding = shift ? 0.5 : 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double normalised = std::floor(((times * x[c] - total) * 8192 + root) / twice);
    const double value = std::floor((normalised * gamma[c] + beta[c]) * unit + rounding);
    y[c] = static_cast<int16_t>(static_cast<int32_t>(std::min<double>(kLimit, std::max<double>(-kLimit, value))));
  }
}

// ---- window attention

constexpr int kKeys = 64, kHead = 32;  // largest window and channels of a head for which int32 holds every sum

struct Attention {
  const int16_t *q, *k, *v;
  int16_t* y;
  int64_t height, width, channels, heads, rows, columns;  // rows, columns: of a window
  int64_t multiplier, shift;
  const int16_t* weights;  // what the products' distances are worth, and 0 at `size`
  int64_t size;
};

// weights[j] for the n scores of a query; returns their sum.
inline int32_t soften(const Attention& a, const int32_t* scores, int64_t n, int16_t* weights) {
  int32_t highest = scores[0], sum = 0, index[kKeys];
  for (int64_t j = 1; j < n; ++j) highest = std::max(highest, scores[j]);
  const int64_t rounding = (int64_t{1} << a.shift) >> 1;
  for (int64_t j = 0; j < n; ++j) {
    const uint32_t below = static_cast<uint32_t>(highest) - static_cast<uint32_t>(scores[j]);  // up to 2^32
    index[j] = static_cast<int32_t>(std::min((below * a.multiplier + rounding) >> a.shift, a.size));
  }
  for (int64_t j = 0; j < n; ++j) {
    weights[j] = a.weights[index[j]];
    sum += weights[j];
  }
  return sum;
}

void attend(const Attention& a, int64_t top, int64_t left, int64_t head) {
  const int64_t rows = std::min(a.rows, a.height - top), columns = std::min(a.columns, a.width - left);
  const int64_t n = rows * columns, dims = a.channels / a.heads, even = (dims + 1) & ~int64_t{1};
  alignas(64) int16_t q[kKeys * kHead], k[kKeys * kHead], v[kHead * kKeys], packed_k[kKeys * kHead];
  alignas(64) int16_t packed_v[kHead * kKeys], weights[kRows][kKeys];
  alignas(64) int32_t scores[kRows][kKeys], sums[kRows][kHead];
  int64_t places[kKeys];
  std::memset(q, 0, sizeof q);
  std::memset(weights, 0, sizeof weights);
  for (int64_t j = 0; j < n; ++j) {
    places[j] = ((top + j / columns) * a.width + left + j % columns) * a.channels + head * dims;
    std::memcpy(q + j * even, a.q + places[j], 2 * dims);
    std::memcpy(k + j * dims, a.k + places[j], 2 * dims);
    for (int64_t c = 0; c < dims; ++c) v[c * kKeys + j] = a.v[places[j] + c];
  }
  pack(k, n, dims, dims, packed_k);
  pack(v, dims, n, kKeys, packed_v);
  const auto multiply = [](const int16_t* x, int64_t stride, const int16_t* packed, int64_t inputs, int64_t outputs,
                           int32_t* y, int64_t y_stride) {
    const int64_t pairs = (inputs + 1) / 2;
    for (int64_t block = 0; block * kBlock < outputs; ++block) {
      Ints tile[kRows][kVectors] = {};
      products<kRows, 1>(x, stride, packed + block * pairs * 2 * kBlock, pairs, tile);
      for (int r = 0; r < kRows; ++r) std::memcpy(y + r * y_stride + block * kBlock, tile[r], sizeof tile[r]);
    }
  };
  for (int64_t row = 0; row < n; row += kRows) {
    const int64_t live = std::min<int64_t>(kRows, n - row);
    multiply(q + row * even, even, packed_k, dims, n, scores[0], kKeys);
    double totals[kRows];
    for (int64_t r = 0; r < live; ++r) totals[r] = soften(a, scores[r], n, weights[r]);
    multiply(weights[0], kKeys, packed_v, n, dims, sums[0], kHead);
    for (int64_t r = 0; r < live; ++r) {
      int16_t* y = a.y + places[row + r];
      for (int64_t c = 0; c < dims; ++c) {  // exact, as in layer_norm_token
        y[c] = saturate(static_cast<int32_t>(std::floor((2.0 * sums[r][c] + totals[r]) / (2 * totals[r]))));
      }
    }
  }
}

// ---- Bi-WKV

constexpr int kLanes = 8;  // channels at a time, in int64
typedef int64_t Longs __attribute__((vector_size(8 * kLanes)));
typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef int32_t HalfInts __attribute__((vector_size(4 * kLanes)));
typedef int16_t HalfShorts __attribute__((vector_size(2 * kLanes)));

inline Longs long_part(const int32_t* from, int64_t live) {
  return __builtin_convertvector(load_part<HalfInts>(from, live), Longs);
}

struct Recurrence {
  const int32_t *growth, *fading;  // at the first channel
  int64_t length, channels, live;
  int64_t j = 0;
  Longs inside[2] = {}, carry[2] = {};

  // The sums before the next token, which is x.
  inline void advance(const Longs (&x)[2], Longs (&before)[2]) {
    if (j == length) {
      sums(carry);
      inside[0] = inside[1] = Longs{};
      j = 0;
    }
    sums(before);
    const Longs grown = long_part(growth + j * channels, live);
    for (int n = 0; n < 2; ++n) inside[n] += x[n] * grown;
    ++j;
  }

  inline void sums(Longs (&result)[2]) const {
    const Longs now = long_part(fading + j * channels, live);
    for (int n = 0; n < 2; ++n) result[n] = (carry[n] * now) >> 14;
    if (j == 0) return;
    const Longs last = long_part(fading + (j - 1) * channels, live);
    for (int n = 0; n < 2; ++n) result[n] += ((inside[n] >> 14) * last) >> 14;
  }
};

// floor((2a + b) / 2b), right within ±2^14 and out of reach beyond: the float64 quotient is off by one at most.
inline Longs quotient(Longs a, Longs b) {
  const Longs dividend = 2 * a + b, divisor = 2 * b;
  const Doubles reach = Doubles{} + 16384;
  Doubles real = __builtin_convertvector(dividend, Doubles) / __builtin_convertvector(divisor, Doubles);
  real = real > reach ? reach : real;
  real = real < -reach ? -reach : real;
  Longs whole = __builtin_convertvector(real, Longs);
  whole += __builtin_convertvector(whole, Doubles) > real;  // true is -1
  const Longs rest = dividend - whole * divisor;
  return whole + (rest < 0) - (rest >= divisor);
}

// Whether every divisor was positive.
bool bi_wkv(const int16_t* key, const int16_t* value, const int32_t* growth, const int32_t* fading,
            const int32_t* itself, const std::vector<int32_t>& table, int16_t* y, int64_t tokens, int64_t channels,
            int64_t length, int64_t live) {
  live = std::min<int64_t>(kLanes, live);
  std::vector<HalfInts> weights(tokens);
  std::vector<Longs> sums(2 * tokens);
  const int32_t end = static_cast<int32_t>(table.size()) - 1;
  HalfShorts highest = load_part<HalfShorts>(key, live);
  for (int64_t t = 1; t < tokens; ++t) {
    const HalfShorts k = load_part<HalfShorts>(key + t * channels, live);
    highest = k > highest ? k : highest;
  }
  const auto inputs = [&](int64_t t, Longs(&x)[2]) {
    const HalfInts v = __builtin_convertvector(load_part<HalfShorts>(value + t * channels, live), HalfInts);
    x[0] = __builtin_convertvector(weights[t] * v, Longs);
    x[1] = __builtin_convertvector(weights[t], Longs);
  };
  Recurrence forwards{growth, fading, length, channels, live}, backwards = forwards;
  const Longs own = long_part(itself, live);
  Longs x[2], before[2], lowest = Longs{} + 1;
  for (int64_t t = 0; t < tokens; ++t) {
    const HalfShorts k = load_part<HalfShorts>(key + t * channels, live);
    const HalfInts below = __builtin_convertvector(highest, HalfInts) - __builtin_convertvector(k, HalfInts);
    for (int n = 0; n < kLanes; ++n) weights[t][n] = table[std::min(below[n], end)];
    inputs(t, x);
    forwards.advance(x, before);
    for (int n = 0; n < 2; ++n) sums[2 * t + n] = before[n] + ((x[n] * own) >> 14);
  }
  for (int64_t t = tokens - 1; t >= 0; --t) {
    inputs(t, x);
    backwards.advance(x, before);
    const Longs divisor = sums[2 * t + 1] + before[1];
    lowest = divisor < lowest ? divisor : lowest;
    Longs result = quotient(sums[2 * t] + before[0], divisor);
    result = result > kLimit ? Longs{} + kLimit : result;
    result = result < -kLimit ? Longs{} - kLimit : result;
    store_part(__builtin_convertvector(result, HalfShorts), y + t * channels, live);
  }
  for (int64_t n = 0; n < live; ++n) {
    if (lowest[n] < 1) return false;
  }
  return true;
}

// The table and a zero, which everything past its end is worth.
template <class Number>
std::vector<Number> with_end(const int16_t* table, int64_t size) {
  std::vector<Number> longer(table, table + size);
  longer.push_back(0);
  return longer;
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
  const auto run = size == 3 ? hpcm::depthwise<3> : hpcm::depthwise<5>;
  run(x, kernel, bias, shift, y, height, width, channels, threads);
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
                                        int64_t tokens, int64_t channels, int64_t shift, int64_t epsilon, int64_t threads) {
  hpcm::for_each_token(tokens, channels, 64, threads, [&](int64_t t) {
    hpcm::layer_norm_token(x + t * channels, gamma, beta, y + t * channels, channels, shift, epsilon);
  });
}

// table: 4096 numbers
extern "C" void hpcm_integer_gate(const int16_t* control, const int16_t* x, const int16_t* table, int16_t* y,
                                  int64_t elements, int64_t threads) {
  hpcm::for_each_run(elements, 32, threads, [&](int64_t first, int64_t end) {
    for (int64_t n = first; n < end; ++n) {
      const int index = std::min(2047, std::max(-2048, static_cast<int>(control[n]))) + 2048;
      y[n] = hpcm::saturate((x[n] * table[index] + (1 << 13)) >> 14);
    }
  });
}

extern "C" void hpcm_integer_squared_relu(const int16_t* x, int16_t* y, int64_t elements, int64_t shift, int64_t threads) {
  const int by = static_cast<int>(std::min<int64_t>(shift, 29));  // squares are below 2^26: beyond 27 bits nothing is left
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

// growth: length×C; fading: (length+1)×C; bad is set where a divisor is not positive.
extern "C" void hpcm_integer_bi_wkv(const int16_t* key, const int16_t* value, const int32_t* growth,
                                    const int32_t* fading, const int32_t* itself, const int16_t* table, int16_t* y,
                                    int32_t* bad, int64_t tokens, int64_t channels, int64_t length, int64_t size,
                                    int64_t threads) {
  const std::vector<int32_t> weights = hpcm::with_end<int32_t>(table, size);
  hpcm::for_each((channels + hpcm::kLanes - 1) / hpcm::kLanes, tokens * channels * 200, threads, [&](int64_t n) {
    const int64_t c = n * hpcm::kLanes;
    if (!hpcm::bi_wkv(key + c, value + c, growth + c, fading + c, itself + c, weights, y + c, tokens, channels,
                      length, channels - c)) {
      *bad = 1;
    }
  });
}
