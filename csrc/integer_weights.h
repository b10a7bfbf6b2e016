// Integer layers out of stored weights: rows of 9 to 12 bits are unpacked, rounded to int16 and laid out for the matrix
// product. float64 rounds none of it (powers of two, roundings to integers, sums of few bits), so hpcm_codec's
// numpy gives the same numbers.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "integer.h"
#include "threads.h"

namespace hpcm {

// One row of `length` integers of so many bits, as hpcm_codec/weights/packing.py lays them out, times 2^exponent.
inline void unpack_row(const uint8_t* stored, int64_t length, int64_t bits, int exponent, float* row) {
  constexpr int planes[4][2] = {{1, 0}, {2, 0}, {2, 1}, {4, 0}};
  std::vector<int16_t> integers(length);
  for (int64_t k = 0; k < length; ++k) integers[k] = stored[k];
  const uint8_t* from = stored + length;
  int done = 8;
  for (const int width : planes[bits - 9]) {
    if (!width) continue;
    const int64_t bytes = length * width / 8;
    for (int n = 0; n < 8 / width; ++n) {
      int16_t* to = integers.data() + n * bytes;
      for (int64_t k = 0; k < bytes; ++k) {
        to[k] = static_cast<int16_t>(to[k] | (from[k] >> (width * n) & ((1 << width) - 1)) << done);
      }
    }
    from += bytes;
    done += width;
  }
  const int above = 16 - static_cast<int>(bits);
  const float unit = std::ldexp(1.0f, exponent);
  for (int64_t k = 0; k < length; ++k) {
    row[k] = static_cast<float>(static_cast<int16_t>(integers[k] << above) >> above) * unit;
  }
}

constexpr int64_t kLargestSum = (int64_t{1} << 31) - 1, kLargestWeight = (1 << 15) - 1;
constexpr int kLargestShift = 30;

// Σ|row|, the same in any order.
template <class Real>
inline double sum_of_magnitudes(const Real* row, int64_t length) {
  double lanes[8] = {};
  for (int64_t k = 0; k + 8 <= length; k += 8) {
    for (int n = 0; n < 8; ++n) lanes[n] += std::fabs(static_cast<double>(row[k + n]));
  }
  for (int64_t k = length / 8 * 8; k < length; ++k) lanes[0] += std::fabs(static_cast<double>(row[k]));
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

// Rounds a row of weights, in units of inputs that stay within `bound`, to int16: the shift of the sum is as large as
// int32 and int16 allow. False when there is none.
template <class Real>
inline bool integer_row(const Real* row, int64_t length, double bias, int fraction, int64_t bound, int16_t* integers,
                        int32_t& offset, int32_t& shift) {
  int exponent;
  std::frexp(static_cast<double>(bound) * sum_of_magnitudes(row, length) + std::fabs(bias), &exponent);
  shift = std::min(kLargestShift, std::max(0, 31 - exponent - fraction));
  for (;; --shift) {
    const Real factor = static_cast<Real>(std::ldexp(1.0, shift + fraction)), most = 1 << 20;
    int64_t magnitudes = 0;
    int32_t largest = 0;
    for (int64_t k = 0; k < length; ++k) {
      const Real value = std::nearbyint(row[k] * factor);
      const int32_t integer = static_cast<int32_t>(value > most ? most : value < -most ? -most : value);
      const int32_t magnitude = integer < 0 ? -integer : integer;
      integers[k] = static_cast<int16_t>(integer);
      magnitudes += magnitude;
      largest = std::max(largest, magnitude);
    }
    const double rounded = std::nearbyint(std::ldexp(bias, shift + fraction));
    const double total =
        static_cast<double>(bound) * static_cast<double>(magnitudes) + std::fabs(rounded) + std::ldexp(1.0, shift - 1);
    offset = static_cast<int32_t>(std::min(2147483647.0, std::max(-2147483647.0, rounded)));
    if (total <= static_cast<double>(kLargestSum) && largest <= kLargestWeight) return true;
    if (shift == 0) return false;
  }
}

struct Matrix {
  const uint8_t* stored;  // packed rows and their exponents, or null …
  const int8_t* exponents;
  int64_t bits;
  const float* rows;        // … and then rows as they are
  const float* factor;      // of each row, or null
  const float* input;       // units of the inputs
  const double* bias;       // or null
  const int64_t* fraction;  // of the outputs
  int64_t bound, outputs, inputs;
};

// The matrix in the form of the product: packed, bias with the rounding of the shift, shift; both padded to blocks
// of 16. Returns how many rows cannot be done.
inline int64_t make_linear(const Matrix& m, int16_t* packed, int32_t* offset, int32_t* shift, int64_t threads) {
  const int64_t blocks = (m.outputs + kBlock - 1) / kBlock, pairs = (m.inputs + 1) / 2;
  std::vector<int64_t> failures(blocks);
  for_each(blocks, m.outputs * m.inputs * 64, threads, [&](int64_t block) {
    std::vector<int16_t> integers(kBlock * 2 * pairs);
    std::vector<float> row(m.inputs);
    for (int64_t n = block * kBlock; n < std::min(m.outputs, (block + 1) * kBlock); ++n) {
      if (m.stored) {
        unpack_row(m.stored + n * (m.inputs * m.bits / 8), m.inputs, m.bits, m.exponents[n], row.data());
      } else {
        std::copy(m.rows + n * m.inputs, m.rows + (n + 1) * m.inputs, row.data());
      }
      const float factor = m.factor ? m.factor[n] : 1.0f;
      for (int64_t k = 0; k < m.inputs; ++k) row[k] = row[k] * factor * m.input[k];
      int16_t* to = integers.data() + (n - block * kBlock) * 2 * pairs;
      failures[block] += !integer_row(row.data(), m.inputs, m.bias ? m.bias[n] : 0.0, static_cast<int>(m.fraction[n]),
                                      m.bound, to, offset[n], shift[n]);
      offset[n] += shift[n] ? 1 << (shift[n] - 1) : 0;
    }
    for (int64_t n = std::max(block * kBlock, m.outputs); n < (block + 1) * kBlock; ++n) offset[n] = shift[n] = 0;
    pack(integers.data(), kBlock, 2 * pairs, 2 * pairs, packed + block * kBlock * 2 * pairs);
  });
  int64_t failed = 0;
  for (const int64_t failure : failures) failed += failure;
  return failed;
}

}  // namespace hpcm
