"""The parts of a .hpcm file: constants, header, the payloads of a tile, a whole stream, and the pieces that a reader finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from hpcm_codec.bitstream.quality import quality_of
from hpcm_codec.tiles.grid import TileGrid

MAGIC = b"HPC"
FORMAT_VERSION = 1
FLAG_GREY, FLAG_EXTENSIONS, FLAG_FLOAT_PROFILE, FLAG_RESERVED = 0x10, 0x20, 0x40, 0x80
CHECKPOINT_ID_BYTES = 8
CRC_BYTES = 4

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


@dataclass(frozen=True)
class Header:
    """The header's fields.

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
        """The arithmetic in which probabilities are computed: "exact" or "float"."""
        return "float" if self.float_profile else "exact"

    @property
    def grid(self) -> TileGrid:
        return TileGrid(self.width, self.height)


@dataclass(frozen=True)
class TileStreams:
    """One tile's entropy-coded payloads, coarse to fine, and the check (0 .. 65535) over all its decoded symbols.

    A payload is None if it is missing or damaged in a file that is read with `allow_truncated`. begun: if such a file ends inside the
    tile's first missing payload, the beginning of that payload, unchecked; else None.
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
