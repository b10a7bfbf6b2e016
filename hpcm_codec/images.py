"""Pictures in and out of image files, through Pillow.

Everything Pillow can read becomes a `Picture`: 8-bit RGB or grey samples, upright, with transparency, ICC profile, EXIF and XMP beside
them. Whatever a picture loses on the way (bits, frames, a CMYK profile) is told in a notice. Whatever cannot be read ends in a
FileError with a reason; Pillow's own exceptions and warnings stay in here.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from hpcm_codec.container import DEFAULT_MAX_PIXELS
from hpcm_codec.errors import CorruptStreamError, FileError, HpcmError
from hpcm_codec.files import file_error, write_atomically

Samples = NDArray[np.uint8]

# Pillow's readers for plain raster formats: none of those that start other programs (EPS) or only describe a file (PDF, HDF5)
READABLE = [
    *("PNG", "JPEG", "WEBP", "TIFF", "PPM", "BMP", "DIB", "GIF", "AVIF", "JPEG2000", "TGA", "PCX", "DCX", "ICO"),
    *("ICNS", "PSD", "SGI", "QOI", "DDS", "SUN", "XBM", "XPM", "MSP", "IM"),
]
NOT_AN_IMAGE = ("not an image, or of a kind this build cannot read", "check the file, or convert it to PNG")
ORIENTATION = int(ExifTags.Base.Orientation)
EXIF_PREFIX = b"Exif\0\0"  # JPEG's framing of EXIF, not part of `Picture.exif`
JPEG_SEGMENT = 65533  # bytes of metadata a JPEG segment holds
# what Pillow's parsers of secondary parts raise on broken ones
PARSER_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, struct.error, zlib.error),
)
XMP_OVERHEAD = 29  # bytes of the name in front of XMP in a JPEG segment


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


# ---------------------------------------------------------------------------------------------------------------- reading


def read_picture(
    source: str | os.PathLike[str] | bytes | BinaryIO, *, name: str | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Picture:
    """Read an image from a path, bytes or a binary file; its format is found from its content, its first frame is taken.

    name:       what to call it in errors; for a path, the path.
    max_pixels: larger pictures are refused before their pixels are read (Pillow refuses above 2²⁸·4/3 in any case).
    Raises FileError when it is missing, unreadable, truncated, broken, too large or not an image.
    """
    if isinstance(source, (str, os.PathLike)):
        name = name or os.fspath(source)
        try:
            with open(source, "rb") as file:
                return read_picture(file, name=name, max_pixels=max_pixels)
        except OSError as error:
            raise file_error(name, error) from error
        except ValueError as error:
            raise FileError("not a possible file name", file=repr(name), advice="check the path") from error
    name = name or "the image"
    with _pillow_errors_as_file_errors(name):
        if isinstance(source, bytes):
            source = io.BytesIO(source)
        elif not source.seekable():
            source = io.BytesIO(source.read())
        if not source.read(1):
            raise FileError("not an image: it is empty", file=name, advice="get the file again")
        source.seek(0)
        Image.init()
        with Image.open(source, formats=[kind for kind in READABLE if kind in Image.OPEN]) as image:
            return _picture(image, max_pixels)


def picture_from_pil(image: Image.Image, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """What `read_picture` makes of a file, made of a Pillow image of any mode; the image may have to load its pixels first.

    Raises FileError when they cannot be loaded or converted.
    """
    with _pillow_errors_as_file_errors("the image"):
        return _picture(image, max_pixels)


@contextmanager
def _pillow_errors_as_file_errors(name: str) -> Iterator[None]:
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
    except Exception as error:  # on broken files Pillow's readers raise nearly every kind there is
        detail = str(error) or type(error).__name__
        raise FileError(f"a damaged or truncated image ({detail})", file=name, advice="get the file again") from error


def _picture(image: Image.Image, max_pixels: int) -> Picture:
    width, height = image.size
    if width < 1 or height < 1:
        raise FileError(f"has no pixels ({width}×{height})", advice="use another picture")
    if width * height > max_pixels:
        raise FileError(f"has {width}×{height} pixels, above the limit of {max_pixels}", advice="use a smaller picture")
    notices: list[str] = []
    frames = _frame_count(image)
    if frames > 1:
        notices.append(f"first of {frames} frames taken")
        image.seek(0)
    raw_mode, deep = _raw_mode(image)
    image.load()
    if image.width * image.height > max_pixels:  # some kinds know their size only now
        raise FileError(f"has {image.width}×{image.height} pixels, above the limit of {max_pixels}")
    if deep and image.mode in ("L", "LA", "RGB", "RGBA"):
        notices.append("16 bits per sample reduced to 8")
    pixels, alpha = _samples(image, raw_mode, notices)
    icc = image.info.get("icc_profile") or None
    if image.mode in ("CMYK", "LAB"):
        icc = None  # it describes ink or Lab values, which are gone
    xmp = image.info.get("xmp") or None
    if isinstance(xmp, str):
        xmp = xmp.encode()
    orientation, exif = _exif(image)
    if orientation != 1:
        pixels = _upright(pixels, orientation)
        alpha = None if alpha is None else _upright(alpha, orientation)
        if xmp is not None:
            xmp = re.sub(rb"(tiff:Orientation(?:=[\"']|>))[2-8]", rb"\g<1>1", xmp)
    return Picture(_owned(pixels), None if alpha is None else _owned(alpha), icc, exif, xmp, tuple(notices))


def _owned(samples: Samples) -> Samples:
    """Contiguous and writable, as torch wants it; Pillow's arrays are neither for certain."""
    return np.require(samples, requirements=["C", "W"])


