"""The symbol check: a CRC-16 over all symbols of a tile, by which a decoder knows that it decoded what the encoder coded
(docs/bitstream.md). In C++ (csrc/symbol_check.h) where that is compiled, else by the standard library; both give the same number."""

from __future__ import annotations

import binascii
import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.ops import build

SYMBOL_CHECK_START = 0xFFFF


def update_symbol_check(check: int, symbols: NDArray[np.signedinteger[Any]]) -> int:
    """Continue a tile's symbol check (first call: SYMBOL_CHECK_START) over integer symbols of any shape, in C order.

    Returns 0 .. 65535. Raises ValueError when a symbol does not fit int32.
    """
    if symbols.size and not -(2**31) <= int(symbols.min()) <= int(symbols.max()) < 2**31:
        raise ValueError("a symbol does not fit 32 bits")
    stored = np.ascontiguousarray(symbols, dtype="<i4")
    if not build.use_compiled("integer"):
        return binascii.crc_hqx(stored.tobytes(), check)
    continued = ctypes.c_uint16(check)
    begin = ctypes.c_void_p(stored.ctypes.data)
    build.function("integer", "hpcm_symbol_check")(begin, ctypes.c_int64(stored.nbytes), ctypes.byref(continued))
    return continued.value
