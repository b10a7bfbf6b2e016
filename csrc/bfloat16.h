// Vectors of bfloat16 and float32 numbers, and the memory that a training step works in.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#ifdef __AVX512BW__
#include <immintrin.h>
#endif
// HPCM_PLAIN and HPCM_NO_AMX are for tests: they act as if the machine lacked the named instructions.
#if defined(__AVX512BF16__) && !defined(HPCM_PLAIN)
#define HPCM_DOT_PRODUCTS
#endif

namespace hpcm {

using BFloat16 = uint16_t;  // its bits
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));

constexpr int64_t kLanes = 16;  // numbers in a vector
constexpr float kLeakySlope = 0.01f;

inline int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <class To, class From>
inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "one size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// ---- vectors of 16 numbers; `live` of them are in memory

template <class Vector, class Element>
inline Vector load(const Element* from, int64_t live = kLanes) {
  Vector vector{};
  if (live >= kLanes) {
    std::memcpy(&vector, from, sizeof vector);
  } else {
    std::memcpy(&vector, from, static_cast<size_t>(live) * sizeof(Element));
  }
  return vector;
}

template <class Vector, class Element>
inline void store(const Vector& vector, Element* to, int64_t live = kLanes) {
  if (live >= kLanes) {
    std::memcpy(to, &vector, sizeof vector);
  } else {
    std::memcpy(to, &vector, static_cast<size_t>(live) * sizeof(Element));
  }
}

inline Floats widen(Shorts half) { return bits_as<Floats>(__builtin_convertvector(half, Words) << 16); }

inline Shorts narrow(Floats x) {  // to the nearest, ties to even; NaN stays NaN
#ifdef HPCM_DOT_PRODUCTS
  return bits_as<Shorts>(_mm512_cvtneps_pbh(bits_as<__m512>(x)));
#else
  Words bits = bits_as<Words>(x);
  Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector((x == x) ? rounded : ((bits >> 16) | 0x40u), Shorts);
#endif
}

// Two vectors one after the other, as one line of memory.
inline void write_both(Floats first, Floats second, BFloat16* to) {
#ifdef HPCM_DOT_PRODUCTS
  store(bits_as<Words>(_mm512_cvtne2ps_pbh(bits_as<__m512>(second), bits_as<__m512>(first))), to);
#else
  store(narrow(first), to);
  store(narrow(second), to + kLanes);
#endif
}

inline void write_both(Floats first, Floats second, float* to) {
  store(first, to);
  store(second, to + kLanes);
}

// The same past the caches, for what is not read for a long time: where the line is whole, memory is not read first.
inline void write_past_caches(Floats first, Floats second, BFloat16* to) {
#ifdef HPCM_DOT_PRODUCTS
  if (reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    const __m512bh both = _mm512_cvtne2ps_pbh(bits_as<__m512>(second), bits_as<__m512>(first));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits_as<__m512i>(both));
    return;
  }
#endif
  write_both(first, second, to);
}

inline void finish_writes_past_caches() {  // before another thread reads them
#ifdef HPCM_DOT_PRODUCTS
  _mm_sfence();
#endif
}

inline Floats read(const BFloat16* from, int64_t live = kLanes) { return widen(load<Shorts>(from, live)); }
inline Floats read(const float* from, int64_t live = kLanes) { return load<Floats>(from, live); }
inline void write(Floats x, BFloat16* to, int64_t live = kLanes) { store(narrow(x), to, live); }
inline void write(Floats x, float* to, int64_t live = kLanes) { store(x, to, live); }
inline Floats splat(float x) { return Floats{} + x; }

// ---- memory that a thread keeps, aligned to cache lines

template <class Element>
class Scratch {
 public:
  Element* get(int64_t count) {
    if (count > size_) {
      memory_.reset(static_cast<Element*>(
          std::aligned_alloc(64, static_cast<size_t>(blocks_of(count * sizeof(Element), 64)) * 64)));
      size_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<Element, Free> memory_;
  int64_t size_ = 0;
};

}  // namespace hpcm