def _frame_count(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except PARSER_ERRORS:  # a later frame is broken, which the first one does not care about
        return 2


def _raw_mode(image: Image.Image) -> tuple[str, bool]:
    """How the file stores a sample (in Pillow's terms, '' where unknown), and whether that is more than 8 bits; before load()."""
    tiles = getattr(image, "tile", None)
    found: Any = tiles[0][3] if tiles else None
    arguments: tuple[Any, ...] = found if isinstance(found, tuple) and found else (found,)
    raw_mode = arguments[0] if isinstance(arguments[0], str) else ""
    largest_sample = arguments[1] if tiles and tiles[0][0].startswith("ppm") and len(arguments) > 1 else 0
    return raw_mode, ";16" in raw_mode or largest_sample > 255


# ---------------------------------------------------------------------------------------------------------------- samples


def _samples(image: Image.Image, raw_mode: str, notices: list[str]) -> tuple[Samples, Samples | None]:
    """8-bit pixels (H×W×1 or H×W×3) and alpha of a loaded image of any mode."""
    mode = image.mode
    if mode in ("L", "1", "RGB", "RGBX"):
        pixels = _array(image.convert("RGB") if mode == "RGBX" else image.convert("L") if mode == "1" else image)
        return pixels, _keyed_alpha(pixels, image, raw_mode)
    if mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        samples = _array(image.convert({"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}.get(mode, mode)))
        colours = 1 if mode in ("LA", "La") or raw_mode.startswith("LA") else 3  # Pillow spreads 16-bit LA to RGBA
        return samples[..., :colours], samples[..., -1]
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image)
        alpha = None
        key = image.info.get("transparency")
        if isinstance(key, int):
            alpha = np.where(values == key, 0, 255).astype(np.uint8)
        return _reduced(values, notices)[..., None], alpha
    if mode == "P":
        transparent = "transparency" in image.info or (image.palette is not None and image.palette.mode.endswith("A"))
        samples = _array(image.convert("RGBA" if transparent else "RGB"))
        return samples[..., :3], samples[..., 3] if transparent else None
    if mode == "CMYK":
        return _array(_cmyk_to_rgb(image, notices)), None
    if mode == "LAB":
        notices.append("Lab converted to RGB")
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, to_rgb)
        assert converted is not None  # only an in-place transform gives None
        return _array(converted), None
    return _array(image.convert("RGB")), None  # YCbCr, HSV and whatever else has three colours


def _array(image: Image.Image) -> Samples:
    samples = np.asarray(image, dtype=np.uint8)
    return samples[..., None] if samples.ndim == 2 else samples


def _keyed_alpha(pixels: Samples, image: Image.Image, raw_mode: str) -> Samples | None:
    """Alpha of an image of which one colour is transparent (PNG's tRNS, GIF's transparent index); None when none is."""
    key: Any = image.info.get("transparency")
    if not isinstance(key, (int, tuple)):
        return None
    colour = np.array(key if isinstance(key, tuple) else [key], dtype=np.int64)
    if len(colour) != pixels.shape[2]:
        return None
    if ";16" in raw_mode:
        colour >>= 8  # Pillow keeps the upper byte of 16-bit colours
    colour *= {"L;2": 85, "L;4": 17}.get(raw_mode, 1)  # Pillow spreads the samples to 0 .. 255, but not the key
    return np.where((pixels == colour).all(axis=-1), 0, 255).astype(np.uint8)


def _reduced(values: NDArray[Any], notices: list[str]) -> Samples:
    """Deep grey samples to 8 bits: 0 .. 65535 by rounding, 0 .. 1 in floating point likewise, anything else from its own range."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values.astype(np.float64))
        low, high, kind = 0.0, 1.0, "floating point samples"
    else:
        values = values.astype(np.int64)
        low, high, kind = 0.0, 65535.0, "16 bits per sample"
    smallest, largest = float(values.min()), float(values.max())
    if smallest < low or largest > high:
        low, high = smallest, largest
        notices.append(f"samples from {low:g} to {high:g} spread over 8 bits")
    else:
        notices.append(f"{kind} reduced to 8{' bits' if kind.startswith('f') else ''}")
    return np.floor((values - low) * 255 / (high - low) + 0.5).astype(np.uint8)


def _cmyk_to_rgb(image: Image.Image, notices: list[str]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            converted = None  # a broken profile, or one of another colour space
        if converted is not None:
            notices.append("CMYK converted to RGB through its ICC profile")
            return converted
    notices.append("CMYK converted to RGB without a profile, colours are approximate")
    return image.convert("RGB")


# --------------------------------------------------------------------------------------------------------------- metadata


def _upright(samples: Samples, orientation: int) -> Samples:
    """Samples (H×W or H×W×C) stored under an EXIF orientation (2 .. 8), the way they are meant to be seen."""
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return samples[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _exif(image: Image.Image) -> tuple[int, bytes | None]:
    """Orientation (1 .. 8; 1 where it is missing or makes no sense), and EXIF that says 1."""
    if image.format == "TIFF":  # Pillow has turned it already, and its EXIF is mixed with the layout of the file
        return 1, _exif_of_tiff(image)
    try:
        parsed = image.getexif()
        orientation = parsed.get(ORIENTATION, 1)
    except PARSER_ERRORS:  # EXIF too broken to be read is kept, but cannot turn the picture
        parsed, orientation = Image.Exif(), 1
    if not isinstance(orientation, int) or not 1 <= orientation <= 8:
        orientation = 1
    raw = image.info.get("exif")
    if not isinstance(raw, bytes):
        raw = parsed.tobytes() if "Raw profile type exif" in image.info else b""
    raw = raw.removeprefix(EXIF_PREFIX)
    return orientation, (_with_orientation_1(raw) if orientation != 1 else raw) or None


def _exif_of_tiff(image: Image.Image) -> bytes | None:
    about_the_picture = ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "Copyright")
    try:
        found = image.getexif()
        kept = Image.Exif()
        for tag in (int(ExifTags.Base[name]) for name in about_the_picture):
            if tag in found:
                kept[tag] = found[tag]
        for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if content := found.get_ifd(directory):
                kept.get_ifd(directory).update(content)
                kept[int(directory)] = content
        return kept.tobytes().removeprefix(EXIF_PREFIX) if len(kept) else None
    except PARSER_ERRORS:  # broken tags: the picture counts, they do not
        return None


def _with_orientation_1(exif: bytes) -> bytes:
    """The same EXIF with every orientation entry of its first directory set to 1, and not one other byte changed."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    changed = bytearray(exif)
    try:
        if order is None:
            return exif
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for place in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, place)
            if tag == ORIENTATION and kind in (1, 3, 4):
                struct.pack_into(order + {1: "B", 3: "H", 4: "I"}[kind], changed, place + 8, 1)
    except struct.error:
        pass  # cut short: what was found until here is set
    return bytes(changed)


# ---------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class _Format:
    """What an output format can hold, and Pillow's settings for it."""

    extensions: tuple[str, ...]
    settings: dict[str, Any]
    alpha: bool = False
    grey: bool = True
    metadata: bool = False  # ICC, EXIF and XMP
    longest_side: int = 2**31 - 1


FORMATS = {
    "PNG": _Format((".png",), {}, alpha=True, metadata=True),
    "JPEG": _Format(
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        {"quality": 95, "subsampling": 0, "optimize": True},
        metadata=True,
        longest_side=65500,
    ),
    "WEBP": _Format(
        (".webp",), {"lossless": True, "exact": True}, alpha=True, grey=False, metadata=True, longest_side=16383
    ),
    "TIFF": _Format((".tif", ".tiff"), {}, alpha=True, metadata=True),
    "PPM": _Format((".ppm", ".pgm", ".pnm"), {}),
    "BMP": _Format((".bmp",), {}),
}


def format_for(path: str | os.PathLike[str]) -> str:
    """The format (a key of FORMATS) that a file name's extension asks for; FileError when it asks for none we write."""
    extension = os.path.splitext(os.fspath(path))[1].lower()
    for name, rules in FORMATS.items():
        if extension in rules.extensions:
            return name
    known = " ".join(extension for rules in FORMATS.values() for extension in rules.extensions)
    reason = f"no image format is known by the extension {extension}" if extension else "the name has no extension"
    raise FileError(reason, file=path, advice=f"use one of {known}")


def picture_to_pil(picture: Picture) -> Image.Image:
    """A Pillow image of mode L, LA, RGB or RGBA, with ICC profile, EXIF and XMP in its `info`."""
    planes = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    image = Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)
    exif = None if picture.exif is None else EXIF_PREFIX + picture.exif
    info = {"icc_profile": picture.icc, "exif": exif, "xmp": picture.xmp}
    image.info.update({key: value for key, value in info.items() if value is not None})
    return image


