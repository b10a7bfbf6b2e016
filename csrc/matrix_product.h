// Matrix products in bfloat16 with sums in float32, for training on the processor: y = Σ x·Wᵀ over one or two inputs, and
// the gradient of W. Blocks of 32×32 results are computed by the matrix unit (AMX), by AVX-512's bfloat16 dot products,
// or by plain vectors, whichever the machine has; what is packed has one layout for all three.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#ifdef __AVX512BW__
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && !defined(HPCM_PLAIN)
#define HPCM_DOT_PRODUCTS
#endif
#if defined(__AMX_BF16__) && defined(__linux__) && !defined(HPCM_PLAIN) && !defined(HPCM_NO_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#define HPCM_AMX
#endif

namespace hpcm {

using BFloat16 = uint16_t;  // its bits
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));

constexpr int64_t kLanes = 16;                   // numbers in a vector
constexpr int64_t kEdge = 32;                    // rows and columns of a block of results, and inputs in a step
constexpr int64_t kTile = kLanes * kEdge;        // elements of a tile: 16 rows of 32
constexpr int64_t kStep = 2 * kTile;             // packed elements of 32 inputs by 32 outputs
constexpr int64_t kRows = 64;                    // rows whose inputs stay in the cache while the weights pass
constexpr int64_t kChunk = 256;                 // tokens that a gradient of weights packs at a time
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

// The same past the caches, for what is not read for a long time: where the line is whole, memory is not read first.
inline void stream_both(Floats first, Floats second, BFloat16* to) {
#ifdef HPCM_DOT_PRODUCTS
  if (reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    const __m512bh both = _mm512_cvtne2ps_pbh(bits_as<__m512>(second), bits_as<__m512>(first));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits_as<__m512i>(both));
    return;
  }
#endif
  write_both(first, second, to);
}

inline void streams_end() {  // before another thread reads what was streamed
#ifdef HPCM_DOT_PRODUCTS
  _mm_sfence();
#endif
}

inline Floats read(const BFloat16* from, int64_t live = kLanes) { return widen(load<Shorts>(from, live)); }
inline Floats read(const float* from, int64_t live = kLanes) { return load<Floats>(from, live); }
inline void write(Floats x, BFloat16* to, int64_t live = kLanes) { store(narrow(x), to, live); }
inline void write(Floats x, float* to, int64_t live = kLanes) { store(x, to, live); }
inline Floats splat(float x) { return Floats{} + x; }

// Fetches so many elements into the second cache.
template <class Element>
inline void prefetch(const Element* from, int64_t count) {
  constexpr int64_t line = 64 / sizeof(Element);
  for (int64_t n = 0; n < count; n += line) __builtin_prefetch(from + n, 0, 2);
}

// ---- memory that a thread keeps, aligned to cache lines

