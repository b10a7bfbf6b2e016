"""The .hpcm container, format version 1: named byte strings in, one byte string out, and back. docs/bitstream.md is the standard.

Knows bytes, not tensors: payloads come from the entropy coder and are copied as they are. A file is a header with the index of its
tiles, optional extension chunks (alpha, ICC, EXIF, XMP), then the picture data, coarse to fine: the hyper chunk of every tile, then s1
of every tile, s2, s3. So a file that was cut short still shows the whole picture, coarser (`allow_truncated`).

Every chunk ends in a CRC-32 that starts from the header's bytes and goes on over the chunk's own. A chunk whose
CRC is right therefore confirms the header too, so that the header needs no check of its own, and a chunk of another file is detected. The
encoding is canonical: one stream has exactly one byte string.

>>> tile = TileStreams(hyper=b"h", s1=b"1", s2=b"22", s3=b"333", symbol_check=0xFFFF)
>>> data = write_stream(HpcmStream(Header(8, 6, 100, b"8 bytes.", grey=False, float_profile=False), (tile,), {}))
>>> parse_stream(data).tiles[0].s3
b'333'
>>> print([chunk.name for chunk in describe_stream(data)])
['header', 'hyper of tile 0', 's1 of tile 0', 's2 of tile 0', 's3 of tile 0']
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from hpcm_codec.bitstream.byte_reader import DAMAGED, LARGEST_NUMBER, ByteReader, counted, varint_bytes
from hpcm_codec.bitstream.quality import quality_of
from hpcm_codec.constants import DEFAULT_MAX_PIXELS, LARGEST_QUALITY_CODE, SCALES
from hpcm_codec.errors import CorruptStreamError, CutShortError, UnsupportedError, UsageError
from hpcm_codec.tiles.grid import PIXELS_PER_UNIT, TileGrid

MAGIC = b"HPC"
FORMAT_VERSION = 1
FLAG_GREY, FLAG_EXTENSIONS, FLAG_FLOAT_PROFILE, FLAG_RESERVED = 0x10, 0x20, 0x40, 0x80
CHECKPOINT_ID_BYTES = 8
CRC_BYTES = 4
SMALLEST_TILE_ENTRY = 6  # four one-byte lengths and the symbol check

ALPHA, ICC, EXIF, XMP, IPTC, RESOLUTION, TEXTS = 1, 128, 129, 130, 131, 132, 133
FIRST_SKIPPABLE = 128
EXTENSION_NAMES = {
    ALPHA: "alpha",
    ICC: "ICC profile",
    EXIF: "EXIF",
    XMP: "XMP",
    IPTC: "IPTC",
    RESOLUTION: "resolution",
    TEXTS: "texts",
}

CUT_ADVICE = "get the rest of the file, or decode what arrived with --partial"

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Header:
    """What a file says about its picture.

    width, height:  of the picture in pixels, 1 .. 2³¹ - 1.
    quality_code:   2 × quality, rounded: 0 .. 200.
    checkpoint_id:  8 bytes naming the weights it was made with.
    grey:           one colour component instead of three.
    float_profile:  the context model ran in floating point: only the machine that encoded it is certain to decode it.
    """

    width: int
    height: int
    quality_code: int
    checkpoint_id: bytes
    grey: bool
    float_profile: bool

    @property
    def quality(self) -> float:
        """0 .. 100 in half steps."""
        return quality_of(self.quality_code)

    @property
    def profile(self) -> str:
        """In which arithmetic probabilities are computed: "exact" or "float"."""
        return "float" if self.float_profile else "exact"

    @property
    def grid(self) -> TileGrid:
        return TileGrid(self.width, self.height)


@dataclass(frozen=True)
class TileStreams:
    """One tile's entropy-coded payloads, coarse to fine, and the check (0 .. 65535) over all its decoded symbols.

    A payload is None if it is missing or damaged in a file that is read with `allow_truncated`. begun: the beginning of the payload in
    which such a file ends, if that is the first of this tile's payloads that is None; it has not been checked.
    """

    hyper: bytes | None
    s1: bytes | None
    s2: bytes | None
    s3: bytes | None
    symbol_check: int
    begun: bytes | None = None

    @property
    def payloads(self) -> tuple[bytes | None, ...]:
        """In the order of `SCALES`."""
        return self.hyper, self.s1, self.s2, self.s3


@dataclass(frozen=True)
class HpcmStream:
    """A whole file.

    tiles:      one entry per tile of `header.grid`, row-major.
    extensions: payload by chunk type (a key of EXTENSION_NAMES, or skippable types this build does not know).
    problems:   what is missing or damaged, a few words each; empty for a sound file.
    """

    header: Header
    tiles: tuple[TileStreams, ...]
    extensions: dict[int, bytes]
    problems: tuple[str, ...] = field(default=(), compare=False)


class ChunkInfo(NamedTuple):
    """A piece of a file: every byte of it, framing and CRC included. crc_ok is False where it is damaged or incomplete."""

    name: str
    offset: int
    size: int
    crc_ok: bool


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
    scale:           the finest one (of SCALES) that is wanted; chunks of finer ones may be missing, are not read, and are None.
    Raises CorruptStreamError (damaged, cut short, followed by other bytes, too large, not a .hpcm file) or UnsupportedError (newer
    format version, reserved flag, unknown critical extension), with the reason; UsageError for an unknown scale.
    """
    if scale not in SCALES:
        raise UsageError(f"there is no scale {scale!r}", advice=f"use one of {', '.join(SCALES)}")
    contents = _examine(memoryview(data), max_pixels, scales=SCALES.index(scale) + 1)
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
    """A narrow picture is extended to 64 pixels: its latents may take far more memory than its pixels."""
    extended = header.grid.pixels.height * header.grid.pixels.width
    if extended > max(max_pixels, PIXELS_PER_UNIT**2):
        raise CorruptStreamError(
            f"a picture of {header.width}×{header.height} pixels is coded as {extended} pixels, above the limit of {max_pixels}",
            advice="if it is sound, raise the limit",
        )


