"""The .hpcm container, format version 1: named byte strings in, one byte string out, and back. docs/bitstream.md is the standard.

It handles bytes, not tensors: payloads come from the entropy coder and are copied unchanged. A file is a header with the index of its
tiles, optional extension chunks (alpha, ICC, EXIF, XMP), then the picture data, coarse to fine: the hyper chunk of every tile, then s1
of every tile, s2, s3. So a truncated file still shows the whole picture, but coarser (`allow_truncated`).

Every chunk ends in a CRC-32 over the header's bytes and then the chunk's own bytes. A correct CRC of a chunk therefore also confirms the
header, so the header needs no check of its own. A chunk of another file is detected. The encoding is canonical: one stream has exactly
one byte string.

>>> tile = TileStreams(hyper=b"h", s1=b"1", s2=b"22", s3=b"333", symbol_check=0xFFFF)
>>> data = write_stream(HpcmStream(Header(8, 6, 100, b"8 bytes.", grey=False, float_profile=False), (tile,), {}))
>>> parse_stream(data).tiles[0].s3
b'333'
>>> print([chunk.name for chunk in describe_stream(data)])
['header', 'hyper of tile 0', 's1 of tile 0', 's2 of tile 0', 's3 of tile 0']
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

from hpcm_codec.bitstream.byte_reader import LARGEST_NUMBER, varint_bytes
from hpcm_codec.bitstream.examining import examine
from hpcm_codec.bitstream.layout import (
    ALPHA,
    CHECKPOINT_ID_BYTES,
    CRC_BYTES,
    EXIF,
    EXTENSION_NAMES,
    FLAG_EXTENSIONS,
    FLAG_FLOAT_PROFILE,
    FLAG_GREY,
    FLAG_RESERVED,
    FORMAT_VERSION,
    ICC,
    IPTC,
    MAGIC,
    RESOLUTION,
    TEXTS,
    XMP,
    ChunkInfo,
    Header,
    HpcmStream,
    TileStreams,
)
from hpcm_codec.constants import DEFAULT_MAX_PIXELS, LARGEST_QUALITY_CODE, SCALES
from hpcm_codec.errors import CorruptStreamError, UnsupportedError, UsageError
from hpcm_codec.tiles.grid import PIXELS_PER_UNIT

__all__ = [
    "ALPHA",
    "CRC_BYTES",
    "EXIF",
    "EXTENSION_NAMES",
    "FLAG_EXTENSIONS",
    "FLAG_FLOAT_PROFILE",
    "FLAG_GREY",
    "FLAG_RESERVED",
    "FORMAT_VERSION",
    "ICC",
    "IPTC",
    "MAGIC",
    "RESOLUTION",
    "TEXTS",
    "XMP",
    "ChunkInfo",
    "Description",
    "Header",
    "HpcmStream",
    "TileStreams",
    "describe",
    "describe_stream",
    "parse_header",
    "parse_opening",
    "parse_stream",
    "write_stream",
]

Bytes = bytes | bytearray | memoryview


# ---------------------------------------------------------------------------------------------------------------- writing


def write_stream(stream: HpcmStream) -> bytes:
    """The file's bytes. Raises ValueError when a field is out of its range, a payload is None, or the tiles do not fill the grid."""
    header = _header_bytes(stream.header, stream.tiles, bool(stream.extensions))
    seed = zlib.crc32(header)
    parts = [header]
    for kind, payload in sorted(stream.extensions.items()):
        if not 1 <= kind <= 255:
            raise ValueError(f"extension type {kind} is not in 1 .. 255")
        framed = bytes([kind]) + varint_bytes(len(payload)) + payload
        parts += [framed, zlib.crc32(framed, seed).to_bytes(CRC_BYTES, "little")]
    if stream.extensions:
        parts.append(b"\0")
    for scale in range(len(SCALES)):
        for tile in stream.tiles:
            payload = _present(tile.payloads[scale])
            parts += [payload, zlib.crc32(payload, seed).to_bytes(CRC_BYTES, "little")]
    return b"".join(parts)


def _header_bytes(header: Header, tiles: tuple[TileStreams, ...], has_extensions: bool) -> bytes:
    if not (1 <= header.width <= LARGEST_NUMBER and 1 <= header.height <= LARGEST_NUMBER):
        raise ValueError(f"a picture of {header.width}×{header.height} pixels cannot be written")
    if not 0 <= header.quality_code <= LARGEST_QUALITY_CODE:
        raise ValueError(f"quality code {header.quality_code} is not in 0 .. {LARGEST_QUALITY_CODE}")
    if len(header.checkpoint_id) != CHECKPOINT_ID_BYTES:
        raise ValueError(f"a checkpoint identity has {CHECKPOINT_ID_BYTES} bytes, not {len(header.checkpoint_id)}")
    if len(tiles) != len(header.grid):
        raise ValueError(f"{header.width}×{header.height} pixels make {len(header.grid)} tiles, not {len(tiles)}")
    flags = (
        (FLAG_GREY if header.grey else 0)
        | (FLAG_EXTENSIONS if has_extensions else 0)
        | (FLAG_FLOAT_PROFILE if header.float_profile else 0)
    )
    written = bytearray(MAGIC)
    written += bytes([FORMAT_VERSION | flags, header.quality_code])
    written += header.checkpoint_id + varint_bytes(header.width) + varint_bytes(header.height)
    for tile in tiles:
        for payload in tile.payloads:
            written += varint_bytes(len(_present(payload)))
        if not 0 <= tile.symbol_check <= 0xFFFF:
            raise ValueError(f"symbol check {tile.symbol_check} does not fit 16 bits")
        written += tile.symbol_check.to_bytes(2, "little")
    return bytes(written)


