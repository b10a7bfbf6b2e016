// Blocks of 32×32 results of a matrix product in bfloat16 with sums in float32: by the matrix unit (AMX), by AVX-512's
// bfloat16 dot products, or by plain vectors, whichever the machine has. What is packed has one layout for all three.
#pragma once
#include "bfloat16.h"

#if defined(__AMX_BF16__) && defined(__linux__) && !defined(HPCM_PLAIN) && !defined(HPCM_NO_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#define HPCM_AMX
#endif

namespace hpcm {

constexpr int64_t kEdge = 32;              // rows and columns of a block of results, and inputs in a step
constexpr int64_t kTile = kLanes * kEdge;  // elements of a tile: 16 rows of 32
constexpr int64_t kStep = 2 * kTile;       // packed elements of 32 inputs by 32 outputs

// ---- the matrix unit

#ifdef HPCM_AMX
inline bool matrix_unit() {  // the system allows AMX to a process that requests it
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return granted;
}

// While one exists, the thread's tiles are 16 rows of 64 bytes. It restores the previous setting, on which other
// libraries rely.
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

// Calls body(first, live) for runs of 16 of so many numbers.
template <class Body>
void for_each_vector(int64_t count, int64_t threads, const Body& body) {
  constexpr int64_t run = 1 << 14;
  for_each(blocks_of(count, run), threads, [&](int64_t n) {
    for (int64_t at = n * run; at < std::min(count, (n + 1) * run); at += kLanes)
      body(at, std::min(kLanes, count - at));
  });
}

// ---- a block: 32 rows of the left operand times 32 packed columns of the right one

// Row r < 16 of step s begins at upper + r·row + s·step, row 16 + r at lower + …; a step is 32 numbers.
struct Left {
  const BFloat16 *upper, *lower;
  int64_t row, step;
};

struct alignas(64) Block {
  float sums[kEdge][kEdge];
  bool empty;  // without the matrix unit: the sums are zero, and not written yet
};

// As wide as the machine's registers; wider ones would be kept in memory.
#ifdef __AVX512F__
constexpr int64_t kRegister = 64, kTogether = 8, kHalves = 2;  // bytes; rows, and halves of columns, that share loads
#elif defined(__AVX__)
constexpr int64_t kRegister = 32, kTogether = 4, kHalves = 1;
#else
constexpr int64_t kRegister = 16, kTogether = 2, kHalves = 1;
#endif
constexpr int64_t kMoments = kEdge / kTogether;  // moments in a step at which something else can be done
typedef float RegisterFloats __attribute__((vector_size(kRegister)));
typedef uint32_t RegisterWords __attribute__((vector_size(kRegister)));

// sum += the products of 16 pairs of weights, a part of them, and the pair of inputs `both`.
inline __attribute__((always_inline)) void add_products(RegisterFloats& sum, RegisterWords pairs, uint32_t both) {
#ifdef HPCM_DOT_PRODUCTS
  const __m512bh inputs = bits_as<__m512bh>(_mm512_set1_epi32(static_cast<int>(both)));
  sum = bits_as<RegisterFloats>(_mm512_dpbf16_ps(bits_as<__m512>(sum), inputs, bits_as<__m512bh>(pairs)));
#else
  sum += bits_as<RegisterFloats>(pairs << 16) * bits_as<float>(both << 16);
  sum += bits_as<RegisterFloats>(pairs & 0xffff0000u) * bits_as<float>(both & 0xffff0000u);
#endif
}

template <class Meanwhile>
inline void add_vectors(Block& block, const Left& left, const BFloat16* right, int64_t steps, Meanwhile& meanwhile) {
  constexpr int64_t lanes = kRegister / 4, parts = kLanes / lanes, registers = kHalves * parts;
  for (int64_t first = 0; first < kEdge; first += kTogether) {
    const BFloat16* from = first < kLanes ? left.upper + first * left.row : left.lower + (first - kLanes) * left.row;
    for (int64_t half = 0; half < 2; half += kHalves) {
      RegisterFloats sums[kTogether][registers];
      float* to = &block.sums[first][half * kLanes];
#pragma GCC unroll 8
      for (int64_t r = 0; r < kTogether; ++r)
#pragma GCC unroll 4
        for (int64_t p = 0; p < registers; ++p) {
          if (block.empty) {
            sums[r][p] = RegisterFloats{};
          } else {
            std::memcpy(&sums[r][p], to + r * kEdge + p * lanes, kRegister);
          }
        }
      for (int64_t s = 0; s < steps; ++s) {
        const BFloat16* tile = right + s * kStep + half * kTile;
        if (half == 0) meanwhile(1);
        for (int64_t pair = 0; pair < kLanes; ++pair) {
#pragma GCC unroll 4
          for (int64_t p = 0; p < registers; ++p) {
            RegisterWords pairs;
            std::memcpy(&pairs, tile + p / parts * kTile + pair * kEdge + 2 * (p % parts) * lanes, kRegister);
#pragma GCC unroll 8
            for (int64_t r = 0; r < kTogether; ++r) {
              uint32_t both;
              std::memcpy(&both, from + r * left.row + s * left.step + 2 * pair, sizeof both);
              add_products(sums[r][p], pairs, both);
            }
          }
        }
      }
#pragma GCC unroll 8
      for (int64_t r = 0; r < kTogether; ++r)
#pragma GCC unroll 4
        for (int64_t p = 0; p < registers; ++p) std::memcpy(to + r * kEdge + p * lanes, &sums[r][p], kRegister);
    }
  }
  block.empty = false;
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
  block.empty = true;
}

// Calls meanwhile(n) while it computes; the n add up to steps · kMoments.
template <class Meanwhile>
inline void add(Block& block, const Left& left, const BFloat16* right, int64_t steps, Meanwhile& meanwhile) {
#ifdef HPCM_AMX
  if (matrix_unit()) {
    const int64_t stride = left.row * static_cast<int64_t>(sizeof(BFloat16));
    for (int64_t s = 0; s < steps; ++s) {
      meanwhile(kMoments);
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
  add_vectors(block, left, right, steps, meanwhile);
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

}  // namespace hpcm
