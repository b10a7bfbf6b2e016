// The integer operators that mix tokens: softmax attention inside windows, for one window and head, and Bi-WKV, for one
// vector of channels.
#pragma once
#include <cmath>
#include <vector>

#include "integer.h"

namespace hpcm {

// The table and a zero, which stands for everything past its end.
template <class Number>
std::vector<Number> with_end(const int16_t* table, int64_t size) {
  std::vector<Number> longer(table, table + size);
  longer.push_back(0);
  return longer;
}

// values[n] = table[index[n]], one at a time: reading as if the table could change keeps the compiler from putting
// vectors together, which takes longer.
template <class Number>
inline void look_up(const Number* table, const int32_t* index, int64_t count, Number* values) {
  const volatile Number* entries = table;
  for (int64_t n = 0; n < count; ++n) values[n] = entries[index[n]];
}

// ---- window attention

constexpr int kKeys = 64, kHead = 32;  // largest window and channels of a head for which int32 holds every sum

struct Attention {
  const int16_t *q, *k, *v;
  int16_t* y;
  int64_t height, width, channels, heads, rows, columns;  // rows, columns: of a window
  int64_t multiplier, shift;
  const int16_t* weights;  // the weight of each distance of products, and 0 at `size`
  int64_t size;
};

// weights[j] of the n scores of a query; up to the next multiple of a block there are copies of the last score.
inline void soften(const Attention& a, const int32_t* scores, int64_t n, int16_t* weights) {
  int32_t highest = scores[0], index[kKeys];
  for (int64_t j = 0; j < n; j += kBlock) {
    for (int64_t i = 0; i < kBlock; ++i) highest = std::max(highest, scores[j + i]);
  }
  // unsigned, so that no argument can address memory outside the table
  const uint64_t multiplier = a.multiplier, rounding = (uint64_t{1} << a.shift) >> 1, size = a.size;
  for (int64_t j = 0; j < n; j += kBlock) {
    for (int64_t i = 0; i < kBlock; ++i) {
      const uint32_t below = static_cast<uint32_t>(highest) - static_cast<uint32_t>(scores[j + i]);  // up to 2^32
      index[j + i] = static_cast<int32_t>(std::min((below * multiplier + rounding) >> a.shift, size));
    }
  }
  look_up(a.weights, index, n, weights);
}

// kHead channels, of which the first `dims` are wanted: what follows may be anything, but must lie inside the plane.
inline void get_head(const int16_t* plane, int64_t place, int64_t end, int64_t dims, int16_t* to) {
  if (place + kHead <= end) {
    std::memcpy(to, plane + place, 2 * kHead);
  } else {
    std::memcpy(to, plane + place, 2 * dims);
  }
}

// y[r] = row r of x times the packed weights, for kRows rows
inline void multiply(const int16_t* x, int64_t stride, const int16_t* packed, int64_t pairs, int64_t outputs,
                     int32_t* y, int64_t y_stride) {
  for (int64_t first = 0; first < outputs; first += kBlock, packed += pairs * 2 * kBlock) {
    Ints tile[kRows][kVectors] = {};
    products<kRows, 1>(x, stride, packed, pairs, pairs, tile);
    for (int r = 0; r < kRows; ++r) std::memcpy(y + r * y_stride + first, tile[r], sizeof tile[r]);
  }
}

void attend(const Attention& a, int64_t top, int64_t left, int64_t head) {
  const int64_t rows = std::min(a.rows, a.height - top), columns = std::min(a.columns, a.width - left);
  const int64_t n = rows * columns, dims = a.channels / a.heads, end = a.height * a.width * a.channels;
  const int64_t query_pairs = (dims + 1) / 2, key_pairs = (n + 1) / 2;
  constexpr int sums_of_head = kHead + kBlock;  // the last that counts is the sum of the weights
  alignas(64) int16_t q[kKeys][kHead], packed_k[kKeys * kHead], packed_v[sums_of_head * kKeys], weights[kRows][kKeys];
  alignas(64) int32_t scores[kRows][kKeys], sums[kRows][sums_of_head];
  alignas(64) int16_t k[kHead] = {}, v[2][sums_of_head] = {}, values[sums_of_head];
  int64_t places[kKeys];
  for (int64_t row = 0, j = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column, ++j) {
      places[j] = ((top + row) * a.width + left + column) * a.channels + head * dims;
    }
  }
  for (int64_t j = 0; j < (n + kBlock - 1) / kBlock * kBlock; ++j) {  // copies of the last fill the last block
    const int64_t place = places[std::min(j, n - 1)];
    get_head(a.q, place, end, dims, q[j]);
    get_head(a.k, place, end, dims, k);
    if (dims % 2) q[j][dims] = k[dims] = 0;
    int16_t* to = packed_k + (j / kBlock * query_pairs * kBlock + j % kBlock) * 2;
    for (int64_t pair = 0; pair < query_pairs; ++pair) std::memcpy(to + pair * 2 * kBlock, k + 2 * pair, 4);
  }
  for (int64_t pair = 0; pair < key_pairs; ++pair) {
    for (int64_t i = 0; i < 2; ++i) {
      get_head(a.v, places[std::min(2 * pair + i, n - 1)], end, dims, v[i]);
      v[i][dims] = 1;
    }
    for (int64_t first = 0; first <= dims; first += kBlock) {
      int16_t* to = packed_v + (first * key_pairs + pair * kBlock) * 2;
      for (int64_t c = 0; c < kBlock; ++c) {
        to[2 * c] = v[0][first + c];
        to[2 * c + 1] = v[1][first + c];
      }
    }
  }
  std::memset(weights, 0, sizeof weights);
  for (int64_t row = 0; row < n; row += kRows) {
    const int64_t live = std::min<int64_t>(kRows, n - row);
    multiply(q[row], kHead, packed_k, query_pairs, n, scores[0], kKeys);
    for (int64_t r = 0; r < live; ++r) soften(a, scores[r], n, weights[r]);
    multiply(weights[0], kKeys, packed_v, key_pairs, dims + 1, sums[0], sums_of_head);
    for (int64_t r = 0; r < live; ++r) {
      const double total = sums[r][dims];
      for (int64_t first = 0; first < dims; first += kBlock) {
        for (int64_t c = first; c < first + kBlock; ++c) {  // without rounding, as in layer_norm_token
          values[c] = saturate(static_cast<int32_t>(std::floor((2.0 * sums[r][c] + total) / (2 * total))));
        }
      }
      std::memcpy(a.y + places[row + r], values, 2 * dims);
    }
  }
}

