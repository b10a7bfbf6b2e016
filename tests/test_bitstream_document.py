"""docs/bitstream.md is correct: its worked example, its check values and its tables are those of the code."""

from __future__ import annotations

import binascii
import re
import zlib
from pathlib import Path

import pytest

from hpcm_codec.bitstream import container
from hpcm_codec.bitstream.byte_reader import varint_bytes
from hpcm_codec.bitstream.container import Header, HpcmStream, TileStreams, describe_stream, parse_stream, write_stream
from hpcm_codec.entropy.symbol_check import SYMBOL_CHECK_START
from hpcm_codec.tiles.grid import TileGrid

DOCUMENT = (Path(__file__).parent.parent / "docs" / "bitstream.md").read_text(encoding="utf-8")
EXAMPLE = HpcmStream(
    Header(1100, 9, 90, bytes.fromhex("0123456789abcdef"), grey=True, float_profile=False),
    (
        TileStreams(b"\x10\x11", b"\x20", b"", b"\x40\x41\x42", 0x29B1),
        TileStreams(b"\x18", b"\x28\x29", b"\x38", b"\x48", 0x1D0F),
    ),
    {container.XMP: b"<x/>"},
)


def example_lines() -> list[tuple[int, bytes, str]]:
    (block,) = re.findall(r"```hex\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    lines = [re.fullmatch(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} )+) *(\S.*)", line) for line in block.splitlines()]
    assert all(lines)
    return [(int(found[1], 16), bytes.fromhex(found[2]), found[3]) for found in lines if found]


def example_bytes() -> bytes:
    return b"".join(content for _, content, _ in example_lines())


def table_after(heading: str) -> list[list[str]]:
    """Cells of the rows of the first table after a heading or sentence, without its head."""
    lines = DOCUMENT[DOCUMENT.index(heading) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_worked_example_is_what_the_writer_writes() -> None:
    assert example_bytes().hex(" ") == write_stream(EXAMPLE).hex(" ")


def test_the_worked_example_is_read_as_described() -> None:
    assert parse_stream(example_bytes()) == EXAMPLE


def test_the_offsets_of_the_worked_example_are_right() -> None:
    position = 0
    for offset, content, _ in example_lines():
        assert offset == position
        position += len(content)
    starts = {offset for offset, _, _ in example_lines()}
    assert all(chunk.offset in starts for chunk in describe_stream(example_bytes()))
    assert f"the file has {position:#x} bytes" in example_lines()[-1][2]


def test_the_ranges_named_beside_the_checks_are_those_they_cover() -> None:
    data, checked = example_bytes(), 0
    for _, content, meaning in example_lines():
        if ranges := re.findall(r"([0-9a-f]{4}) … ([0-9a-f]{4})", meaning):
            covered = b"".join(data[int(first, 16) : int(last, 16) + 1] for first, last in ranges)
            assert zlib.crc32(covered).to_bytes(4, "little") == content
            checked += 1
    assert checked == 3


def test_the_check_values_of_the_two_crcs_are_right() -> None:
    assert f"`123456789` is 0x{zlib.crc32(b'123456789'):08X}" in DOCUMENT
    assert f"`123456789` is 0x{binascii.crc_hqx(b'123456789', SYMBOL_CHECK_START):04X}" in DOCUMENT


def test_the_table_of_tile_sizes_is_that_of_the_grid() -> None:
    rows = table_after("Tile number\n")
    assert len(rows) == 6
    for size, units, widths in rows:
        tiles = list(TileGrid(int(size), 1))
        assert [tile.pixels.width for tile in tiles] == [int(width) for width in widths.split(",")]
        assert sum(tile.pixels.width for tile in tiles) == 64 * int(units)


def test_the_table_of_header_fields_has_the_offsets_of_the_code() -> None:
    fixed = [(int(row[0]), int(row[1])) for row in table_after("## 4. Header") if row[0].isdigit() and row[1].isdigit()]
    assert [offset for offset, _ in fixed] == [sum(size for _, size in fixed[:n]) for n in range(len(fixed))]
    assert sum(size for _, size in fixed) == 13


def test_flags_and_extension_types_are_those_of_the_code() -> None:
    flags = {row[1]: 1 << int(row[0]) for row in table_after("Flags, all in the byte")}
    assert flags == {
        "grey": container.FLAG_GREY,
        "extensions": container.FLAG_EXTENSIONS,
        "float profile": container.FLAG_FLOAT_PROFILE,
        "reserved": container.FLAG_RESERVED,
    }
    types = {int(row[0]): row[1] for row in table_after("*skippable*")}
    assert types == container.EXTENSION_NAMES


def test_the_smallest_file_is_as_small_as_stated() -> None:
    stream = HpcmStream(Header(1, 1, 0, bytes(8), False, False), (TileStreams(b"", b"", b"", b"", 0),), {})
    assert f"{len(write_stream(stream))} bytes: one tile" in DOCUMENT


@pytest.mark.parametrize(("part", "size", "largest"), [("sides", 2, 16383), ("s2", 3, 2**21 - 1), ("s3", 4, 2**28 - 1)])
def test_the_overhead_statement_follows_from_the_length_of_varints(part: str, size: int, largest: int) -> None:
    assert len(varint_bytes(largest)) == size < len(varint_bytes(largest + 1)), part