template <class Element>
class Scratch {
 public:
  Element* get(int64_t count) {
    if (count > size_) {
      memory_.reset(static_cast<Element*>(std::aligned_alloc(64, static_cast<size_t>(blocks_of(count * sizeof(Element), 64)) * 64)));
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

// ---- the matrix unit

#ifdef HPCM_AMX
inline bool matrix_unit() {  // the system gives the tiles' memory to a process that asks for it
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return granted;
}

// While one exists, the thread's tiles are 16 rows of 64 bytes. It puts back what was set: other libraries rely on it.
class Tiles {
 public:
  Tiles() {
    if (!matrix_unit()) return;
    _tile_storeconfig(before_);
    in_memory(before_);
    alignas(64) uint8_t config[64] = {1};
    for (int n = 0; n < 8; ++n) {
      config[16 + 2 * n] = 64;
      config[48 + n] = 16;
    }
    in_memory(config);
    _tile_loadconfig(config);
  }
  ~Tiles() {
    if (matrix_unit()) before_[0] ? _tile_loadconfig(before_) : _tile_release();
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  // The compiler's intrinsics say that they read or write 8 of the 64 bytes.
  static void in_memory(uint8_t* config) { asm volatile("" : : "r"(config) : "memory"); }
  alignas(64) uint8_t before_[64] = {};
};
#else
inline bool matrix_unit() { return false; }
struct Tiles {
  Tiles() {}
  ~Tiles() {}
};
#endif

// Calls body(n) for n below `items`, shared out among threads.
template <class Body>
void for_each(int64_t items, int64_t threads, const Body& body) {
  threads = std::max<int64_t>(1, std::min(threads, items));
  if (threads == 1) {
    const Tiles tiles;
    for (int64_t n = 0; n < items; ++n) body(n);
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const Tiles tiles;
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < items; ++n) body(n);
  }
}

// ---- a block: 32 rows of the left operand times 32 packed columns of the right one

// Row r < 16 of step s begins at upper + r·row + s·step, row 16 + r at lower + …; a step is 32 numbers.
struct Left {
  const BFloat16 *upper, *lower;
  int64_t row, step;
};

struct alignas(64) Block {
  float sums[kEdge][kEdge];
};

inline void add_vectors(Block& block, const Left& left, const BFloat16* right, int64_t steps) {
  constexpr int rows = 4;
  for (int64_t first = 0; first < kEdge; first += rows) {
    const BFloat16* from = first < kLanes ? left.upper + first * left.row : left.lower + (first - kLanes) * left.row;
    Floats sums[rows][2];
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < 2; ++v) sums[r][v] = load<Floats>(&block.sums[first + r][v * kLanes]);
    for (int64_t s = 0; s < steps; ++s) {
      for (int64_t pair = 0; pair < kLanes; ++pair) {
        for (int v = 0; v < 2; ++v) {
          const BFloat16* pairs = right + s * kStep + v * kTile + pair * kEdge;
#ifdef HPCM_DOT_PRODUCTS
          const __m512bh weights = bits_as<__m512bh>(load<Words>(pairs));
#else
          const Words weights = load<Words>(pairs);
          const Floats even = bits_as<Floats>(weights << 16), odd = bits_as<Floats>(weights & 0xffff0000u);
#endif
          for (int r = 0; r < rows; ++r) {
            uint32_t both;
            std::memcpy(&both, from + r * left.row + s * left.step + 2 * pair, sizeof both);
#ifdef HPCM_DOT_PRODUCTS
            const __m512bh inputs = bits_as<__m512bh>(_mm512_set1_epi32(static_cast<int>(both)));
            sums[r][v] = bits_as<Floats>(_mm512_dpbf16_ps(bits_as<__m512>(sums[r][v]), inputs, weights));
#else
            sums[r][v] += even * bits_as<float>(both << 16);
            sums[r][v] += odd * bits_as<float>(both & 0xffff0000u);
#endif
          }
        }
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < 2; ++v) store(sums[r][v], &block.sums[first + r][v * kLanes]);
  }
}

inline void begin(Block& block) {
#ifdef HPCM_AMX
  if (matrix_unit()) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    return;
  }
#endif
  std::memset(block.sums, 0, sizeof block.sums);
}

inline void add(Block& block, const Left& left, const BFloat16* right, int64_t steps) {
#ifdef HPCM_AMX
  if (matrix_unit()) {
    const int64_t stride = left.row * static_cast<int64_t>(sizeof(BFloat16));
    for (int64_t s = 0; s < steps; ++s) {
      _tile_loadd(4, left.upper + s * left.step, stride);
      _tile_loadd(6, right + s * kStep, 64);
      _tile_loadd(7, right + s * kStep + kTile, 64);
      _tile_loadd(5, left.lower + s * left.step, stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    return;
  }
#endif
  add_vectors(block, left, right, steps);
}

inline void finish(Block& block) {
#ifdef HPCM_AMX
  if (matrix_unit()) {
    constexpr int64_t stride = kEdge * sizeof(float);
    _tile_stored(0, &block.sums[0][0], stride);
    _tile_stored(1, &block.sums[0][kLanes], stride);
    _tile_stored(2, &block.sums[kLanes][0], stride);
    _tile_stored(3, &block.sums[kLanes][kLanes], stride);
  }
#else
  (void)block;
#endif
}

// Where a block of results lies, and how much of it there is.
struct Place {
  int64_t row, rows, column, columns;
};

// ---- packing

// 16 rows of 16 words become 16 columns.
inline void transpose(Words (&rows)[kLanes]) {
  constexpr Words index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
  for (uint32_t half = 1; half < kLanes; half *= 2) {
    // where bit `half` of the index is clear, the first row keeps its word; where it is set, it takes the second row's
    const Words set = (index & half) != 0 ? Words{} + 1u : Words{};
    const Words upper = set != 0 ? index - half + 16u : index, lower = set != 0 ? index + 16u : index + half;
#pragma GCC unroll 16
    for (uint32_t r = 0; r < kLanes; ++r) {
      if (r & half) continue;
      const Words a = rows[r], b = rows[r + half];
      rows[r] = __builtin_shuffle(a, b, upper);
      rows[r + half] = __builtin_shuffle(a, b, lower);
    }
  }
}

inline Words pairs_of(Floats even, Floats odd) {
  return __builtin_convertvector(narrow(even), Words) | (__builtin_convertvector(narrow(odd), Words) << 16);
}

// 32 numbers of a row as 16 words of two neighbours.
template <class Element>
inline Words neighbours(const Element* from, int64_t live) {
  if constexpr (sizeof(Element) == sizeof(BFloat16)) {
    Words words{};
    std::memcpy(&words, from, static_cast<size_t>(std::min<int64_t>(live, kEdge)) * sizeof(Element));
    return words;
  } else {
    Words words{};
    BFloat16 half[kEdge] = {};
    store(narrow(read(from, live)), half);
    if (live > kLanes) store(narrow(read(from + kLanes, live - kLanes)), half + kLanes);
    std::memcpy(&words, half, sizeof words);
    return words;
  }
}

inline int64_t packed_size(int64_t inputs, int64_t outputs) {
  return blocks_of(inputs, kEdge) * blocks_of(outputs, kEdge) * kStep;
}

// The tile of 16 outputs (rows of `weight`, whose rows lie `stride` apart) by 32 inputs, as the right operand holds it.
template <class Element>
inline void pack_rows(const Element* weight, int64_t stride, int64_t rows, int64_t columns, BFloat16* tile) {
  Words words[kLanes];
#pragma GCC unroll 16
  for (int64_t r = 0; r < kLanes; ++r) words[r] = r < rows ? neighbours(weight + r * stride, columns) : Words{};
  transpose(words);
#pragma GCC unroll 16
  for (int64_t r = 0; r < kLanes; ++r) store(words[r], tile + r * kEdge);
}

// The tile of 32 inputs (rows of `x`) by 16 outputs (its columns), as the right operand holds it.
template <class Element>
inline void pack_columns(const Element* x, int64_t stride, int64_t rows, int64_t columns, BFloat16* tile) {
  for (int64_t pair = 0; pair < kLanes; ++pair) {
    const Element* from = x + 2 * pair * stride;
    const bool first = 2 * pair < rows, second = 2 * pair + 1 < rows;
    if constexpr (sizeof(Element) == sizeof(BFloat16)) {
      const Shorts even = first ? load<Shorts>(from, columns) : Shorts{};
      const Shorts odd = second ? load<Shorts>(from + stride, columns) : Shorts{};
      store(__builtin_convertvector(even, Words) | (__builtin_convertvector(odd, Words) << 16), tile + pair * kEdge);
    } else {
      const Floats even = first ? read(from, columns) : Floats{}, odd = second ? read(from + stride, columns) : Floats{};
      store(pairs_of(even, odd), tile + pair * kEdge);
    }
  }
}

#ifdef __AVX512BW__
// A quarter of a vector from each of four rows, eight rows apart.
inline __m512i quarters(const BFloat16* from, int64_t stride) {
  const auto part = [&](int64_t n) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8 * n * stride)); };
  __m512i all = _mm512_castsi128_si512(part(0));
  all = _mm512_inserti32x4(all, part(1), 1);
  all = _mm512_inserti32x4(all, part(2), 2);
  return _mm512_inserti32x4(all, part(3), 3);
}
#endif

// The tile of 16 rows, columns of g, by its 32 rows: the left operand of a gradient of weights.
inline void pack_transposed(const BFloat16* g, int64_t stride, int64_t rows, int64_t columns, BFloat16* tile) {
#ifdef __AVX512BW__
  if (rows >= kEdge && columns >= kLanes) {
    for (int64_t half = 0; half < 2; ++half, g += 8, tile += 8 * kEdge) {
      __m512i a[8], b[8];
      for (int r = 0; r < 8; ++r) a[r] = quarters(g + r * stride, stride);  // a quarter: 8 columns of a row
      for (int r = 0; r < 4; ++r) {
        b[2 * r] = _mm512_unpacklo_epi16(a[2 * r], a[2 * r + 1]);
        b[2 * r + 1] = _mm512_unpackhi_epi16(a[2 * r], a[2 * r + 1]);
      }
      for (int r = 0; r < 2; ++r) {
        for (int h = 0; h < 2; ++h) {
          a[4 * r + 2 * h] = _mm512_unpacklo_epi32(b[4 * r + h], b[4 * r + 2 + h]);
          a[4 * r + 2 * h + 1] = _mm512_unpackhi_epi32(b[4 * r + h], b[4 * r + 2 + h]);
        }
      }
      for (int c = 0; c < 4; ++c) {
        _mm512_storeu_si512(tile + (2 * c) * kEdge, _mm512_unpacklo_epi64(a[c], a[4 + c]));
        _mm512_storeu_si512(tile + (2 * c + 1) * kEdge, _mm512_unpackhi_epi64(a[c], a[4 + c]));
      }
    }
    return;
  }
#endif
  for (int64_t c = 0; c < kLanes; ++c)
    for (int64_t r = 0; r < kEdge; ++r) tile[c * kEdge + r] = r < rows && c < columns ? g[r * stride + c] : BFloat16{0};
}

// A weight (outputs × inputs, float32, rows `stride` apart) for y = x·Wᵀ.
inline void pack_forward(const float* weight, int64_t stride, int64_t outputs, int64_t inputs, BFloat16* packed) {
  for (int64_t n = 0; n < outputs; n += kEdge)
    for (int64_t k = 0; k < inputs; k += kEdge)
      for (int64_t half = 0; half < 2; ++half, packed += kTile) {
        const int64_t first = n + half * kLanes;
        pack_rows(weight + first * stride + k, stride, std::min(kLanes, outputs - first), inputs - k, packed);
      }
}

// The same for the gradient of x, g·W.
inline void pack_backward(const float* weight, int64_t stride, int64_t outputs, int64_t inputs, BFloat16* packed) {
  for (int64_t n = 0; n < inputs; n += kEdge)
    for (int64_t k = 0; k < outputs; k += kEdge)
      for (int64_t half = 0; half < 2; ++half, packed += kTile) {
        const int64_t first = n + half * kLanes;
        if (first >= inputs) {
          std::memset(packed, 0, kTile * sizeof(BFloat16));
        } else {
          pack_columns(weight + k * stride + first, stride, outputs - k, inputs - first, packed);
        }
      }
}

// ---- products

// One input of a product: tokens × width, and its weights, packed.
struct Input {
  const BFloat16* x;
  int64_t width;
  const BFloat16* weights;
};

// Rows first … first+rows-1 (at most kRows) of Σ x·Wᵀ: done(place, block) for each block of results.
template <int inputs, class Done>
void multiply_rows(const Input (&input)[inputs], int64_t outputs, int64_t first, int64_t rows, const Done& done) {
  static thread_local Scratch<BFloat16> padded[inputs];
  Left left[inputs];
  for (int n = 0; n < inputs; ++n) {
    const int64_t width = input[n].width;
    const BFloat16* x = input[n].x + first * width;
    int64_t stride = width;
    if (rows % kEdge || width % kEdge) {  // zeros up to whole blocks
      stride = blocks_of(width, kEdge) * kEdge;
      BFloat16* copy = padded[n].get(kRows * stride);
      for (int64_t r = 0; r < blocks_of(rows, kEdge) * kEdge; ++r) {
        const int64_t live = r < rows ? width : 0;
        std::memcpy(copy + r * stride, x + r * width, static_cast<size_t>(live) * sizeof(BFloat16));
        std::memset(copy + r * stride + live, 0, static_cast<size_t>(stride - live) * sizeof(BFloat16));
      }
      x = copy;
    }
    left[n] = {x, x + kLanes * stride, stride, kEdge};
  }
  Block block;
  for (int64_t column = 0; column < outputs; column += kEdge) {
    for (int64_t r = 0; r < rows; r += kEdge) {
      begin(block);
      for (int n = 0; n < inputs; ++n) {
        const int64_t steps = blocks_of(input[n].width, kEdge);
        Left part = left[n];
        part.upper += r * part.row;
        part.lower += r * part.row;
        add(block, part, input[n].weights + column / kEdge * steps * kStep, steps);
      }
      finish(block);
      done({first + r, std::min(kEdge, rows - r), column, std::min(kEdge, outputs - column)}, block);
    }
  }
}

// Puts blocks of a gradient of weights where they belong.
struct AddGradient {
  float* gradient;
  int64_t stride;
  bool add;

