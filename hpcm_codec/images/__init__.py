"""Pictures in and out of image files, through Pillow.

Everything Pillow can read becomes a `Picture`: 8-bit RGB or grey samples, upright, with transparency, ICC profile, EXIF and XMP beside
them. Everything that a picture loses (bits, frames, a CMYK profile) is reported in a notice. A file that cannot be read raises a
FileError with the reason; Pillow's own exceptions and warnings do not leave this package.
"""

from __future__ import annotations

from hpcm_codec.images.alpha import decode_alpha, encode_alpha
from hpcm_codec.images.opening import open_picture
from hpcm_codec.images.picture import EXIF_PREFIX, ORIENTATION, Extras, Picture, PixelSource, Samples, StripPicture
from hpcm_codec.images.reading import READABLE, picture_from_pil, read_picture
from hpcm_codec.images.writing import FORMATS, format_for, held_bytes, picture_to_pil, write_picture

__all__ = [
    "EXIF_PREFIX",
    "FORMATS",
    "ORIENTATION",
    "READABLE",
    "Extras",
    "Picture",
    "PixelSource",
    "Samples",
    "StripPicture",
    "decode_alpha",
    "encode_alpha",
    "format_for",
    "held_bytes",
    "open_picture",
    "picture_from_pil",
    "picture_to_pil",
    "read_picture",
    "write_picture",
]
