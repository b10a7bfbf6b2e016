// The decoder's half of the rANS coder, as docs/bitstream.md (section 7.3) says; the same symbols as
// hpcm_codec/entropy/rans_decoder.py gives without a compiler. No stream, damaged or forged, makes it access memory
// outside its buffers.
#pragma once
#include <algorithm>
#include <cstdint>

namespace hpcm {

constexpr int kMostDigits = 8;  // of four bits, of an escaped symbol: 32 bits

struct Stream {
  const uint32_t* words;
  int64_t count;
  int64_t position;
  uint64_t state;
  bool sound = true;  // false once a word was missing or an escape was longer than any that is written

  void refill() {
    if (state >= uint64_t{1} << 31) return;
    sound = sound && position < count;
    if (sound) state = state << 32 | words[position++];
  }

  uint32_t four_bits() {
    const uint32_t bits = state & 15;
    state >>= 4;
    refill();
    return bits;
  }

  // What follows an escape.
  int64_t escaped() {
    uint32_t digits = 0, read = 15;
    while (sound && read == 15 && digits <= kMostDigits) digits += read = four_bits();
    sound = sound && digits <= kMostDigits;
    int64_t value = 0;
    for (uint32_t place = 0; sound && place < digits; ++place) value |= static_cast<int64_t>(four_bits()) << 4 * place;
    return value;
  }

  // row: size cumulative frequencies, from 0 to 65536.
  int64_t symbol(const int32_t* row, int32_t size) {
    const int32_t low = state & 0xFFFF;
    const int32_t found = static_cast<int32_t>(std::upper_bound(row + 1, row + size - 1, low) - row) - 1;
    state = static_cast<uint64_t>(row[found + 1] - row[found]) * (state >> 16) + low - row[found];
    refill();
    if (found < size - 2) return found;
    const int64_t rest = escaped();
    return rest % 2 ? -(rest + 1) / 2 : rest / 2 + found;
  }
};

}  // namespace hpcm
