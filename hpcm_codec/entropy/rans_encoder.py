"""compressai's rANS encoder and the tables of both halves of the coder: symbols and tables, no networks.

`import compressai` takes seconds (it imports torchvision, pandas…); its coder is one extension module, which is loaded
here by itself. Symbols outside a table are escaped and coded in full; it hangs on ones of 2^28, so none above 2^24 is written.
What it writes is read by `rans_decoder`.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.entropy.distributions import PRECISION_BITS, SymbolTables
from hpcm_codec.errors import FileError, HpcmError

LARGEST_SYMBOL = 2**24  # of a residual; 8-bit pictures stay far below, and the coder's escape code far above
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
    raise HpcmError("the rANS coder is missing", advice="install it with: pip install --no-deps compressai")


class CoderTables:
    """Symbol tables in the forms the coder takes: made once per checkpoint, used by every stream.

    cumulative, sizes, offsets: as lists, a row for each table; packed, starts (where each row begins in it), packed_sizes and
    packed_offsets: the same as arrays. Raises FileError for rows that are no tables.
    """

    def __init__(self, tables: SymbolTables) -> None:
        sizes = tables.sizes.tolist()
        self.cumulative = [row[:size] for row, size in zip(tables.cumulative.tolist(), sizes, strict=True)]
        self.sizes = sizes
        self.offsets = tables.offsets.tolist()
        if len(self.offsets) != len(sizes) or not all(_is_table(row) for row in self.cumulative):
            raise FileError("the rANS coder's tables are damaged", advice="fetch the checkpoint again")
        self.packed = np.concatenate([np.array(row, np.int32) for row in self.cumulative])
        self.packed_sizes, self.packed_offsets = np.array(sizes, np.int32), np.array(self.offsets, np.int32)
        self.starts = np.cumsum([0, *sizes[:-1]], dtype=np.int64)


def _is_table(row: list[int]) -> bool:
    """Whether a row has at least one symbol and the escape, and rises from 0 to 2^16."""
    rises = all(low < high for low, high in pairwise(row))
    return len(row) >= 3 and row[0] == 0 and row[-1] == 1 << PRECISION_BITS and rises


def largest_magnitude(symbols: NDArray[np.signedinteger[Any]]) -> int:
    """Of symbols of any shape; 0 of none."""
    return max(-int(symbols.min()), int(symbols.max())) if symbols.size else 0


class RansEncoder:
    """Collects symbols with their table indexes; `finish` gives the stream."""

    def __init__(self, tables: CoderTables) -> None:
        self._tables = tables
        self._encoder = _ans().BufferedRansEncoder()
        self._count = 0

    def encode(self, symbols: NDArray[np.signedinteger[Any]], indexes: NDArray[np.integer[Any]]) -> None:
        """Append symbols (1-D, magnitudes up to 2^24) under the tables of those indexes; raises HpcmError for larger ones."""
        if largest_magnitude(symbols) > LARGEST_SYMBOL:
            raise HpcmError(
                "a latent is too large to be coded, or not a number", advice="the model does not fit this picture"
            )
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
