"""The golden files: small .hpcm files that came with the program, and the symbols that every machine must read from them.

`hpcm doctor --selftest` decodes them on the user's own machine, tests do so with other numbers of threads, memory formats and operators.
golden/index.json names the checkpoint they were made with and, for each file, the SHA-256 of its symbols (`Codec.symbol_digest`) and of
the encoder's picture. tools/make_golden.py makes them anew when the shipped weights change.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpcm_codec.errors import FileError, HpcmError

if TYPE_CHECKING:
    from hpcm_codec.codec import Codec

GOLDEN_FOLDER = Path(__file__).resolve().parent / "golden"
INDEX_NAME = "index.json"


@dataclass(frozen=True)
class GoldenFile:
    """name: of the .hpcm file; data: its bytes; symbols: SHA-256 over its symbols, hexadecimal."""

    name: str
    data: bytes
    symbols: str


@dataclass(frozen=True)
class SelfTest:
    """files: how many golden files were decoded; failures: a sentence each; seconds: the time it took."""

    files: int
    failures: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return self.files > 0 and not self.failures


def golden_files(folder: Path = GOLDEN_FOLDER) -> Iterator[GoldenFile]:
    """The golden files, by name; raises FileError when they are missing or incomplete."""
    try:
        index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        for name, symbols in sorted(index["files"].items()):
            yield GoldenFile(name, (folder / name).read_bytes(), symbols)
    except (OSError, ValueError, KeyError) as error:
        raise FileError(
            f"the golden files cannot be read ({error})", file=folder, advice="install hpcm-codec again"
        ) from error


def run_selftest(codec: Codec, folder: Path = GOLDEN_FOLDER) -> SelfTest:
    """Decode every golden file and compare its symbols; failures are returned, not raised."""
    start = time.perf_counter()
    count, failures = 0, []
    for golden in golden_files(folder):
        count += 1
        try:
            found = codec.symbol_digest(golden.data)
        except HpcmError as error:
            failures.append(f"{golden.name}: {error}")
            continue
        if found != golden.symbols:
            failures.append(f"{golden.name}: other symbols than on the machine that made it")
    return SelfTest(count, tuple(failures), round(time.perf_counter() - start, 2))
