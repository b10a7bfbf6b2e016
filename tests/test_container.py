"""The container keeps every byte it is given, and says what is wrong with what it is not given whole."""

from __future__ import annotations

import binascii
import random
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcm_codec.bitstream.container import (
    ALPHA,
    EXIF,
    ICC,
    XMP,
    Header,
    HpcmStream,
    TileStreams,
    describe_stream,
    parse_header,
    parse_stream,
    write_stream,
)
from hpcm_codec.constants import DEFAULT_MAX_PIXELS
from hpcm_codec.entropy.symbol_check import SYMBOL_CHECK_START, update_symbol_check
from hpcm_codec.errors import CorruptStreamError, HpcmError, UnsupportedError
from hpcm_codec.tiles.grid import TileGrid

payload = st.binary(max_size=40)
known_extensions = st.dictionaries(st.sampled_from([ALPHA, ICC, EXIF, XMP, 131, 255]), payload, max_size=4)


@st.composite
def streams(draw: st.DrawFn) -> HpcmStream:
    width, height = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    header = Header(
        width,
        height,
        draw(st.integers(0, 200)),
        draw(st.binary(min_size=8, max_size=8)),
        draw(st.booleans()),
        draw(st.booleans()),
    )
    tiles = tuple(
        TileStreams(draw(payload), draw(payload), draw(payload), draw(payload), draw(st.integers(0, 0xFFFF)))
        for _ in range(len(TileGrid(width, height)))
    )
    return HpcmStream(header, tiles, draw(known_extensions))


HEADER = Header(1500, 700, 101, b"identity", grey=False, float_profile=False)
TILES = (TileStreams(b"h0", b"s1-0", b"", b"s3-0" * 50, 7), TileStreams(b"h1", b"", b"s2-1", b"s3-1", 65535))
STREAM = HpcmStream(HEADER, TILES, {ALPHA: b"alpha", EXIF: b"exif"})
DATA = write_stream(STREAM)
PLAIN = write_stream(replace(STREAM, extensions={}))
INDEX_AT = 17  # after magic, version, quality, identity and two 2-byte sides


