"""Image files as rows of pixels that are read when they are asked for.

Where the samples lie in the file as they are (PPM, uncompressed TIFF and BMP of 8-bit grey or RGB), rows are read from there. Of large
PNG, JPEG and TIFF files libvips decodes rows, where it is installed. Other files are decoded by Pillow, whose image is then the only copy
of the pixels; and what has to be converted as a whole (other modes, a picture that lies on its side) is read as `read_picture` reads
it. What each way will hold in memory is reported before the memory is taken.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from hpcm_codec.constants import DEFAULT_MAX_PIXELS
from hpcm_codec.errors import MemoryLimitError
from hpcm_codec.images import libvips
from hpcm_codec.images.colour import icc_of
from hpcm_codec.images.extras import extras_of
from hpcm_codec.images.metadata import exif_of, orientation_of, turned_by_pillow
from hpcm_codec.images.picture import Extras, PixelSource, Samples, is_large
from hpcm_codec.images.png import one_pixel_of
from hpcm_codec.images.reading import (
    Identified,
    identified,
    opened,
    picture_of,
    pillow_errors_as_file_errors,
    raw_mode_of,
    start,
    xmp_of,
)

# Pillow's raw modes that we read ourselves: channels, and whether they come last first
_RAW_MODES = {"L": (1, False), "RGB": (3, False), "BGR": (3, True)}
# formats that know size and mode before their pixels are read
_PLAIN_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "PPM", "BMP")
# Bytes a pixel, of what is held while a picture is read. Pillow's image has 4, whatever its mode.
_PILLOW = 4
_DECODER = {
    "WEBP": 12,
    "AVIF": 12,
    "JPEG2000": 12,
    "JXL": 9,
    "HEIF": 16,
}  # these decode into buffers of their own first
_PROGRESSIVE = 6  # all coefficients of a JPEG
_CONVERTED = 12  # copies on the way to 8-bit grey or RGB, or upright
_CONVERTED_DEEP = 32  # the same in 64-bit numbers
_ALPHA = 3

Afford = Callable[[int, int, int], None]


def _anything(width: int, height: int, held: int) -> None:
    """Accepts every amount of memory."""


@contextmanager
def open_picture(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    *,
    name: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    afford: Afford = _anything,
) -> Iterator[PixelSource]:
    """An image file as the encoder takes it; the same pixels, metadata and notices as `read_picture` gives.

    source, name, max_pixels: as for `read_picture`; rows can be read inside the `with` only.
    afford: called with width, height and the bytes that will be held, before they are; raises when that is too much.
    Raises FileError as `read_picture`, here or when rows are read.
    """
    with ExitStack() as stack:
        if isinstance(source, (str, os.PathLike)):
            name = name or os.fspath(source)
            source = stack.enter_context(opened(source, name))
        name = name or "the image"
        with pillow_errors_as_file_errors(name):
            picture = _opened(stack.enter_context(identified(source, name, max_pixels)), name, max_pixels, afford)
        yield picture


def _opened(found: Identified, name: str, max_pixels: int, afford: Afford) -> PixelSource:
    image, file = found.image, found.file
    pixels = image.width * image.height
    notices = [*found.notices, *start(image, max_pixels)]
    raw_mode, deep = raw_mode_of(image)
    own = _DECODER.get(image.format or "", 0) + (_PROGRESSIVE if image.info.get("progressive") else 0)
    converted = pixels * (_PILLOW + own + (_CONVERTED_DEEP if image.mode[0] in "IF" else _CONVERTED))

    def as_a_whole() -> PixelSource:
        afford(image.width, image.height, converted)
        return picture_of(found, max_pixels, (raw_mode, deep))

    def with_rows(rows: Callable[[int, int], Samples], alpha: Samples | None, described: Image.Image) -> PixelSource:
        """described: the image that has the metadata."""
        grey = image.mode[0] == "L"
        icc = icc_of(described, found.code_points, grey, notices)
        _, exif, exif_notices = exif_of(described)
        notices.extend(exif_notices)
        extras, xmp = extras_of(described, turned_by_pillow(described), notices), xmp_of(described)
        size = image.width, image.height
        return _OpenPicture(*size, grey, rows, name, alpha, icc, exif, xmp, extras, tuple(notices))

    known = image.format != "PNG" or "exif" in image.info  # PNG's EXIF may come after the pixels
    if not _plain(image, raw_mode) or (known and _turned(image)):
        return as_a_whole()
    if pieces := _raw_pieces(image, file, raw_mode):
        afford(image.width, image.height, 0)
        return with_rows(_RawRows(file, image.width, *_RAW_MODES[raw_mode], pieces).read, None, image)
    has_alpha = image.mode.endswith("A")
    of_alpha = pixels * (_ALPHA if has_alpha else 0)
    in_strips = libvips.held_bytes(image, raw_mode) if is_large(image.width, image.height) else None
    if in_strips is not None and libvips.libvips() is not None:
        afford(image.width, image.height, in_strips + of_alpha)
        with suppress(OSError):  # Pillow reads what libvips cannot open
            described = _with_all_metadata(image, file)
            if _plain(described, raw_mode) and not _turned(described):
                decoder = libvips.Rows(image, file)
                alpha = decoder.alpha() if has_alpha else None
                colours = -1 if has_alpha else None
                return with_rows(lambda top, bottom: decoder.read(top, bottom)[..., :colours], alpha, described)
    try:
        afford(image.width, image.height, pixels * (_PILLOW + own) + of_alpha)
    except MemoryLimitError as error:
        if in_strips is not None and libvips.libvips() is None:
            error.advice = f"{error.advice}, or {libvips.ADVICE}"
        raise
    image.load()
    if not _plain(image, raw_mode) or _turned(image):
        return as_a_whole()
    if deep:
        notices.append("16 bits per sample reduced to 8")
    return with_rows(_HeldRows(image).read, np.array(image.getchannel("A")) if has_alpha else None, image)


def _with_all_metadata(image: Image.Image, file: BinaryIO) -> Image.Image:
    """An image that has all metadata of the file, those behind a PNG's pixels too, while the pixels are not read."""
    if image.format != "PNG":
        return image
    small = Image.open(io.BytesIO(one_pixel_of(file)), formats=["PNG"])
    small.load()
    return small


