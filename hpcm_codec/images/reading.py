"""Image files into pictures."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from hpcm_codec.constants import DEFAULT_MAX_PIXELS
from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.images import plugins
from hpcm_codec.images.colour import CodePoints, code_points_of, icc_of
from hpcm_codec.images.extras import extras_of, raw_profile
from hpcm_codec.images.limits import TEXT_CHUNK_BYTES, is_text_limit, our_limits
from hpcm_codec.images.metadata import exif_of, sides_change_places, turned_by_pillow, upright, xmp_of_upright_picture
from hpcm_codec.images.picture import PARSER_ERRORS, Picture, Samples
from hpcm_codec.images.png import content_of
from hpcm_codec.images.repair import repaired
from hpcm_codec.images.samples import lower_bytes_of, samples_of
from hpcm_codec.system.files import file_error

# Pillow's readers for plain raster formats: none of those that start other programs (EPS) or only describe a file (PDF, HDF5)
READABLE = [
    *("PNG", "JPEG", "WEBP", "TIFF", "PPM", "BMP", "DIB", "GIF", "AVIF", "JPEG2000", "TGA", "PCX", "DCX", "ICO"),
    *("ICNS", "PSD", "SGI", "QOI", "DDS", "SUN", "XBM", "XPM", "MSP", "IM", *plugins.NAMES),
]
XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"  # in front of XMP in a JPEG
NOT_AN_IMAGE = ("not an image, damaged, or of a kind this build cannot read", "check the file, or get it again")


def read_picture(
    source: str | os.PathLike[str] | bytes | BinaryIO, *, name: str | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Picture:
    """Read an image from a path, bytes or a binary file; its format is found from its content, its first frame is taken.

    name:       what to call it in errors; for a path, the path.
    max_pixels: larger pictures are refused before their pixels are read.
    Raises FileError when it is missing, unreadable, truncated, broken, too large or not an image.
    """
    if isinstance(source, (str, os.PathLike)):
        name = name or os.fspath(source)
        with opened(source, name) as file:
            return read_picture(file, name=name, max_pixels=max_pixels)
    name = name or "the image"
    with pillow_errors_as_file_errors(name), identified(source, name, max_pixels) as found:
        return picture_of(found, max_pixels)


def opened(path: str | os.PathLike[str], name: str) -> BinaryIO:
    """A file of that path, to be read and closed; raises FileError, calling it `name`."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise file_error(name, error) from error
    except ValueError as error:
        raise FileError("not a possible file name", file=repr(name), advice="check the path") from error


class Identified(NamedTuple):
    """An image whose pixels are not read yet, and what it comes from; notices: what is overlooked; code_points: of its colours."""

    image: Image.Image
    file: BinaryIO
    notices: list[str]
    code_points: CodePoints | None


@contextmanager
def identified(source: bytes | BinaryIO, name: str, max_pixels: int) -> Iterator[Identified]:
    """A file as Pillow identifies it, from its beginning on; Pillow's own limits are set to ours meanwhile."""
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    elif not source.seekable():
        source = io.BytesIO(source.read())
    if not source.read(1):
        raise FileError("not an image: it is empty", file=name, advice="get the file again")
    source, notices = repaired(source)
    with our_limits(max_pixels), _identified_by_pillow(source) as image:
        yield Identified(image, source, notices, code_points_of(source))


def _identified_by_pillow(file: BinaryIO) -> Image.Image:
    """The image in a file from its beginning on, of one of READABLE; raises Pillow's errors."""
    kind = plugins.format_of(content_of(file, 0, 12))
    file.seek(0)
    if kind is not None and plugins.is_there(kind):
        with suppress(UnidentifiedImageError):
            return Image.open(file, formats=[kind])
    Image.preinit()  # the readers of common formats; importing the others takes 20 ms
    with suppress(UnidentifiedImageError):
        return Image.open(file, formats=_readers())
    Image.init()
    try:
        return Image.open(file, formats=_readers())
    except UnidentifiedImageError:
        if kind is None or plugins.is_there(kind):
            raise
        name = plugins.NAMES[kind]
        raise FileError(f"{name}, whose reader is not installed", advice=plugins.ADVICE) from None


def _readers() -> list[str]:
    """Those of READABLE that are imported."""
    return [kind for kind in READABLE if kind in Image.OPEN]


