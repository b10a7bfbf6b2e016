"""The picture as the codec takes and gives it, and what all readers and writers of pictures share."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags

Samples = NDArray[np.uint8]

ORIENTATION = int(ExifTags.Base.Orientation)
EXIF_PREFIX = b"Exif\0\0"  # JPEG's framing of EXIF, not part of `Picture.exif`
# what Pillow's parsers of secondary parts raise on broken ones
PARSER_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, struct.error, zlib.error),
)


@dataclass
class Picture:
    """A picture as the codec takes and gives it.

    pixels:  uint8 H×W×3 (RGB) or H×W×1 (grey), upright.
    alpha:   uint8 H×W, 255 opaque, not premultiplied; or None.
    icc:     ICC profile; exif: EXIF from its byte order mark on, orientation 1; xmp: XMP packet; each bytes or None.
    notices: what the reader changed, one phrase each, for the user's eyes.
    """

    pixels: Samples
    alpha: Samples | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    notices: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def grey(self) -> bool:
        return bool(self.pixels.shape[2] == 1)
