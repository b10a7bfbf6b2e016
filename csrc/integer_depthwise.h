// Depthwise convolutions of 3×3 and 5×5.
#pragma once
#include "integer.h"
#include "threads.h"

namespace hpcm {

struct Depthwise {
  const int16_t *x, *kernel;
  const int32_t *bias, *shift;
  int16_t* y;
  int64_t height, width, channels;
  int32_t limit;
};

// A run of `columns` outputs of one row from channel c on, for one vector of channels: every input is loaded once and
// multiplied by the kernel's columns in registers. whole: all channels of the vector are there.
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
    store_part(__builtin_convertvector(clamped(sums[n] >> shift, layer.limit), Shorts), y + n * layer.channels, live);
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

}  // namespace hpcm
