"""The picture as the codec takes and gives it, and what all readers and writers of pictures share."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags

Samples = NDArray[np.uint8]

ORIENTATION = int(ExifTags.Base.Orientation)
STRIP_ROWS = 1024
LARGE_PIXELS = (
    2**24
)  # above this, PNG, JPEG and compressed TIFF are not held as Pillow's image (64 MiB) where that can be avoided
EXIF_PREFIX = b"Exif\0\0"  # JPEG's framing of EXIF, not part of `Picture.exif`
COMMENT = "Comment"  # the keyword of the text that JPEG and GIF have
# what Pillow's parsers of secondary parts raise on broken ones
PARSER_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, struct.error, zlib.error),
)


def is_large(width: int, height: int) -> bool:
    """Whether a picture is large enough to be read and written in strips."""
    return width * height > LARGE_PIXELS


@dataclass(frozen=True)
class Extras:
    """iptc: IPTC-IIM records, bytes or None. dpi: pixels per inch along width and height, or None. texts: (keyword, text), as in PNG."""

    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    texts: tuple[tuple[str, str], ...] = ()

    @property
    def comment(self) -> str | None:
        """The text that JPEG and GIF have."""
        return next((text for keyword, text in self.texts if keyword == COMMENT), None)


class PixelSource(Protocol):
    """A picture as the encoder takes it: `Picture` itself, or one whose rows are read from a file when asked for (`open_picture`)."""

    alpha: Samples | None
    icc: bytes | None
    exif: bytes | None
    xmp: bytes | None
    extras: Extras
    notices: tuple[str, ...]

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def grey(self) -> bool: ...

    def rows(self, top: int, bottom: int) -> Samples:
        """The rows top .. bottom - 1, uint8 h×W×3 or h×W×1; asked for from top to bottom, with overlaps."""


@dataclass
class Picture:
    """A picture as the codec takes and gives it.

    pixels:  uint8 H×W×3 (RGB) or H×W×1 (grey), upright.
    alpha:   uint8 H×W, 255 opaque, not premultiplied; or None.
    icc:     ICC profile; exif: EXIF from its byte order mark on, orientation 1; xmp: XMP packet; each bytes or None.
    extras:  IPTC data, resolution and texts.
    notices: what the reader changed, one phrase each, to be shown to the user.
    """

    pixels: Samples
    alpha: Samples | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    notices: tuple[str, ...] = ()
    extras: Extras = Extras()

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[1])

    @property
    def grey(self) -> bool:
        """Whether there is one component instead of three."""
        return bool(self.pixels.shape[2] == 1)

    def rows(self, top: int, bottom: int) -> Samples:
        """The rows top .. bottom - 1 of the pixels, not copied."""
        return self.pixels[top:bottom]

    @property
    def strips(self) -> Iterator[Samples]:
        """The pixels from top to bottom, `STRIP_ROWS` rows at a time, not copied."""
        return (self.pixels[top : top + STRIP_ROWS] for top in range(0, self.height, STRIP_ROWS))


@dataclass
class StripPicture:
    """A picture whose pixels come once, from top to bottom, while it is decoded.

    strips: uint8 h×W×3 (grey: h×W×1) each, `height` rows in all; the other fields as in `Picture`.
    """

    width: int
    height: int
    grey: bool
    strips: Iterator[Samples]
    alpha: Samples | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    notices: tuple[str, ...] = ()
    extras: Extras = Extras()

    def whole(self) -> Picture:
        """All of it; takes the strips."""
        pixels = np.empty((self.height, self.width, 1 if self.grey else 3), np.uint8)
        top = 0
        for strip in self.strips:
            pixels[top : top + len(strip)] = strip
            top += len(strip)
        return Picture(pixels, self.alpha, self.icc, self.exif, self.xmp, self.notices, self.extras)
