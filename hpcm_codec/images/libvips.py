"""Rows of PNG, JPEG and TIFF files as libvips decodes them, from top to bottom, for pictures too large to be held.

libvips comes with the extra `hpcm-codec[large]` and is imported when the first such picture is read. Pillow has identified the file and
read its metadata before; here are pixels only, and only those that Pillow gives to the last bit. (The two bring a libjpeg of their own
each. That they agree is tested; the standard leaves a decoder some freedom.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL import TiffImagePlugin as tiff

from hpcm_codec.images.picture import Samples

ADVICE = "pip install 'hpcm-codec[large]', which reads it in strips"
# Pillow reads past data that is damaged but not missing in a JPEG, and so do we
_LOADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("pngload_source", {"fail_on": "error"}),
    "JPEG": ("jpegload_source", {"fail_on": "truncated", "autorotate": False}),
    # what its own limit of 50 MB keeps out is kept out by ours
    "TIFF": ("tiffload_source", {"fail_on": "error", "unlimited": True}),
}
_RAW_MODES = {"PNG": ("L", "LA", "RGB", "RGBA"), "JPEG": ("L", "RGB"), "TIFF": ("L", "RGB")}
# pieces of these are independent of each other, and have no colours of their own
_TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits")
ROWS_AT_ONCE = 32  # libvips holds several times the memory of what is requested
# What it takes, rounded up from a picture of 7200×5000 pixels read by libvips 8.18: 30 to 60 MB, most of it lines.
LIBRARY_BYTES = 40_000_000
LIBRARY_ROWS = 3000
_COEFFICIENT_BYTES = 2  # of a progressive JPEG, all are held


@cache
def libvips() -> Any:
    """The module pyvips, ready for use; None where it, or its library, is not installed or too old."""
    in_use = "pyvips" in sys.modules  # by a program whose settings they then are
    try:
        import pyvips

        if not in_use:
            pyvips.cache_set_max(0)
            pyvips.concurrency_set(1)  # rows are decoded in the thread that asks for them
    except (ImportError, OSError, AttributeError):
        return None
    return pyvips


def held_bytes(image: Image.Image, raw_mode: str) -> int | None:
    """Bytes that reading a file by libvips takes; None for a file that cannot be read so, or takes Pillow less.

    image: as Pillow has identified it. raw_mode: as `reading.raw_mode_of` gives it.
    """
    if raw_mode != image.mode or raw_mode not in _RAW_MODES.get(image.format or "", ()):
        return None
    if image.info.get("interlace") or getattr(image, "is_animated", False):
        return None
    row_bytes = image.width * len(image.mode)
    needed = LIBRARY_BYTES + LIBRARY_ROWS * row_bytes
    if image.format == "TIFF":
        pieces = _tiff_bytes(image)
        if pieces is None:
            return None
        needed += pieces
    if needed >= 4 * image.width * image.height:  # bytes of Pillow's image
        return None
    return needed + (_COEFFICIENT_BYTES * row_bytes * image.height if image.info.get("progressive") else 0)


def _tiff_bytes(image: Image.Image) -> int | None:
    """Bytes of a strip, or of a row of tiles, of a TIFF, which are decoded at once; None where not all of them can be."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    if image.info.get("compression") not in _TIFF_COMPRESSIONS or tags.get(tiff.PLANAR_CONFIGURATION, 1) != 1:
        return None
    try:
        if tiff.TILEOFFSETS in tags:
            width, rows, packed = tags[tiff.TILEWIDTH], tags[tiff.TILELENGTH], tags[tiff.TILEBYTECOUNTS]
            across = -(-image.width // width)
        else:
            width, across, packed = image.width, 1, tags[tiff.STRIPBYTECOUNTS]
            rows = min(image.height, tags.get(tiff.ROWSPERSTRIP, image.height))
        return int(across * (width * rows * len(image.mode) + max(packed)))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # a broken layout
        return None


class Rows:
    """The rows of a file, read once from top to bottom; going back begins anew.

    image, file: as Pillow has identified it, for which `held_bytes` is not None; the file's position may change between reads.
    Raises OSError, here or when rows are read, where libvips cannot decode it.
    """

    def __init__(self, image: Image.Image, file: BinaryIO) -> None:
        self._file, self._format = file, image.format or ""
        self._shape = (image.height, image.width, len(image.mode))
        self._kept_top, self._kept = 0, self._no_rows()  # what was read last, since strips overlap
        self._start()
        self.read(0, 1)

    def read(self, top: int, bottom: int) -> Samples:
        """The rows top .. bottom - 1 as h×W×C, alpha last."""
        if top < self._kept_top:
            self._kept_top, self._kept = 0, self._no_rows()
            self._start()
        rows = np.empty((bottom - top, *self._shape[1:]), np.uint8)
        past_kept = self._kept_top + len(self._kept)
        begin = top
        if top < past_kept:
            begin = min(bottom, past_kept)
            rows[: begin - top] = self._kept[top - self._kept_top : begin - self._kept_top]
        for first in range(begin, bottom, ROWS_AT_ONCE):
            past = min(bottom, first + ROWS_AT_ONCE)
            rows[first - top : past - top] = self._fetched(first, past)
        if bottom > past_kept:
            self._kept_top, self._kept = top, rows
        return rows

    def alpha(self) -> Samples:
        """The alpha plane, H×W."""
        height, width, _ = self._shape
        plane = np.empty((height, width), np.uint8)
        for top in range(0, height, ROWS_AT_ONCE):
            plane[top : top + ROWS_AT_ONCE] = self.read(top, min(height, top + ROWS_AT_ONCE))[..., -1]
        return plane

    def _no_rows(self) -> Samples:
        return np.empty((0, *self._shape[1:]), np.uint8)

    def _start(self) -> None:
        pyvips = libvips()
        loader, settings = _LOADERS[self._format]
        self._bytes = _Bytes(self._file)
        source = pyvips.SourceCustom()
        source.on_read(self._bytes.read)
        source.on_seek(self._bytes.seek)
        with self._errors():
            opened = getattr(pyvips.Image, loader)(source, access="sequential", **settings)
            if (opened.height, opened.width, opened.bands) != self._shape or opened.format != "uchar":
                raise OSError("libvips sees another picture")
            self._region = pyvips.Region.new(opened)
        self._source = source  # pyvips would free the callbacks, which libvips still calls

    def _fetched(self, top: int, bottom: int) -> Samples:
        _, width, channels = self._shape
        with self._errors():
            data = self._region.fetch(0, top, width, bottom - top)
        return np.frombuffer(data, np.uint8).reshape(bottom - top, width, channels)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What libvips raises in here becomes an OSError: the file's own error, or else the first message of libvips."""
        try:
            yield
        except libvips().Error as error:
            if self._bytes.error is not None:
                raise self._bytes.error from error
            said = str(error.detail).strip().splitlines() or [str(error)]
            raise OSError(said[0]) from error


class _Bytes:
    """A file as libvips asks for it, at a position of our own. Callbacks must not raise: an error is kept, and reads as the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._position = file, 0
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        try:
            self._file.seek(self._position)
            data = self._file.read(size)
        except Exception as error:
            self.error = error
            return b""
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int) -> int:
        try:
            if whence == os.SEEK_CUR:
                offset, whence = self._position + offset, os.SEEK_SET
            self._position = self._file.seek(offset, whence)
        except Exception as error:
            self.error = error
            return -1
        return self._position
