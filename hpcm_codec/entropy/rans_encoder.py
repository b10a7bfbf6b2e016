"""compressai's rANS encoder and the tables of both halves of the coder: symbols and tables, no networks.

`import compressai` takes seconds (it imports torchvision, pandas…). Its coder is one extension module, which is loaded here without the
package. Symbols outside a table are escaped and coded in full. The coder hangs on symbols of 2^28, so none above 2^24 is written.
`rans_decoder` decodes what is written here.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.entropy.sigmas import PRECISION_BITS
from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.ops import build

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


class Tables(Protocol):
    """Symbol tables as in a checkpoint, arrays or tensors. cumulative: rows in sequence, or padded; sizes, offsets: one for each row."""

    @property
    def cumulative(self) -> Any: ...

    @property
    def sizes(self) -> Any: ...

    @property
    def offsets(self) -> Any: ...


class CoderTables:
    """Symbol tables in the forms the coder takes: made once per checkpoint, used by every stream.

    packed, starts (where each row begins in it), packed_sizes, packed_offsets: arrays; cumulative, sizes, offsets: the same as lists, a
    row for each table. Raises FileError for rows that are no tables.
    """

    def __init__(self, tables: Tables) -> None:
        rows, sizes = np.asarray(tables.cumulative, np.int32), np.asarray(tables.sizes, np.int32)
        self.packed_sizes, self.packed_offsets = sizes, np.asarray(tables.offsets, np.int32)
        if rows.ndim == 2:
            rows = rows[np.arange(rows.shape[1]) < sizes[:, None]]
        self.packed: NDArray[np.int32] = np.ascontiguousarray(rows)
        self.starts = np.cumsum([0, *sizes[:-1].tolist()], dtype=np.int64)
        self.sizes, self.offsets = sizes.tolist(), self.packed_offsets.tolist()
        whole = len(self.offsets) == len(sizes) and sizes.sum() == len(self.packed)
        if not whole or not all(_is_table(row) for row in np.split(self.packed, self.starts[1:])):
            raise FileError("the rANS coder's tables are damaged", advice="fetch the checkpoint again")

    @cached_property
    def cumulative(self) -> list[list[int]]:
        return [row.tolist() for row in np.split(self.packed, self.starts[1:])]


def _is_table(row: NDArray[np.int32]) -> bool:
    """Whether a row has at least one symbol and the escape, and increases from 0 to 2^16."""
    return len(row) >= 3 and row[0] == 0 and row[-1] == 1 << PRECISION_BITS and bool((np.diff(row) > 0).all())


def largest_magnitude(symbols: NDArray[np.signedinteger[Any]]) -> int:
    """The largest magnitude of symbols of any shape; 0 if there are none."""
    return max(-int(symbols.min()), int(symbols.max())) if symbols.size else 0


class RansEncoder:
    """Collects symbols with their table indexes; `finish` gives the stream: in C++ (csrc/rans_encoder.h) where that can be compiled, or
    else by compressai's coder. Both give the same bytes."""

    def __init__(self, tables: CoderTables) -> None:
        self._tables = tables
        self._parts: list[tuple[NDArray[np.int32], NDArray[np.uint8]]] = []

    def encode(self, symbols: NDArray[np.signedinteger[Any]], indexes: NDArray[np.integer[Any]]) -> None:
        """Append symbols (1-D, magnitudes up to 2^24) under the tables of those indexes; raises HpcmError for larger ones."""
        if largest_magnitude(symbols) > LARGEST_SYMBOL:
            raise HpcmError(
                "a latent is too large to be coded, or not a number", advice="the model does not fit this picture"
            )
        if indexes.size and not 0 <= int(indexes.min()) <= int(indexes.max()) < len(self._tables.sizes):
            raise ValueError("there is no table of such an index")
        self._parts.append((symbols.astype(np.int32), indexes.astype(np.uint8)))

    def finish(self) -> bytes:
        """The coded stream. Very short ones end in a few zero symbols that no decoder reads."""
        if missing := max(0, _FEWEST_SYMBOLS - sum(symbols.size for symbols, _ in self._parts)):
            self.encode(np.zeros(missing, np.int32), np.zeros(missing, np.uint8))
        symbols, indexes = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        write = self._compiled if build.use_compiled("integer") else self._by_compressai
        return write(symbols, indexes)

    def _compiled(self, symbols: NDArray[np.int32], indexes: NDArray[np.uint8]) -> bytes:
        tables = self._tables
        place = np.array([symbols.size, 0], np.int64)
        words = np.empty(
            12 * symbols.size + 2, np.uint32
        )  # an escaped symbol takes its interval and up to ten times four bits
        build.function("integer", "hpcm_rans_encode")(
            *(pointer(symbols), pointer(indexes), ctypes.c_int64(symbols.size)),
            *(pointer(part) for part in (tables.packed, tables.starts, tables.packed_sizes, tables.packed_offsets)),
            *(pointer(words), ctypes.c_int64(words.size), pointer(place)),
        )
        return words[words.size - int(place[1]) :].astype("<u4").tobytes()

    def _by_compressai(self, symbols: NDArray[np.int32], indexes: NDArray[np.uint8]) -> bytes:
        tables = self._tables
        encoder = _ans().BufferedRansEncoder()
        encoder.encode_with_indexes(symbols.tolist(), indexes.tolist(), tables.cumulative, tables.sizes, tables.offsets)
        stream: bytes = encoder.flush()
        return stream


def pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    """Where a contiguous array begins; it must outlive the call."""
    return ctypes.c_void_p(array.ctypes.data)