def changed(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + bytes([value]) + data[place + 1 :]


# ------------------------------------------------------------------------------------------------------------- round trips


@given(streams())
def test_what_is_written_is_read_back(stream: HpcmStream) -> None:
    data = write_stream(stream)
    assert parse_stream(data) == stream
    assert parse_stream(data, allow_truncated=True) == stream
    assert parse_stream(data).problems == ()
    assert parse_header(data) == stream.header
    assert write_stream(parse_stream(bytearray(data))) == data


@given(streams())
def test_the_description_accounts_for_every_byte(stream: HpcmStream) -> None:
    data = write_stream(stream)
    chunks = describe_stream(data)
    assert all(chunk.crc_ok for chunk in chunks)
    assert [chunk.offset for chunk in chunks] == [sum(c.size for c in chunks[:n]) for n in range(len(chunks))]
    assert sum(chunk.size for chunk in chunks) == len(data)


@pytest.mark.parametrize("size", [(1024, 1024), (1, 1)])
def test_a_one_tile_file_costs_at_most_48_bytes_besides_its_payloads(size: tuple[int, int]) -> None:
    tile = TileStreams(bytes(2**18), bytes(2**19), bytes(2**20), bytes(2**21), 0xFFFF)
    header = Header(*size, 200, b"\xff" * 8, grey=True, float_profile=True)
    overhead = len(write_stream(HpcmStream(header, (tile,), {}))) - sum(len(part or b"") for part in tile.payloads)
    assert overhead <= 48


def test_chunks_come_coarse_to_fine() -> None:
    assert [chunk.name for chunk in describe_stream(DATA)] == [
        *("header", "alpha", "EXIF", "end of the extensions"),
        *(f"{scale} of tile {tile}" for scale in ("hyper", "s1", "s2", "s3") for tile in (0, 1)),
    ]


def test_the_header_has_quality_and_grid() -> None:
    assert HEADER.quality == 50.5
    assert HEADER.grid == TileGrid(1500, 700)


# ----------------------------------------------------------------------------------------------------------------- damage


@given(streams(), st.data())
def test_any_change_of_a_byte_is_an_error_of_ours(stream: HpcmStream, data: st.DataObject) -> None:
    original = write_stream(stream)
    place = data.draw(st.integers(0, len(original) - 1))
    damaged = changed(original, place, original[place] ^ data.draw(st.integers(1, 255)))
    with pytest.raises((CorruptStreamError, UnsupportedError)):
        parse_stream(damaged)


def test_every_single_bit_flip_is_an_error_of_ours() -> None:
    for place in range(len(DATA)):
        for bit in range(8):
            damaged = changed(DATA, place, DATA[place] ^ 1 << bit)
            with pytest.raises((CorruptStreamError, UnsupportedError)):
                parse_stream(damaged)


@given(streams(), st.data())
def test_any_cut_is_an_error_that_counts_the_missing_bytes(stream: HpcmStream, data: st.DataObject) -> None:
    original = write_stream(stream)
    length = data.draw(st.integers(1, len(original) - 1))
    with pytest.raises(CorruptStreamError, match="cut short") as caught:
        parse_stream(original[:length])
    first_chunk = next(chunk for chunk in describe_stream(original) if chunk.name.startswith("hyper"))
    if length >= first_chunk.offset:
        missing = len(original) - length
        assert f"{missing} byte{'' if missing == 1 else 's'} missing" in str(caught.value)


@given(st.one_of(st.binary(max_size=100), st.binary(max_size=100).map(lambda tail: b"HPC\x01" + tail)))
def test_arbitrary_bytes_never_end_in_a_traceback(data: bytes) -> None:
    for function in (parse_stream, parse_header, describe_stream):
        try:
            function(data)
        except HpcmError as error:
            assert error.exit_status in (3, 4)
            assert "\n" not in str(error)


def test_seeded_damage_never_yields_another_stream() -> None:
    dice = random.Random(1)
    for _ in range(2000):
        damaged = bytearray(DATA)
        for _ in range(dice.randint(1, 4)):
            start = dice.randrange(len(damaged))
            if dice.random() < 0.3:
                del damaged[start : start + dice.randint(1, 9)]
            elif dice.random() < 0.5:
                damaged[start:start] = dice.randbytes(dice.randint(1, 9))
            else:
                damaged[start] = dice.randrange(256)
        for truncated in (False, True):
            try:
                stream = parse_stream(bytes(damaged), allow_truncated=truncated)
            except (CorruptStreamError, UnsupportedError):
                continue
            assert stream.header == HEADER
            assert truncated or stream == STREAM
            # a chunk may slip into the place of one that was cut out; the symbol check of its tile tells
            written = {None, *(part for tile in TILES for part in tile.payloads)}
            assert all(written.issuperset(tile.payloads) for tile in stream.tiles)


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        (b"", CorruptStreamError, "not a .hpcm file: it is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), CorruptStreamError, "not a .hpcm file"),
        (b"HP", CorruptStreamError, "cut short in the header: at least 1 byte missing"),
        (changed(PLAIN, 3, 0x02), UnsupportedError, "written by a newer format version 2; this build reads version 1"),
        (changed(PLAIN, 3, 0x0F), UnsupportedError, "newer format version 15"),
        (changed(PLAIN, 3, 0x00), CorruptStreamError, "no format version 0"),
        (changed(PLAIN, 3, 0x81), UnsupportedError, "reserved flag"),
        (changed(PLAIN, 4, 201), CorruptStreamError, "quality code 201 is above 200"),
        (changed(PLAIN, 5, 0), CorruptStreamError, "the header and the chunks do not agree"),
        (changed(PLAIN, INDEX_AT - 2, 0), CorruptStreamError, "."),
        (PLAIN[:20], CorruptStreamError, "cut short in the tile index: at least"),
        (PLAIN[:-5], CorruptStreamError, "cut short: 5 bytes missing"),
        (PLAIN + b"x", CorruptStreamError, "1 byte too many after the end"),
        (changed(PLAIN, len(PLAIN) - 1, PLAIN[-1] ^ 1), CorruptStreamError, "the CRC-32 of s3 of tile 1 differs"),
        (changed(PLAIN, len(PLAIN) - 8, 0), CorruptStreamError, "the CRC-32 of s3 of tile 1 differs"),
    ],
)
def test_the_reason_is_reported(data: bytes, error: type[HpcmError], reason: str) -> None:
    with pytest.raises(error, match=reason):
        parse_stream(data)


def header_with(sides: bytes, index: bytes = b"") -> bytes:
    return b"HPC\x01\x64identity" + sides + index


