// The symbol check of docs/bitstream.md: CRC-16 with the polynomial 0x1021, eight bytes at a time.
#pragma once
#include <cstdint>
#include <cstring>

namespace hpcm {

struct CheckTables {
  uint16_t of[8][256];  // of[n][b]: the check of byte b with n zero bytes after it

  CheckTables() {
    for (int byte = 0; byte < 256; ++byte) {
      uint32_t check = static_cast<uint32_t>(byte) << 8;
      for (int bit = 0; bit < 8; ++bit) check = check & 0x8000 ? check << 1 ^ 0x1021 : check << 1;
      of[0][byte] = static_cast<uint16_t>(check);
    }
    for (int zeros = 1; zeros < 8; ++zeros)
      for (int byte = 0; byte < 256; ++byte) {
        const uint16_t before = of[zeros - 1][byte];
        of[zeros][byte] = static_cast<uint16_t>(before << 8 ^ of[0][before >> 8]);
      }
  }
};

inline uint16_t symbol_check(const uint8_t* bytes, int64_t count, uint16_t check) {
  static const CheckTables tables;
  const auto& of = tables.of;
  int64_t n = 0;
  for (; n + 8 <= count; n += 8) {
    const uint8_t* b = bytes + n;
    check = of[7][b[0] ^ check >> 8] ^ of[6][b[1] ^ (check & 255)] ^ of[5][b[2]] ^ of[4][b[3]] ^ of[3][b[4]] ^
            of[2][b[5]] ^ of[1][b[6]] ^ of[0][b[7]];
  }
  for (; n < count; ++n) check = static_cast<uint16_t>(check << 8 ^ of[0][check >> 8 ^ bytes[n]]);
  return check;
}

}  // namespace hpcm
