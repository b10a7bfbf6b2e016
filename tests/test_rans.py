"""Symbols into bytes and back, whatever their size, and no damage that could crash the process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcm_codec.entropy.distributions import SIGMA_COUNT, SymbolTables, build_tables
from hpcm_codec.entropy.rans_decoder import RansDecoder
from hpcm_codec.entropy.rans_encoder import LARGEST_SYMBOL, CoderTables, RansEncoder
from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.ops import build

TABLES = CoderTables(build_tables())


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-LARGEST_SYMBOL, LARGEST_SYMBOL), st.integers(0, SIGMA_COUNT - 1)),
        min_size=1,
        max_size=300,
    )
)
def test_any_integer_survives_under_any_table(pairs: list[tuple[int, int]]) -> None:
    symbols, indexes = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    encoder = RansEncoder(TABLES)
    half = len(symbols) // 2
    encoder.encode(symbols[:half], indexes[:half])
    encoder.encode(symbols[half:], indexes[half:])
    decoder = RansDecoder(TABLES, encoder.finish())
    decoded = np.concatenate([decoder.decode(indexes[:half]), decoder.decode(indexes[half:])])
    assert np.array_equal(decoded, symbols)


def test_symbols_beyond_the_limit_are_refused_not_clipped() -> None:
    with pytest.raises(HpcmError, match="too large"):
        RansEncoder(TABLES).encode(np.array([LARGEST_SYMBOL + 1], np.int32), np.array([0], np.int32))


def test_likely_symbols_cost_what_their_probability_says() -> None:
    indexes = np.full(20000, 40, np.int32)
    row = np.diff(TABLES.cumulative[40]) / 2**16
    symbols = np.random.default_rng(0).choice(len(row) - 1, size=20000, p=row[:-1] / row[:-1].sum())
    encoder = RansEncoder(TABLES)
    encoder.encode((symbols + TABLES.offsets[40]).astype(np.int32), indexes)
    bits = -np.log2(row[symbols]).sum()
    assert 8 * len(encoder.finish()) == pytest.approx(bits, rel=0.005, abs=128)


class DocumentedDecoder:
    """Section 7.3 of docs/bitstream.md, word by word."""

    def __init__(self, stream: bytes) -> None:
        self.words = [int.from_bytes(stream[i : i + 4], "little") for i in range(0, len(stream), 4)]
        self.state = self.words.pop(0) + (self.words.pop(0) << 32)

    def refill(self) -> None:
        if self.state < 2**31:
            self.state = (self.state << 32) + self.words.pop(0)

    def raw_bits(self) -> int:
        digit = self.state % 16
        self.state //= 16
        self.refill()
        return digit

    def symbol(self, index: int) -> int:
        row, offset = TABLES.cumulative[index], TABLES.offsets[index]
        low = self.state % 65536
        j = next(j for j in range(len(row) - 1) if row[j] <= low < row[j + 1])
        self.state = (row[j + 1] - row[j]) * (self.state // 65536) + low - row[j]
        self.refill()
        if j < len(row) - 2:
            return j + offset
        count = digit = self.raw_bits()
        while digit == 15:
            digit = self.raw_bits()
            count += digit
        rest = sum(self.raw_bits() << (4 * place) for place in range(count))
        return (-(rest + 1) // 2 if rest % 2 else rest // 2 + len(row) - 2) + offset


@pytest.mark.parametrize("count", [1, 5, 3000])
def test_streams_are_what_the_document_says(count: int) -> None:
    generator = np.random.default_rng(1)
    indexes = generator.integers(0, SIGMA_COUNT, count).astype(np.int32)
    symbols = (generator.standard_t(1, count) * 3).clip(-LARGEST_SYMBOL, LARGEST_SYMBOL).astype(np.int32)
    encoder = RansEncoder(TABLES)
    encoder.encode(symbols, indexes)
    decoder = DocumentedDecoder(encoder.finish())
    assert [decoder.symbol(int(index)) for index in indexes] == symbols.tolist()
    for _ in range(max(0, 8 - count)):
        assert decoder.symbol(0) == 0
    assert decoder.state == 2**31 and decoder.words == []


def with_both(monkeypatch: pytest.MonkeyPatch, stream: bytes, indexes: np.ndarray) -> np.ndarray:
    """The symbols of a stream, read in two runs by the compiled and by the interpreted decoder, which must agree."""
    assert build.ensure_built("integer")
    read = []
    for setting in ("cpp", "torch"):
        monkeypatch.setenv("HPCM_OPS", setting)
        decoder = RansDecoder(TABLES, stream)
        half = len(indexes) // 2
        read.append(np.concatenate([decoder.decode(indexes[:half]), decoder.decode(indexes[half:])]))
    assert np.array_equal(read[0], read[1])
    return read[0]


@pytest.mark.parametrize("seed", range(20))
def test_both_decoders_read_the_same_of_sound_and_of_damaged_streams(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(seed)
    indexes = generator.integers(0, SIGMA_COUNT, 2000).astype(np.int32)
    symbols = (generator.standard_t(1, 2000) * 5).clip(-LARGEST_SYMBOL, LARGEST_SYMBOL).astype(np.int32)
    encoder = RansEncoder(TABLES)
    encoder.encode(symbols, indexes)
    stream = encoder.finish()
    assert np.array_equal(with_both(monkeypatch, stream, indexes), symbols)
    damaged = bytearray(stream)
    damaged[generator.integers(len(stream))] ^= 0x40
    with_both(monkeypatch, bytes(damaged), indexes)
    cut = with_both(monkeypatch, stream[: len(stream) // 2], indexes)
    assert np.array_equal(cut[:500], symbols[:500])  # as far as it goes …
    assert not cut[-500:].any()  # … and nothing after that
    with_both(monkeypatch, generator.bytes(3000), indexes)


@pytest.mark.parametrize("stream", [b"", b"\0", b"\xff" * 16, bytes(range(256)), bytes(4000)])
def test_damaged_streams_decode_to_something_without_leaving_their_memory(
    stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes = np.arange(5000, dtype=np.int32) % SIGMA_COUNT
    assert with_both(monkeypatch, stream, indexes).shape == (5000,)


@pytest.mark.parametrize("size", [1000, 100_000, 10_000_000])
def test_an_escape_that_never_ends_neither_crashes_nor_takes_long(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # compressai's decoder reads fifteen times the stream's length beyond its end here, and crashes
    symbols = with_both(monkeypatch, b"\xff" * size, np.zeros(5000, np.int32))
    assert not symbols[100:].any()


def test_an_index_without_a_table_never_reaches_the_compiled_decoder() -> None:
    for index in (-1, SIGMA_COUNT):
        with pytest.raises(ValueError, match="no table"):
            RansDecoder(TABLES, bytes(100)).decode(np.array([0, index], np.int32))


@pytest.mark.parametrize("row", [[0, 65536], [0, 5, 5, 65536], [1, 5, 65536], [0, 5, 65535], []])
def test_tables_that_are_none_are_refused(row: list[int]) -> None:
    tables = SymbolTables(torch.tensor([[*row, 0]]), torch.tensor([len(row)]), torch.tensor([0]))
    with pytest.raises(FileError, match="tables are damaged"):
        CoderTables(tables)


def test_the_coder_comes_without_the_compressai_package() -> None:
    code = (
        "import sys; from hpcm_codec.entropy.rans_encoder import _ans; _ans();"
        "assert not {'compressai', 'torchvision', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
