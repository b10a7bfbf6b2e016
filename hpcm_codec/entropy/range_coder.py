"""compressai's rANS range coder behind two small classes: symbols and tables, no networks.

`import compressai` takes seconds (it imports torchvision, pandas…); its coder is one extension module, which is loaded
here by itself. Symbols outside a table are escaped and coded in full; it hangs on ones of 2^28, so none above 2^24 is written.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.entropy.distributions import SymbolTables
from hpcm_codec.errors import HpcmError

LARGEST_SYMBOL = 2**24  # of a residual; 8-bit pictures stay far below, and the coder's escape code far above
# A damaged stream may ask for more than it holds; zeros after its end keep the coder inside the buffer. One symbol
# takes at most 2 bytes, an escape 4 bits and eight 4-bit digits more.
_SPARE_BYTES_PER_SYMBOL = 8
_SPARE_BYTES = 64
# The coder reserves 4 bytes per symbol for its output, too little for its 8-byte end state when there are only a few.
_FEWEST_SYMBOLS = 8


@lru_cache(maxsize=1)
def _ans() -> ModuleType:
    """compressai's extension module, found without importing the package around it."""
    package = importlib.util.find_spec("compressai")
    for folder in (package.submodule_search_locations or []) if package else []:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(folder) / f"ans{suffix}"
            if path.is_file():
                spec = importlib.util.spec_from_file_location("ans", path)
                assert spec is not None and spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    raise HpcmError("the range coder is missing", advice="install it with: pip install --no-deps compressai")


class CoderTables:
    """Symbol tables in the form the coder takes: made once per checkpoint, used by every stream."""

    def __init__(self, tables: SymbolTables) -> None:
        sizes = tables.sizes.tolist()
        self.cumulative = [row[:size] for row, size in zip(tables.cumulative.tolist(), sizes, strict=True)]
        self.sizes = sizes
        self.offsets = tables.offsets.tolist()


class RangeEncoder:
    """Collects symbols with their table indexes; `finish` gives the stream."""

    def __init__(self, tables: CoderTables) -> None:
        self._tables = tables
        self._encoder = _ans().BufferedRansEncoder()
        self._count = 0

    def encode(self, symbols: NDArray[np.int32], indexes: NDArray[np.int32]) -> None:
        """Append symbols (1-D, magnitudes up to 2^24) under the tables of those indexes."""
        if symbols.size and int(np.abs(symbols.astype(np.int64)).max()) > LARGEST_SYMBOL:
            raise HpcmError("a latent is too large to be coded", advice="the model does not fit this picture")
        tables = self._tables
        self._count += symbols.size
        self._encoder.encode_with_indexes(
            symbols.tolist(), indexes.tolist(), tables.cumulative, tables.sizes, tables.offsets
        )

    def finish(self) -> bytes:
        """The coded stream. Very short ones end in a few zero symbols that no decoder asks for."""
        if missing := max(0, _FEWEST_SYMBOLS - self._count):
            self.encode(np.zeros(missing, np.int32), np.zeros(missing, np.int32))
        return self._encoder.flush()


class RangeDecoder:
    """Reads back what a RangeEncoder wrote, in the same order and under the same indexes.

    A stream that was not written so gives wrong symbols, never an error or a read past its end: the caller's symbol
    check finds out.

    stream: the coded bytes; most: how many symbols will be asked for in all, at most.
    """

    def __init__(self, tables: CoderTables, stream: bytes, most: int) -> None:
        self._tables = tables
        self._decoder = _ans().RansDecoder()
        self._decoder.set_stream(stream + bytes(_SPARE_BYTES + _SPARE_BYTES_PER_SYMBOL * most))

    def decode(self, indexes: NDArray[np.int32]) -> NDArray[np.int32]:
        """The next symbols (1-D, int32), one for each table index."""
        tables = self._tables
        symbols = self._decoder.decode_stream(indexes.tolist(), tables.cumulative, tables.sizes, tables.offsets)
        # Larger ones are never written: garbage of a damaged stream, which must not overflow what is computed with it.
        return np.array(symbols, dtype=np.int64).clip(-LARGEST_SYMBOL, LARGEST_SYMBOL).astype(np.int32)