def parse_header(data: Bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Header:
    """Read the header only; it must be complete, with the tile index. Raises as `parse_stream`.

    It is checked with the chunks in the data; a header without any chunk cannot be checked and is returned unchecked.
    """
    contents = _examine(memoryview(data), max_pixels, stop_when_confirmed=True)
    if contents.disproved:
        raise contents.problems()[0]
    return contents.head.header


def parse_opening(data: Bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[Header, dict[int, bytes]]:
    """Header and extensions of a file of which (at least) everything up to its first chunk of picture data is there.

    Raises as `parse_stream`; CutShortError if the data ends earlier.
    """
    contents = _examine(memoryview(data), max_pixels, stop_when_confirmed=True)
    if contents.framing_error is not None or contents.damaged or not contents.confirmed:
        raise contents.problems()[0]
    contents.refuse_unknown()
    return contents.head.header, contents.sound_extensions


@dataclass(frozen=True)
class Description:
    """What a file is made of, damaged or not.

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
    contents = _examine(memoryview(data), max_pixels)
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


@dataclass(frozen=True)
class _Head:
    header: Header
    lengths: tuple[tuple[int, ...], ...]  # per tile: payload bytes of hyper, s1, s2, s3
    symbol_checks: tuple[int, ...]
    has_extensions: bool
    size: int
    crc: int  # over the header's bytes: where the chunks' CRCs start from


@dataclass
class _Contents:
    """Everything known about a file whose header can be read."""

    head: _Head
    chunks: list[ChunkInfo] = field(default_factory=list)
    extensions: dict[int, bytes | None] = field(default_factory=dict)
    payloads: list[bytes | None] = field(default_factory=list)  # scale-major, the order of the file
    begun: tuple[int, int, bytes] | None = None  # scale, tile, and what there is of the payload in which the file ends
    missing: int = 0  # bytes, where the file is too short
    trailing: int = 0  # bytes after the end
    framing_error: CorruptStreamError | None = None  # the extensions could not be walked through
    confirmed: bool = False  # a chunk's CRC confirms the header
    file_size: int = 0

    @property
    def damaged(self) -> list[ChunkInfo]:
        """The chunks that arrived, but not as they were written."""
        return [chunk for chunk in self.chunks if not chunk.crc_ok and chunk.offset + chunk.size <= self.file_size]

    @property
    def disproved(self) -> bool:
        """There are chunks, and none of them agrees with the header."""
        return bool(self.damaged) and not self.confirmed

    @property
    def sound_extensions(self) -> dict[int, bytes]:
        return {kind: payload for kind, payload in self.extensions.items() if payload is not None}

    def payloads_of_tiles(self) -> list[tuple[bytes | None, ...]]:
        """Of each tile, the payloads of SCALES; None where they are damaged, missing or were not read."""
        count = len(self.head.symbol_checks)
        # all of them where broken extensions hide where the picture data starts
        absent: list[bytes | None] = [None] * (len(SCALES) * count - len(self.payloads))
        payloads = self.payloads + absent
        return list(zip(*(payloads[scale * count : (scale + 1) * count] for scale in range(len(SCALES))), strict=True))

    def refuse_unknown(self) -> None:
        """Raise UnsupportedError for a sound extension that must not be ignored and is unknown."""
        for kind in self.sound_extensions:
            if kind not in EXTENSION_NAMES and kind < FIRST_SKIPPABLE:
                raise UnsupportedError(
                    f"needs an extension this build does not know (type {kind})", advice="update hpcm-codec"
                )

    def problems(self) -> list[CorruptStreamError]:
        """Everything that is wrong, worst first."""
        found: list[CorruptStreamError] = []
        if self.disproved:
            found.append(CorruptStreamError("damaged: the header and the chunks do not agree", advice=DAMAGED))
        if self.framing_error is not None:
            found.append(self.framing_error)
        if self.missing:
            found.append(
                CutShortError(
                    f"cut short: {counted(self.missing)} missing", advice=CUT_ADVICE if self.confirmed else DAMAGED
                )
            )
        for chunk in self.damaged:
            found.append(CorruptStreamError(f"damaged: the CRC-32 of {chunk.name} differs", advice=DAMAGED))
        if self.trailing:
            found.append(CorruptStreamError(f"{counted(self.trailing)} too many after the end", advice=DAMAGED))
        return found


def _examine(
    data: memoryview, max_pixels: int, stop_when_confirmed: bool = False, scales: int = len(SCALES)
) -> _Contents:
    """Read the header (raising when it cannot be read), then find and check the chunks of so many scales; raises nothing for them."""
    data = data.cast("B")
    head = _read_head(data, max_pixels)
    contents = _Contents(head, file_size=len(data))
    position = head.size
    try:
        if head.has_extensions:
            position = _examine_extensions(ByteReader(data, position), contents)
    except CorruptStreamError as error:
        contents.framing_error = error
        return contents
    for scale, scale_name in enumerate(SCALES[:scales]):
        for tile, lengths in enumerate(head.lengths):
            size = lengths[scale] + CRC_BYTES
            chunk = data[position : position + size]
            payload, check = chunk[: lengths[scale]], chunk[lengths[scale] :]
            sound = len(check) == CRC_BYTES and zlib.crc32(payload, head.crc) == int.from_bytes(check, "little")
            contents.payloads.append(bytes(payload) if sound else None)
            if 0 < len(chunk) < size:
                contents.begun = scale, tile, bytes(payload)
            contents.chunks.append(ChunkInfo(f"{scale_name} of tile {tile}", position, size, sound))
            contents.confirmed |= sound
            position += size
            if stop_when_confirmed and contents.confirmed:
                return contents
    contents.missing = max(0, position - len(data))
    contents.trailing = max(0, len(data) - position) if scales == len(SCALES) else 0
    return contents


def _examine_extensions(reader: ByteReader, contents: _Contents) -> int:
    """Note every extension chunk in `contents`; returns where the picture data starts. Raises when the chain of chunks is broken."""
    previous = 0
    while True:
        start = reader.position
        kind = reader.number(1, "the extensions")
        if kind == 0 and previous:
            contents.chunks.append(ChunkInfo("end of the extensions", start, 1, True))
            return reader.position
        if kind <= previous:
            raise CorruptStreamError("damaged: extensions missing, repeated or out of order", advice=DAMAGED)
        name = EXTENSION_NAMES.get(kind, f"extension of type {kind}")
        length = reader.varint(name)
        payload = reader.take(length, name)
        framed = reader.data[start : reader.position]
        sound = zlib.crc32(framed, contents.head.crc) == reader.number(CRC_BYTES, name)
        contents.extensions[kind] = bytes(payload) if sound else None
        contents.chunks.append(ChunkInfo(name, start, reader.position - start, sound))
        contents.confirmed |= sound
        previous = kind


def _read_head(data: memoryview, max_pixels: int) -> _Head:
    if len(data) == 0:
        raise CorruptStreamError("not a .hpcm file: it is empty")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise CorruptStreamError("not a .hpcm file", advice="check that it was made by `hpcm encode`")
    reader = ByteReader(data, min(len(MAGIC), len(data)))
    version_and_flags = reader.number(1, "the header")
    version, flags = version_and_flags & 0x0F, version_and_flags & 0xF0
    if version > FORMAT_VERSION:
        raise UnsupportedError(
            f"written by a newer format version {version}; this build reads version {FORMAT_VERSION}",
            advice="update hpcm-codec",
        )
    if version == 0:
        raise CorruptStreamError("damaged: there is no format version 0", advice=DAMAGED)
    if flags & FLAG_RESERVED:
        raise UnsupportedError(
            "a reserved flag is set in the header", advice="update hpcm-codec, or get the file again"
        )
    quality_code = reader.number(1, "the header")
    if quality_code > LARGEST_QUALITY_CODE:
        raise CorruptStreamError(
            f"damaged: quality code {quality_code} is above {LARGEST_QUALITY_CODE}", advice=DAMAGED
        )
    checkpoint_id = bytes(reader.take(CHECKPOINT_ID_BYTES, "the header"))
    width, height = reader.varint("the header"), reader.varint("the header")
    if width == 0 or height == 0:
        raise CorruptStreamError(f"damaged: the header claims a picture of {width}×{height} pixels", advice=DAMAGED)
    if width * height > max_pixels:
        raise CorruptStreamError(
            f"the header claims a picture of {width}×{height} pixels, above the limit of {max_pixels}",
            advice="if it is sound, raise the limit",
        )
    header = Header(
        width, height, quality_code, checkpoint_id, bool(flags & FLAG_GREY), bool(flags & FLAG_FLOAT_PROFILE)
    )
    tile_count = len(header.grid)
    reader.require(tile_count * SMALLEST_TILE_ENTRY, "the tile index")  # limits the lists below by the size of the data
    lengths, symbol_checks = [], []
    for _ in range(tile_count):
        lengths.append(tuple(reader.varint("the tile index") for _ in SCALES))
        symbol_checks.append(reader.number(2, "the tile index"))
    return _Head(
        header,
        tuple(lengths),
        tuple(symbol_checks),
        bool(flags & FLAG_EXTENSIONS),
        reader.position,
        zlib.crc32(data[: reader.position]),
    )