  void operator()(const Place& place, const Block& block) const {
    for (int64_t r = 0; r < place.rows; ++r) {
      float* to = gradient + (place.row + r) * stride + place.column;
      for (int64_t c = 0; c < place.columns; c += kLanes) {
        const int64_t live = place.columns - c;
        const Floats value = load<Floats>(&block.sums[r][c]);
        write(add ? value + read(to + c, live) : value, to + c, live);
      }
    }
  }
};

// The sums of g's columns: written, or added.
inline void column_sums(const BFloat16* g, int64_t tokens, int64_t columns, float* sums, bool added, int64_t threads) {
  constexpr int64_t together = 4;  // vectors: whole lines of memory, and no addition waits for the one before
  for_each(blocks_of(columns, together * kLanes), threads, [&](int64_t n) {
    const int64_t first = n * together * kLanes, live = columns - first;
    Floats parts[together] = {};
    if (live >= together * kLanes) {
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t v = 0; v < together; ++v) parts[v] += read(g + t * columns + first + v * kLanes);
    } else {
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t v = 0; v * kLanes < live; ++v)
          parts[v] += read(g + t * columns + first + v * kLanes, live - v * kLanes);
    }
    for (int64_t v = 0; v < together && v * kLanes < live; ++v) {
      float* to = sums + first + v * kLanes;
      write(added ? parts[v] + read(to, live - v * kLanes) : parts[v], to, live - v * kLanes);
    }
  });
}