def picture_from_pil(image: Image.Image, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """What `read_picture` makes of a file, made of a Pillow image of any mode; the image may have to load its pixels first.

    Raises FileError when they cannot be loaded or converted.
    """
    with pillow_errors_as_file_errors("the image"):
        file = getattr(image, "fp", None) or io.BytesIO()  # none where the pixels are loaded
        return picture_of(Identified(image, file, [], code_points_of(file)), max_pixels)


@contextmanager
def pillow_errors_as_file_errors(name: str) -> Iterator[None]:
    """Whatever Pillow raises in here becomes a FileError of the file of that name; its warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except HpcmError as error:
        raise error.in_file(name) from error.__cause__
    except UnidentifiedImageError as error:
        raise FileError(NOT_AN_IMAGE[0], file=name, advice=NOT_AN_IMAGE[1]) from error
    except Image.DecompressionBombError as error:
        raise FileError("claims more pixels than is safe to read", file=name, advice="use a smaller picture") from error
    except MemoryError as error:
        raise FileError("there is not enough memory for it", file=name, advice="use a smaller picture") from error
    except ValueError as error:
        if not is_text_limit(error):
            raise _damaged(error, name) from error
        raise FileError(
            f"a text, ICC or XMP chunk holds more than {TEXT_CHUNK_BYTES >> 20} MiB, or all of them together far more",
            file=name,
            advice="remove it with another program",
        ) from error
    except Exception as error:  # on broken files Pillow's readers raise nearly every kind there is
        raise _damaged(error, name) from error


def _damaged(error: Exception, name: str) -> FileError:
    detail = str(error) or type(error).__name__
    return FileError(f"a damaged or truncated image ({detail})", file=name, advice="get the file again")


def start(image: Image.Image, max_pixels: int) -> list[str]:
    """Refuse an image that has no pixels or too many, and turn to what it shows first; returns a notice if there is more."""
    width, height = image.size
    if width < 1 or height < 1:
        raise FileError(f"has no pixels ({width}×{height})", advice="use another picture")
    if width * height > max_pixels:
        raise FileError(f"has {width}×{height} pixels, above the limit of {max_pixels}", advice="use a smaller picture")
    frames = _frame_count(image)
    if frames <= 1:
        return []
    with suppress(
        EOFError
    ):  # there is no frame 0 where the frames are layers, and what is shown first is all of them together
        image.seek(0)
    return [f"all {frames} layers taken as one picture" if image.format == "PSD" else f"first of {frames} frames taken"]


def picture_of(found: Identified, max_pixels: int, raw: tuple[str, bool] | None = None) -> Picture:
    """All of an identified image; raises whatever Pillow does. raw: what `raw_mode_of` said, if the image is loaded already."""
    image = found.image
    notices = [*found.notices, *start(image, max_pixels)]
    raw_mode, deep = raw or raw_mode_of(image)
    lower_bytes = lower_bytes_of(image, raw_mode)
    image.load()
    if image.width * image.height > max_pixels:  # some kinds know their size only now
        raise FileError(f"has {image.width}×{image.height} pixels, above the limit of {max_pixels}")
    deep |= int(image.info.get("bit_depth") or 8) > 8 and image.format == "HEIF"
    if deep and image.mode in ("L", "LA", "RGB", "RGBA"):
        notices.append(f"{image.info.get('bit_depth', 16)} bits per sample reduced to 8")
    pixels, alpha = samples_of(image, raw_mode, notices, lower_bytes)
    grey = pixels.shape[2] == 1
    # a profile of ink or Lab values describes what was converted
    icc = None if image.mode in ("CMYK", "LAB") else icc_of(image, found.code_points, grey, notices)
    xmp = xmp_of(image)
    orientation, exif, exif_notices = exif_of(image)
    notices.extend(exif_notices)
    extras = extras_of(image, sides_change_places(orientation) or turned_by_pillow(image), notices)
    if orientation != 1:
        pixels = upright(pixels, orientation)
        alpha = None if alpha is None else upright(alpha, orientation)
        if xmp is not None:
            xmp = xmp_of_upright_picture(xmp, orientation)
    return Picture(_owned(pixels), None if alpha is None else _owned(alpha), icc, exif, xmp, tuple(notices), extras)


def xmp_of(image: Image.Image) -> bytes | None:
    """The XMP packet as it is in the file."""
    xmp = image.info.get("xmp") or raw_profile(image, "xmp")
    if not xmp and (segment := raw_profile(image, "APP1")) is not None and segment.startswith(XMP_NAME):
        xmp = segment.removeprefix(XMP_NAME)
    return (xmp.encode() if isinstance(xmp, str) else xmp) or None


def _owned(samples: Samples) -> Samples:
    """Contiguous and writable, as torch requires; Pillow's arrays may be neither."""
    return np.require(samples, requirements=["C", "W"])


def _frame_count(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except PARSER_ERRORS:  # a later frame is broken, on which the first one does not depend
        return 2


def raw_mode_of(image: Image.Image) -> tuple[str, bool]:
    """How the file stores a sample (in Pillow's terms, '' where unknown), and whether that is more than 8 bits; before load()."""
    tiles = getattr(image, "tile", None)
    found: Any = tiles[0][3] if tiles else None
    arguments: tuple[Any, ...] = found if isinstance(found, tuple) and found else (found,)
    raw_mode = arguments[0] if isinstance(arguments[0], str) else ""
    largest_sample = arguments[1] if tiles and tiles[0][0].startswith("ppm") and len(arguments) > 1 else 0
    return raw_mode, ";16" in raw_mode or largest_sample > 255