def _plain(image: Image.Image, raw_mode: str) -> bool:
    """Whether the samples need no conversion, in a format whose size and mode are known before its pixels are read."""
    return (
        image.format in _PLAIN_FORMATS
        and image.mode in ("L", "RGB", "RGBA", "LA")
        and not raw_mode.startswith("LA;")  # Pillow spreads 16-bit LA to RGBA
        and "transparency" not in image.info
    )


def _turned(image: Image.Image) -> bool:
    """Whether EXIF or XMP says that the picture does not lie upright in the file."""
    return orientation_of(image) != 1


@dataclass
class _OpenPicture:
    """A `PixelSource` whose rows come from a file or a Pillow image."""

    width: int
    height: int
    grey: bool
    read: Callable[[int, int], Samples]
    name: str
    alpha: Samples | None
    icc: bytes | None
    exif: bytes | None
    xmp: bytes | None
    extras: Extras
    notices: tuple[str, ...]

    def rows(self, top: int, bottom: int) -> Samples:
        """The rows top .. bottom - 1; raises FileError when they cannot be read."""
        with pillow_errors_as_file_errors(self.name):
            return self.read(top, bottom)


class _HeldRows:
    """Rows out of a Pillow image, alpha left out."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image

    def read(self, top: int, bottom: int) -> Samples:
        samples = np.asarray(self._image.crop((0, top, self._image.width, bottom)), dtype=np.uint8)
        samples = samples[..., None] if samples.ndim == 2 else samples
        return samples[..., : 1 if self._image.mode[0] == "L" else 3]


@dataclass(frozen=True)
class _Piece:
    """Rows top .. bottom - 1 of the picture: where they begin in the file, bytes from row to row, whether the last comes first."""

    top: int
    bottom: int
    offset: int
    stride: int
    upwards: bool


def _raw_pieces(image: Image.Image, file: BinaryIO, raw_mode: str) -> list[_Piece]:
    """Where the rows lie in the file, top to bottom; nothing when not all of them lie there as they are."""
    tiles: list[Any] = list(getattr(image, "tile", None) or [])
    if image.mode not in ("L", "RGB") or raw_mode not in _RAW_MODES:
        return []
    row_bytes = image.width * _RAW_MODES[raw_mode][0]
    start = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(start)
    pieces, row = [], 0
    for codec, (left, top, right, bottom), offset, arguments in sorted(tiles, key=lambda tile: tile[1][1]):
        found, stride, direction = (arguments, 0, 1) if isinstance(arguments, str) else (*arguments, 0, 1)[:3]
        stride = stride or row_bytes
        whole_rows = (left, right) == (0, image.width) and top == row and stride >= row_bytes
        if codec != "raw" or found != raw_mode or not whole_rows or offset + (bottom - top) * stride > length:
            return []
        pieces.append(_Piece(top, bottom, offset, stride, upwards=direction == -1))
        row = bottom
    return pieces if row == image.height else []


class _RawRows:
    """Rows out of a file in which they lie as they are."""

    def __init__(self, file: BinaryIO, width: int, channels: int, reverse: bool, pieces: list[_Piece]) -> None:
        self._file, self._width, self._channels, self._reverse, self._pieces = file, width, channels, reverse, pieces

    def read(self, top: int, bottom: int) -> Samples:
        rows = np.empty((bottom - top, self._width, self._channels), np.uint8)
        for piece in self._pieces:
            first, past = max(top, piece.top), min(bottom, piece.bottom)
            if first < past:
                rows[first - top : past - top] = self._rows_of(piece, first, past)
        return rows

    def _rows_of(self, piece: _Piece, first: int, past: int) -> Samples:
        before = piece.bottom - past if piece.upwards else first - piece.top
        self._file.seek(piece.offset + before * piece.stride)
        data = self._file.read((past - first) * piece.stride)
        if len(data) < (past - first) * piece.stride:
            raise OSError("image file is truncated")
        used = np.frombuffer(data, np.uint8).reshape(past - first, piece.stride)[:, : self._width * self._channels]
        rows = used.reshape(past - first, self._width, self._channels)[:: -1 if piece.upwards else 1]
        return rows[..., ::-1] if self._reverse else rows
