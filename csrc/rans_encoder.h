// The encoder's half of the rANS coder, as docs/bitstream.md (section 7.3) says: the bytes that compressai's gives.
#pragma once
#include <cstdint>
#include <vector>

namespace hpcm {

// Symbols are kept as intervals until the end, since a stream is written backwards.
struct Interval {
  uint16_t start, range;  // range 0: four raw bits, in start
};

struct Intervals {
  std::vector<Interval> kept;

  void raw(uint32_t bits) { kept.push_back({static_cast<uint16_t>(bits), 0}); }

  // symbol: less the table's offset; row: size cumulative frequencies, from 0 to 65536.
  void add(int64_t symbol, const int32_t* row, int32_t size) {
    const int64_t escape = size - 2;
    const bool inside = symbol >= 0 && symbol < escape;
    const int64_t found = inside ? symbol : escape;
    kept.push_back({static_cast<uint16_t>(row[found]), static_cast<uint16_t>(row[found + 1] - row[found])});
    if (inside) return;
    const uint32_t rest = static_cast<uint32_t>(symbol < 0 ? -2 * symbol - 1 : 2 * (symbol - escape));
    uint32_t digits = 0;
    while (digits < 8 && rest >> 4 * digits) ++digits;
    uint32_t left = digits;
    for (; left >= 15; left -= 15) raw(15);
    raw(left);
    for (uint32_t place = 0; place < digits; ++place) raw(rest >> 4 * place & 15);
  }
};

// The stream of the intervals, at the end of `words`; returns how many words it takes, at most one for each and two.
inline int64_t write_intervals(const Interval* kept, int64_t count, uint32_t* words, int64_t room) {
  uint64_t state = uint64_t{1} << 31;
  uint32_t* to = words + room;
  for (int64_t n = count - 1; n >= 0; --n) {
    const Interval interval = kept[n];
    if (interval.range == 0) {  // as a symbol of 1/16
      if (state >= uint64_t{1} << 59) {
        *--to = static_cast<uint32_t>(state);
        state >>= 32;
      }
      state = state << 4 | interval.start;
      continue;
    }
    if (state >= static_cast<uint64_t>(interval.range) << 47) {
      *--to = static_cast<uint32_t>(state);
      state >>= 32;
    }
    state = (state / interval.range << 16) + state % interval.range + interval.start;
  }
  *--to = static_cast<uint32_t>(state >> 32);
  *--to = static_cast<uint32_t>(state);
  return words + room - to;
}

}  // namespace hpcm