// ---- Bi-WKV

constexpr int kLanes = 8;  // channels at a time, in int64
typedef int64_t Longs __attribute__((vector_size(8 * kLanes)));
typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef int32_t HalfInts __attribute__((vector_size(4 * kLanes)));
typedef int16_t HalfShorts __attribute__((vector_size(2 * kLanes)));

inline Longs lengthen(HalfInts v) {
#if defined(__AVX512F__)
  return (Longs)_mm512_cvtepi32_epi64((__m256i)v);  // which gcc 12 does in two halves
#else
  return __builtin_convertvector(v, Longs);
#endif
}

inline Longs long_part(const int32_t* from, int64_t live) { return lengthen(load_part<HalfInts>(from, live)); }

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

void bi_wkv(const int16_t* key, const int16_t* value, const int32_t* growth, const int32_t* fading,
            const int32_t* itself, const std::vector<int32_t>& table, int16_t* y, int64_t tokens, int64_t channels,
            int64_t length, int64_t live) {
  live = std::min<int64_t>(kLanes, live);
  std::vector<HalfInts> below(tokens), weights(tokens);
  std::vector<Longs> sums(2 * tokens);
  const int32_t end = static_cast<int32_t>(table.size()) - 1;
  HalfShorts highest = load_part<HalfShorts>(key, live);
  for (int64_t t = 1; t < tokens; ++t) {
    const HalfShorts k = load_part<HalfShorts>(key + t * channels, live);
    highest = k > highest ? k : highest;
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const HalfShorts k = load_part<HalfShorts>(key + t * channels, live);
    const HalfInts index = __builtin_convertvector(highest, HalfInts) - __builtin_convertvector(k, HalfInts);
    below[t] = index > end ? HalfInts{} + end : index;
  }
  look_up(table.data(), reinterpret_cast<const int32_t*>(below.data()), tokens * kLanes,
          reinterpret_cast<int32_t*>(weights.data()));
  const auto inputs = [&](int64_t t, Longs(&x)[2]) {
    const HalfInts v = __builtin_convertvector(load_part<HalfShorts>(value + t * channels, live), HalfInts);
    x[0] = lengthen(weights[t] * v);
    x[1] = lengthen(weights[t]);
  };
  Recurrence forwards{growth, fading, length, channels, live}, backwards = forwards;
  const Longs own = long_part(itself, live);
  Longs x[2], before[2];
  for (int64_t t = 0; t < tokens; ++t) {
    inputs(t, x);
    forwards.advance(x, before);
    for (int n = 0; n < 2; ++n) sums[2 * t + n] = before[n] + ((x[n] * own) >> 14);
  }
  for (int64_t t = tokens - 1; t >= 0; --t) {
    inputs(t, x);
    backwards.advance(x, before);
    Longs divisor = sums[2 * t + 1] + before[1];
    divisor = divisor < 1 ? Longs{} + 1 : divisor;
    Longs result = quotient(sums[2 * t] + before[0], divisor);
    result = result > kLimit ? Longs{} + kLimit : result;
    result = result < -kLimit ? Longs{} - kLimit : result;
    store_part(__builtin_convertvector(result, HalfShorts), y + t * channels, live);
  }
}

}  // namespace hpcm
