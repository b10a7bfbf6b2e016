"""Pictures in and out of image files, through Pillow.

Everything Pillow can read becomes a `Picture`: 8-bit RGB or grey samples, upright, with transparency, ICC profile, EXIF and XMP beside
them. Whatever a picture loses on the way (bits, frames, a CMYK profile) is reported in a notice. Whatever cannot be read ends in a
FileError with a reason; Pillow's own exceptions and warnings stay in here.
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
