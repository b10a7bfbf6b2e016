// Between pixels and patches: patches that overlap, taken out of an image and added up to one. Images are batch × 3 ×
// height × width in float32, patches batch × rows × columns × (3 × edge × edge) in bfloat16.
#pragma once
#include "matrix_product.h"

namespace hpcm {

struct Patches {
  int64_t batch, height, width;  // of the image
  int64_t rows, columns, edge, stride;
  int64_t first;   // the row and column of the image where the first of rows × columns patches begins, 0 or less
  int64_t beyond;  // rings of patches around these, which repeat the outermost ones
};

// Calls body(where the line's numbers are, plane of the image, row, first column, again) for every line of every patch;
// again: the same numbers were there before, for a patch beyond.
template <class Body>
void for_each_line(const Patches& p, int64_t threads, const Body& body) {
  for_each(p.batch * 3, threads, [&](int64_t n) {
    const int64_t b = n / 3, colour = n % 3;
    for (int64_t i = -p.beyond; i < p.rows + p.beyond; ++i)
      for (int64_t u = 0; u < p.edge; ++u)
        for (int64_t j = -p.beyond; j < p.columns + p.beyond; ++j) {
          const int64_t row = std::clamp<int64_t>(i, 0, p.rows - 1), column = std::clamp<int64_t>(j, 0, p.columns - 1);
          const int64_t first_row = row == 0 ? -p.beyond : row, first_column = column == 0 ? -p.beyond : column;
          const bool again = i > first_row || j > first_column;
          body(((((b * p.rows + row) * p.columns + column) * 3 + colour) * p.edge + u) * p.edge, n,
               p.first + i * p.stride + u, p.first + j * p.stride, again);
        }
  });
}

// Patches of an image; outside of it they get its border repeated, or zeros. Those beyond are added to the ones that
// they repeat, in bfloat16.
inline void take_patches(const float* image, BFloat16* patches, const Patches& p, bool repeat, int64_t threads) {
  for_each_line(p, threads, [&](int64_t at, int64_t plane, int64_t y, int64_t x, bool again) {
    BFloat16* to = patches + at;
    if (!repeat && (y < 0 || y >= p.height)) {
      if (!again) std::memset(to, 0, static_cast<size_t>(p.edge) * sizeof(BFloat16));
      return;
    }
    const float* line = image + (plane * p.height + std::clamp<int64_t>(y, 0, p.height - 1)) * p.width;
    for (int64_t v = 0; v < p.edge; v += kLanes) {
      const int64_t live = std::min(kLanes, p.edge - v), from = x + v;
      Floats values{};
      if (from >= 0 && from + live <= p.width) {
        values = read(line + from, live);
      } else {
        for (int64_t n = 0; n < live; ++n) {
          const int64_t column = std::clamp<int64_t>(from + n, 0, p.width - 1);
          values[n] = repeat || column == from + n ? line[column] : 0.0f;
        }
      }
      write(again ? values + read(to + v, live) : values, to + v, live);
    }
  });
}

// The image that patches add up to, and a number for each colour.
inline void add_patches(const BFloat16* patches, const float* bias, float* image, const Patches& p, int64_t threads) {
  for (int64_t n = 0; n < p.batch * 3; ++n)
    std::fill_n(image + n * p.height * p.width, p.height * p.width, bias[n % 3]);
  for_each_line(p, threads, [&](int64_t at, int64_t plane, int64_t y, int64_t x, bool) {
    if (y < 0 || y >= p.height) return;
    float* line = image + (plane * p.height + y) * p.width;
    for (int64_t v = 0; v < p.edge; v += kLanes) {
      const int64_t live = std::min(kLanes, p.edge - v), from = x + v;
      const Floats values = read(patches + at + v, live);
      if (from >= 0 && from + live <= p.width) {
        write(read(line + from, live) + values, line + from, live);
      } else {
        for (int64_t n = std::max<int64_t>(0, -from); n < std::min(live, p.width - from); ++n)
          line[from + n] += values[n];
      }
    }
  });
}

}  // namespace hpcm
