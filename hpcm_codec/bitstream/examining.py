"""Finds every chunk of a file, damaged or not, and checks it; `container` reads and describes files with it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from hpcm_codec.bitstream.byte_reader import DAMAGED, ByteReader, counted
from hpcm_codec.bitstream.layout import (
    CHECKPOINT_ID_BYTES,
    CRC_BYTES,
    EXTENSION_NAMES,
    FIRST_SKIPPABLE,
    FLAG_EXTENSIONS,
    FLAG_FLOAT_PROFILE,
    FLAG_GREY,
    FLAG_RESERVED,
    FORMAT_VERSION,
    MAGIC,
    ChunkInfo,
    Header,
)
from hpcm_codec.constants import LARGEST_QUALITY_CODE, SCALES
from hpcm_codec.errors import CorruptStreamError, CutShortError, UnsupportedError

SMALLEST_TILE_ENTRY = 6  # four one-byte lengths and the symbol check
CUT_ADVICE = "get the rest of the file, or decode what arrived with --partial"


@dataclass(frozen=True)
class Head:
    """The header and the tile index."""

    header: Header
    lengths: tuple[tuple[int, ...], ...]  # per tile: payload bytes of hyper, s1, s2, s3
    symbol_checks: tuple[int, ...]
    has_extensions: bool
    size: int
    crc: int  # over the header's bytes: where the chunks' CRCs start from


@dataclass
class Contents:
    """Everything known about a file whose header can be read."""

    head: Head
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
        """The chunks that are complete but damaged."""
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


def examine(
    data: memoryview, max_pixels: int, stop_when_confirmed: bool = False, scales: int = len(SCALES)
) -> Contents:
    """Read the header (raising when it cannot be read), then find and check the chunks of so many scales; raises nothing for them."""
    data = data.cast("B")
    head = _read_head(data, max_pixels)
    contents = Contents(head, file_size=len(data))
    offset = head.size
    try:
        if head.has_extensions:
            offset = _examine_extensions(ByteReader(data, offset), contents)
    except CorruptStreamError as error:
        contents.framing_error = error
        return contents
    for scale, scale_name in enumerate(SCALES[:scales]):
        for tile, lengths in enumerate(head.lengths):
            size = lengths[scale] + CRC_BYTES
            chunk = data[offset : offset + size]
            payload, check = chunk[: lengths[scale]], chunk[lengths[scale] :]
            sound = len(check) == CRC_BYTES and zlib.crc32(payload, head.crc) == int.from_bytes(check, "little")
            contents.payloads.append(bytes(payload) if sound else None)
            if 0 < len(chunk) < size:
                contents.begun = scale, tile, bytes(payload)
            contents.chunks.append(ChunkInfo(f"{scale_name} of tile {tile}", offset, size, sound))
            contents.confirmed |= sound
            offset += size
            if stop_when_confirmed and contents.confirmed:
                return contents
    contents.missing = max(0, offset - len(data))
    contents.trailing = max(0, len(data) - offset) if scales == len(SCALES) else 0
    return contents


def _examine_extensions(reader: ByteReader, contents: Contents) -> int:
    """Note every extension chunk in `contents`; returns where the picture data starts. Raises when the chain of chunks is broken."""
    previous = 0
    while True:
        start = reader.offset
        kind = reader.number(1, "the extensions")
        if kind == 0 and previous:
            contents.chunks.append(ChunkInfo("end of the extensions", start, 1, True))
            return reader.offset
        if kind <= previous:
            raise CorruptStreamError("damaged: extensions missing, repeated or out of order", advice=DAMAGED)
        name = EXTENSION_NAMES.get(kind, f"extension of type {kind}")
        length = reader.varint(name)
        payload = reader.take(length, name)
        framed = reader.data[start : reader.offset]
        sound = zlib.crc32(framed, contents.head.crc) == reader.number(CRC_BYTES, name)
        contents.extensions[kind] = bytes(payload) if sound else None
        contents.chunks.append(ChunkInfo(name, start, reader.offset - start, sound))
        contents.confirmed |= sound
        previous = kind


def _read_head(data: memoryview, max_pixels: int) -> Head:
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
    return Head(
        header,
        tuple(lengths),
        tuple(symbol_checks),
        bool(flags & FLAG_EXTENSIONS),
        reader.offset,
        zlib.crc32(data[: reader.offset]),
    )