@pytest.mark.parametrize(
    ("sides", "reason"),
    [
        (b"\x80\x01\x80\x00", "not in its shortest form"),
        (b"\x80\x80\x80\x80\x80\x00\x01", "too long"),
        (b"\xff\xff\xff\xff\x0f\x01", "above 2147483647"),
        (b"\x00\x01", "0×1 pixels"),
        (b"\x01\x00", "1×0 pixels"),
        (b"\x80\x94\xeb\xdc\x03" * 2, "1000000000×1000000000 pixels, above the limit of 268435456"),
        (b"\x80\x80\x80\x80\x01\x01", "cut short in the tile index: at least"),
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_allocated(sides: bytes, reason: str) -> None:
    with pytest.raises(CorruptStreamError, match=reason):
        parse_stream(header_with(sides), allow_truncated=True)


def test_a_claimed_length_beyond_the_data_is_refused_not_allocated() -> None:
    index = b"\xff\xff\xff\xff\x07" * 4 + b"\0\0"
    with pytest.raises(CorruptStreamError, match="bytes missing"):
        parse_stream(header_with(b"\x01\x01", index) + bytes(50))


def test_the_limit_of_pixels_is_the_callers() -> None:
    assert HEADER.width * HEADER.height <= DEFAULT_MAX_PIXELS
    assert parse_header(DATA, max_pixels=1500 * 700) == HEADER
    for function in (parse_header, describe_stream):
        with pytest.raises(CorruptStreamError, match="above the limit of 1049999"):
            function(DATA, max_pixels=1500 * 700 - 1)


def test_a_chunk_of_another_file_does_not_pass() -> None:
    other = write_stream(replace(STREAM, extensions={}, header=replace(HEADER, quality_code=100)))
    last = describe_stream(PLAIN)[-1]
    with pytest.raises(CorruptStreamError, match="s3 of tile 1"):
        parse_stream(PLAIN[: last.offset] + other[last.offset :])


# -------------------------------------------------------------------------------------------------------------- extensions


def with_extension_bytes(extensions: bytes) -> bytes:
    """PLAIN with the extension flag set, `extensions` after the header, and all picture chunks as they should be."""
    head_size = describe_stream(PLAIN)[0].size
    head = changed(PLAIN[:head_size], 3, 0x21)
    written = head + extensions
    for scale in range(4):
        for tile in TILES:
            part = tile.payloads[scale] or b""
            written += part + zlib.crc32(part, zlib.crc32(head)).to_bytes(4, "little")
    return written


def extension(kind: int, content: bytes) -> bytes:
    head_size = describe_stream(PLAIN)[0].size
    seed = zlib.crc32(changed(PLAIN[:head_size], 3, 0x21))
    framed = bytes([kind, len(content)]) + content
    return framed + zlib.crc32(framed, seed).to_bytes(4, "little")


def test_the_helpers_above_write_what_write_stream_writes() -> None:
    assert with_extension_bytes(extension(ALPHA, b"alpha") + extension(EXIF, b"exif") + b"\0") == DATA


def test_unknown_skippable_extensions_are_skipped_and_kept() -> None:
    stream = parse_stream(with_extension_bytes(extension(200, b"?") + b"\0"))
    assert (stream.tiles, stream.extensions) == (TILES, {200: b"?"})


@pytest.mark.parametrize("allow_truncated", [False, True])
def test_unknown_critical_extensions_are_refused(allow_truncated: bool) -> None:
    with pytest.raises(UnsupportedError, match="type 99"):
        parse_stream(with_extension_bytes(extension(99, b"?") + b"\0"), allow_truncated=allow_truncated)


@pytest.mark.parametrize(
    "extensions",
    [
        b"\0",
        extension(ICC, b"a") + extension(ICC, b"b") + b"\0",
        extension(XMP, b"a") + extension(ICC, b"b") + b"\0",
    ],
    ids=["none", "twice", "out of order"],
)
def test_extensions_come_once_and_in_order(extensions: bytes) -> None:
    with pytest.raises(CorruptStreamError, match="missing, repeated or out of order|do not agree"):
        parse_stream(with_extension_bytes(extensions))


# --------------------------------------------------------------------------------------------------------- truncated files


def test_every_cut_gives_what_arrived_before_it() -> None:
    chunks = describe_stream(DATA)
    first_sound = chunks[1].offset + chunks[1].size
    for length in range(len(DATA)):
        if length < first_sound:
            with pytest.raises(CorruptStreamError, match="cut short|empty"):
                parse_stream(DATA[:length], allow_truncated=True)
            continue
        stream = parse_stream(DATA[:length], allow_truncated=True)
        arrived = {chunk.name for chunk in chunks if chunk.offset + chunk.size <= length}
        assert stream.header == HEADER
        assert any("cut short" in problem for problem in stream.problems)
        for index, (tile, whole) in enumerate(zip(stream.tiles, TILES, strict=True)):
            for scale in ("hyper", "s1", "s2", "s3"):
                expected = getattr(whole, scale) if f"{scale} of tile {index}" in arrived else None
                assert getattr(tile, scale) == expected
            assert tile.symbol_check == whole.symbol_check


def test_a_damaged_chunk_is_left_out_and_the_others_stay() -> None:
    place = next(chunk for chunk in describe_stream(DATA) if chunk.name == "s2 of tile 1").offset
    damaged = changed(DATA, place, 0)
    stream = parse_stream(damaged, allow_truncated=True)
    assert stream.tiles == (TILES[0], replace(TILES[1], s2=None))
    assert stream.problems == ("damaged: the CRC-32 of s2 of tile 1 differs",)
    assert [chunk.name for chunk in describe_stream(damaged) if not chunk.crc_ok] == ["s2 of tile 1"]


def test_a_damaged_extension_is_left_out_and_the_picture_stays() -> None:
    alpha = describe_stream(DATA)[1]
    stream = parse_stream(changed(DATA, alpha.offset + 3, 0), allow_truncated=True)
    assert (stream.tiles, stream.extensions) == (TILES, {EXIF: b"exif"})
    assert stream.problems == ("damaged: the CRC-32 of alpha differs",)


def test_a_header_that_no_chunk_agrees_with_is_refused_even_so() -> None:
    with pytest.raises(CorruptStreamError, match="do not agree"):
        parse_stream(changed(PLAIN, 5, 0), allow_truncated=True)
    with pytest.raises(CorruptStreamError, match="do not agree"):
        parse_header(changed(PLAIN, 5, 0))


def test_a_header_that_came_alone_can_be_read() -> None:
    assert parse_header(PLAIN[: describe_stream(PLAIN)[0].size]) == HEADER


# ------------------------------------------------------------------------------------------------------- what it won't write


@pytest.mark.parametrize(
    "stream",
    [
        replace(STREAM, tiles=TILES[:1]),
        replace(STREAM, tiles=(replace(TILES[0], s3=None), TILES[1])),
        replace(STREAM, tiles=(replace(TILES[0], symbol_check=65536), TILES[1])),
        replace(STREAM, header=replace(HEADER, quality_code=201)),
        replace(STREAM, header=replace(HEADER, width=0)),
        replace(STREAM, header=replace(HEADER, height=2**31)),
        replace(STREAM, header=replace(HEADER, checkpoint_id=b"short")),
        replace(STREAM, extensions={0: b""}),
        replace(STREAM, extensions={256: b""}),
    ],
)
def test_what_could_not_be_read_back_is_not_written(stream: HpcmStream) -> None:
    with pytest.raises(ValueError):
        write_stream(stream)


# ------------------------------------------------------------------------------------------------------------ symbol check


@settings(max_examples=50)
@given(st.lists(st.integers(-(2**31), 2**31 - 1)), st.integers(0, 30))
def test_the_symbol_check_is_a_crc_16_over_little_endian_int32(symbols: list[int], cut: int) -> None:
    array = np.array(symbols, dtype=np.int64)
    whole = update_symbol_check(SYMBOL_CHECK_START, array)
    assert whole == binascii.crc_hqx(b"".join(value.to_bytes(4, "little", signed=True) for value in symbols), 0xFFFF)
    assert update_symbol_check(update_symbol_check(SYMBOL_CHECK_START, array[:cut]), array[cut:]) == whole


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 1001])
def test_the_symbol_check_is_the_same_compiled_and_not(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = np.random.default_rng(count).integers(-(2**31), 2**31, count).astype(np.int32)
    checks = [update_symbol_check(start, symbols) for start in (0, 1, SYMBOL_CHECK_START)]
    monkeypatch.setenv("HPCM_OPS", "torch")
    assert checks == [update_symbol_check(start, symbols) for start in (0, 1, SYMBOL_CHECK_START)]


def test_a_symbol_beyond_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bits"):
        update_symbol_check(SYMBOL_CHECK_START, np.array([2**31]))


def test_errors_name_their_file_once_known_and_stay_on_one_line() -> None:
    error = CorruptStreamError("two\nlines", advice="do this")
    assert str(error.in_file("a.hpcm").in_file("b.hpcm")) == "a.hpcm: two lines; do this"
