"""The symbol check: a CRC-16 over all symbols of a tile, by which a decoder knows that it decoded what the encoder coded
(docs/bitstream.md)."""

from __future__ import annotations

import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

SYMBOL_CHECK_START = 0xFFFF


def update_symbol_check(check: int, symbols: NDArray[np.signedinteger[Any]]) -> int:
    """Continue a tile's symbol check (first call: SYMBOL_CHECK_START) over integer symbols of any shape, in C order.

    Returns 0 .. 65535. Raises ValueError when a symbol does not fit int32.
    """
    if symbols.size and not -(2**31) <= int(symbols.min()) <= int(symbols.max()) < 2**31:
        raise ValueError("a symbol does not fit 32 bits")
    return binascii.crc_hqx(np.ascontiguousarray(symbols, dtype="<i4").tobytes(), check)
