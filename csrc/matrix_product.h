// Matrix products in bfloat16 for training on the processor: y = Σ x·Wᵀ over one or two inputs, and the gradient of W;
// and how weights and activations are packed for them.
#pragma once
#include "ahead.h"
#include "matrix_block.h"

namespace hpcm {

constexpr int64_t kRows = 64;    // rows whose inputs stay in the cache while the weights pass
constexpr int64_t kChunk = 256;  // tokens that a gradient of weights packs at a time

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
      const Floats even = first ? read(from, columns) : Floats{},
                   odd = second ? read(from + stride, columns) : Floats{};
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

// What is fetched while a block is computed: the memory that its results go to, and a part of what is read later.
class Fetching {
 public:
  template <class Done>
  Fetching(const Done& done, const Place& place, int64_t steps, Ahead& later) : later_(later) {
    done.announce(place, now_);
    lines_ = blocks_of(now_.lines(), steps * kMoments);
  }
  void operator()(int64_t moments) {
    now_.fetch(moments * lines_);
    later_.fetch(moments);
  }

 private:
  Ahead now_;
  Ahead& later_;
  int64_t lines_;  // of now_, at each moment
};

// One input of a product: tokens × width, and its weights, packed.
struct Input {
  const BFloat16* x;
  int64_t width;
  const BFloat16* weights;
};

// Rows first … first+rows-1 (at most kRows) of Σ x·Wᵀ: done(place, block) for each block of results. Fetches a
// part of `later`.
template <int inputs, class Done>
void multiply_rows(const Input (&input)[inputs], int64_t outputs, int64_t first, int64_t rows, const Done& done,
                   Ahead& later) {
  static thread_local Scratch<BFloat16> padded[inputs];
  Left left[inputs];
  int64_t all_steps = 0;
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
    all_steps += blocks_of(width, kEdge);
  }
  Block block;
  for (int64_t column = 0; column < outputs; column += kEdge) {
    for (int64_t r = 0; r < rows; r += kEdge) {
      const Place place = {first + r, std::min(kEdge, rows - r), column, std::min(kEdge, outputs - column)};
      Fetching fetching(done, place, all_steps, later);
      begin(block);
      for (int n = 0; n < inputs; ++n) {
        const int64_t steps = blocks_of(input[n].width, kEdge);
        Left part = left[n];
        part.upper += r * part.row;
        part.lower += r * part.row;
        add(block, part, input[n].weights + column / kEdge * steps * kStep, steps, fetching);
      }
      finish(block);
      done(place, block);
    }
  }
}

// Puts blocks of a gradient of weights where they belong.
struct AddGradient {
  float* gradient;
  int64_t stride;
  bool add;

  // With the matrix unit a block takes less time than fetching does.
  void announce(const Place& place, Ahead& ahead) const {  // the memory that a block goes to
    if (add && !matrix_unit())
      ahead.add(gradient + place.row * stride + place.column, place.columns, place.rows, stride);
  }
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

// gᵀ·x (outputs × inputs, float32, rows `stride` apart): written, or added. Fetches a part of `later`; where there
// is none, its own next tokens.
inline void weight_gradient(const BFloat16* g, int64_t outputs, const BFloat16* x, int64_t inputs, int64_t tokens,
                            float* gradient, int64_t stride, bool added, int64_t threads, Ahead* later = nullptr) {
  static thread_local Scratch<BFloat16> packed_x;
  const int64_t panels = blocks_of(inputs, kEdge);
  for (int64_t start = 0; start < tokens; start += kChunk) {
    const bool add_to = added || start > 0;
    const int64_t count = std::min(kChunk, tokens - start), steps = blocks_of(count, kEdge);
    Ahead own(threads);
    if (!later) {
      const int64_t next = start + count, soon = std::min(kChunk, tokens - next);
      own.add(x + next * inputs, soon * inputs);
      own.add(g + next * outputs, soon * outputs);
    }
    BFloat16* right = packed_x.get(panels * steps * kStep);
    for_each(steps, threads, [&](int64_t s) {  // rows in order
      const int64_t row = start + s * kEdge;
      for (int64_t column = 0; column < panels * kEdge; column += kLanes) {
        BFloat16* to = right + column / kEdge * steps * kStep + s * kStep + column % kEdge * kEdge;
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
        const int64_t output = n * kEdge, input = panel * kEdge;
        const Place place = {output, std::min(kEdge, outputs - output), input, std::min(kEdge, inputs - input)};
        Fetching fetching(done, place, steps, later ? *later : own);
        begin(block);
        add(block, operand, right + panel * steps * kStep, steps, fetching);
        finish(block);
        done(place, block);
      }
    });
  }
}

}  // namespace hpcm
