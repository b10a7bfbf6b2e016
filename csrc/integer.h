// Vectors of int32 and the matrix product of the integer operators: int16 activations times packed int16 weights, two
// neighbouring inputs at a time, into int32 sums. vpdpwssd, vpmaddwd or plain multiplications do it; all give the same
// numbers, since no sum overflows.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace hpcm {

constexpr int32_t kLimit = 8191;
constexpr int kBlock = 16;  // outputs that are packed together, whatever the width of the machine's vectors

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr int kWidth = 16, kRows = 8, kBlocks = 2;  // lanes of a vector; rows and blocks of outputs held in registers
#elif defined(__AVX2__)
constexpr int kWidth = 8, kRows = 4, kBlocks = 1;
#else
constexpr int kWidth = 4, kRows = 2, kBlocks = 1;
#endif
constexpr int kVectors = kBlock / kWidth;  // of a block

typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef int16_t Shorts __attribute__((vector_size(2 * kWidth)));

template <class Vector, class Real>
inline Vector load(const Real* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// The first `live` numbers, and zeros.
template <class Vector, class Real>
inline Vector load_part(const Real* from, int64_t live) {
  if (live * static_cast<int64_t>(sizeof(Real)) >= static_cast<int64_t>(sizeof(Vector))) return load<Vector>(from);
  Vector v{};
  std::memcpy(&v, from, sizeof(Real) * live);
  return v;
}

template <class Vector, class Real>
inline void store_part(const Vector& v, Real* to, int64_t live) {
  if (live * static_cast<int64_t>(sizeof(Real)) >= static_cast<int64_t>(sizeof(Vector))) {
    std::memcpy(to, &v, sizeof v);
  } else {
    std::memcpy(to, &v, sizeof(Real) * live);
  }
}

inline Ints widen(Shorts v) { return __builtin_convertvector(v, Ints); }

inline int16_t saturate(int32_t x) { return static_cast<int16_t>(std::min(kLimit, std::max(-kLimit, x))); }

inline Ints clamped(Ints v, int32_t limit = kLimit) {
  const Ints low = Ints{} - limit, high = Ints{} + limit;
  v = v < low ? low : v;
  return v > high ? high : v;
}

// sum + a.even · b.even + a.odd · b.odd, lanes taken as pairs of int16
inline Ints multiply_add(Ints sum, Ints a, Ints b) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return sum + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// Packed weights, [N/16][K/2][16][2]: for every 16 outputs and every pair of inputs a line of 64 bytes. weight: N×K,
// `stride` apart; missing outputs and inputs are zeros.
inline void pack(const int16_t* weight, int64_t outputs, int64_t inputs, int64_t stride, int16_t* packed) {
  const int64_t pairs = (inputs + 1) / 2;
  for (int64_t first = 0; first < outputs; first += kBlock) {
    for (int64_t pair = 0; pair < pairs; ++pair, packed += 2 * kBlock) {
      for (int64_t n = 0; n < kBlock; ++n) {
        for (int64_t k = 0; k < 2; ++k) {
          const bool inside = first + n < outputs && 2 * pair + k < inputs;
          packed[2 * n + k] = inside ? weight[(first + n) * stride + 2 * pair + k] : 0;
        }
      }
    }
  }
}

// Adds to sums[r][v] the products of rows x + r · stride (2 · pairs inputs each) and `blocks` blocks of packed weights,
// which are `apart` pairs from one to the next.
template <int rows, int blocks>
inline __attribute__((always_inline)) void products(const int16_t* x, int64_t stride, const int16_t* packed,
                                                    int64_t pairs, int64_t apart,
                                                    Ints (&sums)[rows][blocks * kVectors]) {
  for (int64_t pair = 0; pair < pairs; ++pair) {
    Ints weights[blocks * kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < blocks * kVectors; ++v) {
      weights[v] = load<Ints>(packed + (v / kVectors * apart + pair) * 2 * kBlock + v % kVectors * 2 * kWidth);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      int32_t both;
      std::memcpy(&both, x + r * stride + 2 * pair, sizeof both);
      const Ints inputs = Ints{} + both;
#pragma GCC unroll 8
      for (int v = 0; v < blocks * kVectors; ++v) sums[r][v] = multiply_add(sums[r][v], inputs, weights[v]);
    }
  }
}

}  // namespace hpcm