def _present(payload: bytes | None) -> bytes:
    if payload is None:
        raise ValueError("a stream with missing chunks cannot be written")
    return payload


# ---------------------------------------------------------------------------------------------------------------- reading


def parse_stream(
    data: Bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, allow_truncated: bool = False, scale: str = SCALES[-1]
) -> HpcmStream:
    """Read a whole file and check every byte of it.

    max_pixels:      a picture with more pixels than this is refused before anything is allocated for it.
    allow_truncated: chunks that are damaged or incomplete become None (extensions: are left out) instead of raising;
                     `problems` names them. At least one chunk must be sound.
    scale:           the finest one (of SCALES) to read; chunks of finer scales are not read, may be missing, and are None.
    Raises CorruptStreamError (damaged, cut short, followed by other bytes, too large, not a .hpcm file) or UnsupportedError (newer
    format version, reserved flag, unknown critical extension), with the reason; UsageError for an unknown scale.
    """
    if scale not in SCALES:
        raise UsageError(f"there is no scale {scale!r}", advice=f"use one of {', '.join(SCALES)}")
    contents = examine(memoryview(data), max_pixels, scales=SCALES.index(scale) + 1)
    _refuse_extended_size(contents.head.header, max_pixels)
    problems = contents.problems()
    if problems and not (allow_truncated and contents.confirmed):
        raise problems[0]
    contents.refuse_unknown()
    by_scale = zip(*contents.payloads_of_tiles(), strict=True)
    tiles = list(map(TileStreams, *by_scale, contents.head.symbol_checks))
    if contents.begun is not None:
        scale_number, tile, payload = contents.begun
        if None not in tiles[tile].payloads[:scale_number]:
            tiles[tile] = replace(tiles[tile], begun=payload)
    return HpcmStream(
        contents.head.header, tuple(tiles), contents.sound_extensions, tuple(problem.reason for problem in problems)
    )


def _refuse_extended_size(header: Header, max_pixels: int) -> None:
    """A narrow picture is extended to 64 pixels, so its latents may take far more memory than its pixels."""
    extended = header.grid.pixels.height * header.grid.pixels.width
    if extended > max(max_pixels, PIXELS_PER_UNIT**2):
        raise CorruptStreamError(
            f"a picture of {header.width}×{header.height} pixels is coded as {extended} pixels, above the limit of {max_pixels}",
            advice="if it is sound, raise the limit",
        )


def parse_header(data: Bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Header:
    """Read the header only; it must be complete, with the tile index. Raises as `parse_stream`.

    The chunks in the data confirm it. Without any chunk it is returned unchecked.
    """
    contents = examine(memoryview(data), max_pixels, stop_when_confirmed=True)
    if contents.disproved:
        raise contents.problems()[0]
    return contents.head.header


def parse_opening(data: Bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[Header, dict[int, bytes]]:
    """Header and extensions of a file. The data must reach at least to the first chunk of picture data.

    Raises as `parse_stream`; CutShortError if the data ends earlier.
    """
    contents = examine(memoryview(data), max_pixels, stop_when_confirmed=True)
    if contents.framing_error is not None or contents.damaged or not contents.confirmed:
        raise contents.problems()[0]
    contents.refuse_unknown()
    return contents.head.header, contents.sound_extensions


@dataclass(frozen=True)
class Description:
    """The parts of a file, damaged or not.

    chunks:  in file order; the sizes of a sound file add up to its length.
    problem: the most serious problem, None for a sound file.
    usable:  of each of SCALES, how many tiles can be decoded up to it.
    """

    header: Header
    chunks: list[ChunkInfo]
    problem: CorruptStreamError | UnsupportedError | None
    usable: dict[str, int]


def describe(data: Bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Description:
    """Examine a file once; raises as `parse_header` when the header itself cannot be read."""
    contents = examine(memoryview(data), max_pixels)
    chunks = [ChunkInfo("header", 0, contents.head.size, contents.confirmed), *contents.chunks]
    problem: CorruptStreamError | UnsupportedError | None = next(iter(contents.problems()), None)
    decodable = contents.confirmed or problem is None
    try:
        contents.refuse_unknown()
    except UnsupportedError as error:
        problem, decodable = problem or error, False
    usable = dict.fromkeys(SCALES, 0)
    if decodable:
        tiles = contents.payloads_of_tiles()
        usable = {scale: sum(None not in tile[: n + 1] for tile in tiles) for n, scale in enumerate(SCALES)}
    return Description(contents.head.header, chunks, problem, usable)


def describe_stream(data: Bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> list[ChunkInfo]:
    """The chunks of `describe`."""
    return describe(data, max_pixels).chunks