// gᵀ·x (outputs × inputs, float32, rows `stride` apart): written, or added.
inline void weight_gradient(const BFloat16* g, int64_t outputs, const BFloat16* x, int64_t inputs, int64_t tokens,
                            float* gradient, int64_t stride, bool added, int64_t threads) {
  static thread_local Scratch<BFloat16> packed_x;
  const int64_t panels = blocks_of(inputs, kEdge);
  for (int64_t start = 0; start < tokens; start += kChunk) {
    const bool add_to = added || start > 0;
    const int64_t count = std::min(kChunk, tokens - start), steps = blocks_of(count, kEdge);
    BFloat16* right = packed_x.get(panels * steps * kStep);
    for_each(panels, threads, [&](int64_t panel) {
      BFloat16* to = right + panel * steps * kStep;
      for (int64_t s = 0; s < steps; ++s)
        for (int64_t half = 0; half < 2; ++half, to += kTile) {
          const int64_t column = panel * kEdge + half * kLanes, row = start + s * kEdge;
          if (column >= inputs) {
            std::memset(to, 0, kTile * sizeof(BFloat16));
          } else {
            pack_columns(x + row * inputs + column, inputs, tokens - row, inputs - column, to);
          }
        }
    });
    for_each(blocks_of(outputs, kEdge), threads, [&](int64_t n) {
      static thread_local Scratch<BFloat16> packed_g;
      BFloat16* left = packed_g.get(2 * steps * kTile);
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t output = n * kEdge + half * kLanes, live = outputs - output;
        BFloat16* to = left + half * steps * kTile;
        if (live <= 0) {
          std::memset(to, 0, static_cast<size_t>(steps) * kTile * sizeof(BFloat16));
          continue;
        }
        for (int64_t s = 0; s < steps; ++s) {
          const int64_t row = start + s * kEdge;
          const BFloat16* from = g + row * outputs + output;
          pack_transposed(from, outputs, tokens - row, live, to + s * kTile);
        }
      }
      const Left operand = {left, left + steps * kTile, kEdge, kTile};
      const AddGradient done{gradient, stride, add_to};
      Block block;
      for (int64_t panel = 0; panel < panels; ++panel) {
        begin(block);
        add(block, operand, right + panel * steps * kStep, steps);
        finish(block);
        const int64_t output = n * kEdge, input = panel * kEdge;
        done({output, std::min(kEdge, outputs - output), input, std::min(kEdge, inputs - input)}, block);
      }
    });
  }
}

}  // namespace hpcm
