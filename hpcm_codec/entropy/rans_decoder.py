"""The rANS decoder (docs/bitstream.md, section 7.3), which is also safe with damaged and forged streams.

compressai's own decoder does not check where a stream ends: if all bits are ones, it reads several times the stream's length beyond the
end. So streams are decoded here, in C++ (csrc/rans_decoder.h) where that can be compiled, else in Python; both give the same symbols.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.entropy.rans_encoder import LARGEST_SYMBOL, CoderTables, pointer
from hpcm_codec.ops import build

WORD_BYTES = 4
REFILL_BELOW = 1 << 31  # the state never stays below this
MOST_DIGITS = 8  # of four bits, of an escaped symbol: 32 bits


class RansDecoder:
    """Decodes what a RansEncoder wrote, in the same order and with the same indexes.

    Any other stream gives wrong symbols, which the caller's symbol check detects; never an error or a read past its end. From the first
    symbol on that cannot be read at all, symbols are 0.
    """

    def __init__(self, tables: CoderTables, stream: bytes) -> None:
        self._tables = tables
        padded = stream + bytes(-len(stream) % WORD_BYTES)
        self._words = np.frombuffer(padded, "<u4").astype(np.uint32)
        self._position = 2
        self._sound = len(self._words) >= self._position
        self._state = int.from_bytes(padded[: 2 * WORD_BYTES], "little")

    def decode(self, indexes: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """The next symbols (1-D, int32, magnitudes up to 2^24), one for each table index."""
        symbols = np.zeros(len(indexes), np.int32)
        if self._sound and len(indexes):
            if not 0 <= int(indexes.min()) <= int(indexes.max()) < len(self._tables.sizes):
                raise ValueError("there is no table of such an index")
            read = self._compiled if build.use_compiled("integer") else self._interpreted
            self._sound = read(np.ascontiguousarray(indexes, np.int32), symbols) == len(indexes)
        return symbols

    def _compiled(self, indexes: NDArray[np.int32], symbols: NDArray[np.int32]) -> int:
        """Fill `symbols`; returns how many could be read."""
        tables = self._tables
        place = np.array([self._state, self._position, 0], np.uint64)
        build.function("integer", "hpcm_rans_decode")(
            *(pointer(self._words), ctypes.c_int64(len(self._words)), pointer(place)),
            *(pointer(indexes), ctypes.c_int64(len(indexes))),
            *(pointer(part) for part in (tables.packed, tables.starts, tables.packed_sizes, tables.packed_offsets)),
            *(ctypes.c_int64(LARGEST_SYMBOL), pointer(symbols)),
        )
        self._state, self._position, read = place.tolist()
        return int(read)

    def _interpreted(self, indexes: NDArray[np.int32], symbols: NDArray[np.int32]) -> int:
        """The same in Python."""
        rows, offsets = self._tables.cumulative, self._tables.offsets
        for place, table in enumerate(indexes.tolist()):
            row = rows[table]
            low = self._state & 0xFFFF
            found = bisect_right(row, low, 1, len(row) - 1) - 1
            self._state = (row[found + 1] - row[found]) * (self._state >> 16) + low - row[found]
            try:
                if self._state < REFILL_BELOW:
                    self._refill()
                symbol = found if found < len(row) - 2 else self._escaped(found)
            except EndOfStream:
                return place
            symbols[place] = min(LARGEST_SYMBOL, max(-LARGEST_SYMBOL, symbol + offsets[table]))
        return len(indexes)

    def _refill(self) -> None:
        if self._position == len(self._words):
            raise EndOfStream
        self._state = self._state << 32 | int(self._words[self._position])
        self._position += 1

    def _four_bits(self) -> int:
        bits = self._state & 15
        self._state >>= 4
        if self._state < REFILL_BELOW:
            self._refill()
        return bits

    def _escaped(self, escape: int) -> int:
        """A symbol that is not in the table, from the four-bit digits that follow its escape."""
        digits, read = 0, 15
        while read == 15 and digits <= MOST_DIGITS:
            read = self._four_bits()
            digits += read
        if digits > MOST_DIGITS:
            raise EndOfStream
        rest = sum(self._four_bits() << (4 * place) for place in range(digits))
        return -(rest + 1) // 2 if rest % 2 else rest // 2 + escape


class EndOfStream(Exception):
    """A symbol needs more bits than the stream has, or is longer than any that is written."""
