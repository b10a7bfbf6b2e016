// Weighted sums over channels, of one plane, of two side by side, or of small windows: one matrix product each. The
// inputs of an output lie in a few contiguous runs of memory, so nothing is gathered first.
#pragma once
#include "integer.h"
#include "threads.h"

namespace hpcm {

// 2·pairs neighbours at x + i · row + j · column are inputs of the output at (i, j).
struct Segment {
  const int16_t* x;
  int64_t pairs, row, column;
};

constexpr int kSegments = 16;

struct Linear {
  Segment segments[kSegments];
  int64_t count, pairs;   // segments, and the pairs of all of them
  const int16_t* packed;  // as `pack` makes it
  const int32_t* offset;  // bias and rounding of the shift, and the shift, padded to blocks
  const int32_t* shift;
  const int16_t* factor;  // N, or null
  const int16_t* added;   // h×w×N, or cell×cell×N which is repeated, or null
  int64_t cell;           // 0: as large as the plane
  int16_t* y;             // h×w×N, or with two parts 2h×2w×N/4
  int64_t width, outputs, parts, leaky;
  int32_t limit;
};

// numbers: for each segment its address, inputs, and row and column strides.
inline void set_segments(Linear& layer, const int64_t* numbers) {
  for (int64_t n = 0; n < layer.count; ++n, numbers += 4) {
    layer.segments[n] = {reinterpret_cast<const int16_t*>(numbers[0]), numbers[1] / 2, numbers[2], numbers[3]};
    layer.pairs += numbers[1] / 2;
  }
}

inline Ints finish(Ints value, const Linear& layer, const int16_t* added, int64_t output, int64_t live) {
  value = clamped(value >> load<Ints>(layer.shift + output), layer.limit);
  if (layer.leaky) value = value < 0 ? (value * 328 + (1 << 14)) >> 15 : value;
  if (layer.factor) value = (value * widen(load_part<Shorts>(layer.factor + output, live)) + (1 << 11)) >> 12;
  if (added) value += widen(load_part<Shorts>(added + output, live));
  return clamped(value, layer.limit);
}

// What is added to the outputs at place t of the plane, in row-major order.
inline const int16_t* added_at(const Linear& layer, int64_t t) {
  if (!layer.added || !layer.cell) return layer.added ? layer.added + t * layer.outputs : nullptr;
  const int64_t place = t / layer.width % layer.cell * layer.cell + t % layer.width % layer.cell;
  return layer.added + place * layer.outputs;
}

// Outputs of `rows` places from column j of row i on.
template <int rows, int blocks>
void linear_tile(const Linear& layer, int64_t i, int64_t j, int64_t block) {
  Ints sums[rows][blocks * kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < blocks * kVectors; ++v) sums[r][v] = load<Ints>(layer.offset + block * kBlock + v * kWidth);
  }
  const int16_t* packed = layer.packed + block * layer.pairs * 2 * kBlock;
  for (int64_t s = 0; s < layer.count; ++s) {
    const Segment& from = layer.segments[s];
    products<rows, blocks>(from.x + i * from.row + j * from.column, from.column, packed, from.pairs, layer.pairs, sums);
    packed += from.pairs * 2 * kBlock;
  }
  const int64_t part = layer.outputs / layer.parts;
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    const int16_t* added = added_at(layer, i * layer.width + j + r);
#pragma GCC unroll 8
    for (int v = 0; v < blocks * kVectors; ++v) {
      const int64_t output = block * kBlock + v * kWidth, live = layer.outputs - output;
      if (live <= 0) continue;
      const int64_t half = layer.parts == 1 ? 0 : output / part;
      int16_t* y = layer.y + ((layer.parts * i + half) * layer.width + j + r) * part + output - half * part;
      store_part(__builtin_convertvector(finish(sums[r][v], layer, added, output, live), Shorts), y, live);
    }
  }
}

template <int rows>
void linear_rows(const Linear& layer, int64_t i, int64_t& j, int64_t end, int64_t block, int64_t blocks) {
  for (; j + rows <= end; j += rows) {
    if (blocks == kBlocks) {
      linear_tile<rows, kBlocks>(layer, i, j, block);
    } else {
      for (int64_t n = 0; n < blocks; ++n) linear_tile<rows, 1>(layer, i, j, block + n);
    }
  }
  if constexpr (rows > 1) linear_rows<rows / 2>(layer, i, j, end, block, blocks);
}

inline void linear(const Linear& layer, int64_t height, int64_t threads) {
  constexpr int64_t chunk = 64;  // places whose inputs stay in the cache while the panels of weights pass
  const int64_t blocks = (layer.outputs + kBlock - 1) / kBlock, panels = (blocks + kBlocks - 1) / kBlocks;
  int64_t rows = height, columns = layer.width;
  bool plain = layer.parts == 1;  // places of the whole plane follow each other at one distance
  for (int64_t s = 0; s < layer.count; ++s) {
    plain = plain && layer.segments[s].row == layer.width * layer.segments[s].column;
  }
  if (plain) {
    columns *= rows;
    rows = 1;
  }
  const int64_t across = (columns + chunk - 1) / chunk;
  for_each(rows * across * panels, height * layer.width * layer.pairs * 2 * blocks * kBlock, threads, [&](int64_t n) {
    int64_t j = n / panels % across * chunk;
    const int64_t i = n / panels / across, block = n % panels * kBlocks;
    linear_rows<kRows>(layer, i, j, std::min(columns, j + chunk), block, std::min<int64_t>(kBlocks, blocks - block));
  });
}

}  // namespace hpcm
