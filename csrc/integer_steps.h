// The latents of one coding step between planes (h×w×C in memory) and their packed form: piece by piece, each channel
// by channel, row-major over the cells (hpcm_codec/model/schedule.py).
#pragma once
#include <algorithm>
#include <cstdint>

namespace hpcm {

// Places (row + i·stride, column + j·stride) of the channels first .. last-1.
struct Piece {
  int64_t first, last, row, column, stride;
};

// Calls body(place in the packed form, place in a plane of `channels`, channel) for every latent of a step, in an order
// that reads planes along their channels.
template <class Body>
inline void for_step(const Piece* pieces, int64_t count, int64_t height, int64_t width, int64_t channels,
                     const Body& body) {
  int64_t start = 0;
  for (int64_t n = 0; n < count; ++n) {
    const Piece& piece = pieces[n];
    const int64_t rows = (height - piece.row + piece.stride - 1) / piece.stride;
    const int64_t columns = (width - piece.column + piece.stride - 1) / piece.stride, cells = rows * columns;
    for (int64_t cell = 0; cell < cells; ++cell) {
      const int64_t i = piece.row + cell / columns * piece.stride, j = piece.column + cell % columns * piece.stride;
      const int64_t place = (i * width + j) * channels;
      for (int64_t c = piece.first; c < piece.last; ++c) {
        body(start + (c - piece.first) * cells + cell, place + c, c);
      }
    }
    start += (piece.last - piece.first) * cells;
  }
}

// Table indexes and means of a step's latents; level_of(scale, channel) is the index of a scale.
template <class LevelOf>
inline void step_parameters(const Piece* pieces, int64_t count, const int16_t* params, const float* unit,
                            uint8_t* levels, int16_t* means, float* real, int64_t height, int64_t width,
                            int64_t channels, const LevelOf& level_of) {
  for_step(pieces, count, height, width, channels, [&](int64_t packed, int64_t place, int64_t c) {
    const int16_t* both = params + 2 * (place - c) + c;
    levels[packed] = level_of(both[0], c);
    means[packed] = both[channels];
    real[packed] = static_cast<float>(both[channels]) * unit[c];
  });
}

}  // namespace hpcm