def write_picture(
    picture: Picture,
    target: str | os.PathLike[str] | BinaryIO,
    format: str | None = None,
    *,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a picture to a path (whole or not at all) or a binary file, losslessly but for JPEG (quality 95, 4:4:4).

    format:    a key of FORMATS; for a path, None means by its extension.
    overwrite: replace an existing file.
    Returns notices: metadata the format cannot hold. Raises FileError when the format cannot hold the pixels (transparency in JPEG,
    sides too long), is not known, or the file cannot be written.
    """
    is_path = isinstance(target, (str, os.PathLike))
    name = os.fspath(target) if isinstance(target, (str, os.PathLike)) else "the output"
    format = format or format_for(name)
    if format not in FORMATS:
        raise FileError(f"there is no output format {format}", file=name, advice=f"use one of {' '.join(FORMATS)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data, notices = _encoded(picture, format)
    except HpcmError as error:
        raise error.in_file(name) from error.__cause__
    except Exception as error:  # Pillow's writers, like its readers, raise all kinds
        raise FileError(f"cannot be written as {format} ({error})", file=name, advice="choose PNG") from error
    if is_path:
        write_atomically(name, data, overwrite)
    else:
        try:
            target.write(data)  # type: ignore[union-attr]
        except OSError as error:
            raise file_error(name, error) from error
    return notices


def _encoded(picture: Picture, format: str) -> tuple[bytes, tuple[str, ...]]:
    rules = FORMATS[format]
    if max(picture.width, picture.height) > rules.longest_side:
        raise FileError(f"{format} holds at most {rules.longest_side} pixels a side", advice="choose PNG or TIFF")
    alpha = picture.alpha
    if alpha is not None and not rules.alpha:
        if alpha.min() < 255:
            raise FileError(f"the picture has transparency, which {format} cannot hold", advice="choose PNG or WebP")
        alpha = None  # opaque throughout: nothing is lost
    image = picture_to_pil(Picture(picture.pixels, alpha))
    if not rules.grey:
        image = image.convert("RGB" if alpha is None else "RGBA")
    limit = JPEG_SEGMENT if format == "JPEG" else 2**31 - 1
    metadata: dict[str, Any] = {}
    left_out = []
    for label, key, value, overhead, fits in (
        ("ICC profile", "icc_profile", picture.icc, 0, rules.grey or not picture.grey),  # a grey profile fits grey only
        ("EXIF", "exif", picture.exif and EXIF_PREFIX + picture.exif, 0, True),
        ("XMP", "xmp", picture.xmp, XMP_OVERHEAD, True),
    ):
        if value and rules.metadata and fits and (key == "icc_profile" or len(value) + overhead <= limit):
            metadata[key] = value
        elif value:
            left_out.append(f"{format} cannot hold this {label}, it was left out")
    buffer = io.BytesIO()
    try:
        image.save(buffer, format, **rules.settings, **_settings_for(format, metadata))
    except PARSER_ERRORS:
        if "exif" not in metadata:
            raise
        del metadata["exif"]  # the one part that Pillow takes apart (TIFF), and that may be broken
        left_out.append(f"{format} cannot hold this EXIF, it was left out")
        buffer = io.BytesIO()
        image.save(buffer, format, **rules.settings, **_settings_for(format, metadata))
    return buffer.getvalue(), tuple(left_out)


def _settings_for(format: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Pillow's `save` arguments for metadata; PNG and TIFF have no argument for XMP."""
    settings = dict(metadata)
    if format == "PNG" and "xmp" in settings:
        chunks = PngImagePlugin.PngInfo()
        chunks.add(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + settings.pop("xmp"))
        settings["pnginfo"] = chunks
    if format == "TIFF" and "xmp" in settings:
        tags = Image.Exif()
        if "exif" in settings:
            tags.load(settings["exif"])
        tags[int(ExifTags.Base.XMLPacket)] = settings.pop("xmp")
        settings["exif"] = tags
    return settings


# ------------------------------------------------------------------------------------------------------------ alpha plane


def encode_alpha(alpha: Samples) -> bytes:
    """An alpha plane (uint8 H×W) as the payload of the container's alpha extension: an 8-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(alpha).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def decode_alpha(payload: bytes, width: int, height: int) -> Samples:
    """The alpha plane (uint8 H×W) of a picture of this size; CorruptStreamError when the payload is anything else."""
    opening = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBB", width, height, 8, 0)
    if not payload.startswith(opening):  # looked at before Pillow allocates anything
        raise CorruptStreamError("damaged: the alpha plane is not an 8-bit grey PNG of the picture's size")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(payload), formats=["PNG"]) as image:
                if image.mode != "L" or image.size != (width, height):
                    raise ValueError("another mode or size inside")
                return np.array(image)
    except Exception as error:
        raise CorruptStreamError("damaged: the alpha plane cannot be read") from error
