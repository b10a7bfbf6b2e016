"""Pictures into image files."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.images import plugins
from hpcm_codec.images.extras import IPTC_TAG, as_raw_profile, info_of, photoshop_segment
from hpcm_codec.images.picture import COMMENT, EXIF_PREFIX, PARSER_ERRORS, Picture, Samples, StripPicture, is_large
from hpcm_codec.images.plain import LARGEST_TIFF, ppm_start, tiff_start
from hpcm_codec.images.png import HELD_BYTES, LEVEL, png_in_strips
from hpcm_codec.system.files import file_error, write_atomically

JPEG_SEGMENT = 65533  # bytes of metadata a JPEG segment holds
# bytes a pixel, rounded up from 39 MP written by Pillow 13, and of the last two from 4 MP
WRITERS_HOLD = {"JPEG": 6, "WEBP": 28, "JXL": 56, "HEIF": 48}
JPEG_DPI = 65535  # a JPEG's resolution is below this
IPTC_OVERHEAD = 27  # bytes around IPTC in a JPEG segment
XMP_OVERHEAD = 29  # bytes of the name in front of XMP in a JPEG segment


@dataclass(frozen=True)
class _Format:
    """What an output format can hold, and Pillow's settings for it."""

    extensions: tuple[str, ...]
    settings: dict[str, Any]
    alpha: bool = False
    grey: bool = True
    metadata: bool = False  # ICC, EXIF and XMP
    iptc: bool = False
    dpi: bool = False
    texts: bool = False  # any; JPEG has room for the comment
    longest_side: int = 2**31 - 1


FORMATS = {
    "PNG": _Format((".png",), {"compress_level": LEVEL}, alpha=True, metadata=True, iptc=True, dpi=True, texts=True),
    "JPEG": _Format(
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        {"quality": 95, "subsampling": 0, "optimize": True},
        metadata=True,
        iptc=True,
        dpi=True,
        longest_side=65500,
    ),
    "WEBP": _Format(
        (".webp",), {"lossless": True, "exact": True}, alpha=True, grey=False, metadata=True, longest_side=16383
    ),
    "TIFF": _Format((".tif", ".tiff"), {}, alpha=True, metadata=True, iptc=True, dpi=True),
    "PPM": _Format((".ppm", ".pgm", ".pnm"), {}),
    "BMP": _Format((".bmp",), {}, dpi=True),
    "JXL": _Format((".jxl",), {"lossless": True, "use_original_profile": True}, alpha=True, metadata=True),
    "HEIF": _Format(
        (".heic", ".heif"),
        {"quality": -1, "chroma": 444, "matrix_coefficients": 0},  # of which libheif makes lossless RGB
        alpha=True,
        grey=False,
        metadata=True,
        longest_side=16384,
    ),
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


def picture_to_pil(picture: Picture | StripPicture) -> Image.Image:
    """A Pillow image of mode L, LA, RGB or RGBA, with ICC profile, EXIF and XMP in its `info`; takes the strips."""
    image = _image_of(picture, picture.alpha)
    exif = None if picture.exif is None else EXIF_PREFIX + picture.exif
    info = {"icc_profile": picture.icc, "exif": exif, "xmp": picture.xmp, **info_of(picture.extras)}
    image.info.update({key: value for key, value in info.items() if value is not None})
    return image


def _image_of(picture: Picture | StripPicture, alpha: Samples | None) -> Image.Image:
    """The pixels alone, strip by strip, so that beside the image no second copy is made."""
    whole: Image.Image | None = None
    top = 0
    for strip in picture.strips:
        planes = strip if alpha is None else np.dstack([strip, alpha[top : top + len(strip)]])
        part = Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)
        if part.height == picture.height:
            return part
        whole = whole or Image.new(_mode_of(picture, alpha), (picture.width, picture.height))
        whole.paste(part, (0, top))
        top += len(strip)
    assert whole is not None  # a picture has at least one row
    return whole


def _mode_of(picture: Picture | StripPicture, alpha: Samples | None) -> str:
    return ("L" if picture.grey else "RGB") + ("" if alpha is None else "A")


def held_bytes(format: str, width: int, height: int, *, alpha: bool, exif: bool, to_stdout: bool = False) -> int:
    """Bytes of the picture that `write_picture` holds at once while it writes strips in a format (a key of FORMATS)."""
    pixels = width * height
    in_strips = _goes_in_strips(format, width, height, alpha=alpha, exif=exif)
    strips = HELD_BYTES if format == "PNG" else 0
    held = strips if in_strips else pixels * (4 + WRITERS_HOLD.get(format, 1))  # Pillow's image has 4
    return held + pixels * ((1 if alpha else 0) + (4 if to_stdout else 0))


def _goes_in_strips(format: str, width: int, height: int, *, alpha: bool, exif: bool) -> bool:
    """Whether the rows can go to the file as they come. The directory of a TIFF's EXIF is left to Pillow, and so are small PNGs."""
    if format == "TIFF":
        return not alpha and not exif and 3 * width * height < LARGEST_TIFF
    return format == "PPM" or (format == "PNG" and is_large(width, height))


def write_picture(
    picture: Picture | StripPicture,
    target: str | os.PathLike[str] | BinaryIO,
    format: str | None = None,
    *,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a picture to a path (whole or not at all) or a binary file, losslessly but for JPEG (quality 95, 4:4:4).

    picture:   its strips are taken; PPM, PNG of more than LARGE_PIXELS, and TIFF without EXIF and transparency go to the file as they
               come, for all others a Pillow image is filled.
    format:    a key of FORMATS; for a path, None means by its extension.
    overwrite: replace an existing file.
    Returns notices: metadata the format cannot hold. Raises FileError when the format cannot hold the pixels (transparency in JPEG,
    sides too long), is not known, or the file cannot be written; and what the strips raise.
    """
    name = os.fspath(target) if isinstance(target, (str, os.PathLike)) else "the output"
    format = format or format_for(name)
    if format not in FORMATS:
        raise FileError(f"there is no output format {format}", file=name, advice=f"use one of {' '.join(FORMATS)}")
    if format in plugins.NAMES and not plugins.is_there(format):
        reason = f"{plugins.NAMES[format]} needs a writer that is not installed"
        raise FileError(reason, file=name, advice=plugins.ADVICE)
    try:
        alpha = _alpha_for(picture, format)
        metadata, notices = _metadata_for(picture, format)
        write: Callable[[BinaryIO], object]
        if _goes_in_strips(format, picture.width, picture.height, alpha=alpha is not None, exif="exif" in metadata):
            if format == "PNG":
                write = png_in_strips(picture, alpha, _one_pixel(picture, alpha, format, metadata, notices))
            else:
                start = ppm_start if format == "PPM" else tiff_start
                write = _in_strips(picture, *start(picture.width, picture.height, picture.grey, metadata))
        else:
            image = _image_of(picture, alpha)
            if not FORMATS[format].grey and picture.grey:
                image = image.convert("RGB" if alpha is None else "RGBA")
            write = _by_pillow(image, format, metadata, notices)
    except HpcmError as error:
        raise error.in_file(name) from error.__cause__
    if isinstance(target, (str, os.PathLike)):
        write_atomically(target, write, overwrite)
    else:
        try:
            write(target)
        except OSError as error:
            raise file_error(name, error) from error
        except FileError as error:
            raise error.in_file(name) from error.__cause__
    return tuple(notices)


def _in_strips(picture: Picture | StripPicture, start: bytes, end: bytes) -> Callable[[BinaryIO], object]:
    def write(file: BinaryIO) -> None:
        file.write(start)
        for strip in picture.strips:
            file.write(np.ascontiguousarray(strip).data)
        file.write(end)

    return write


def _one_pixel(
    picture: Picture | StripPicture, alpha: Samples | None, format: str, metadata: dict[str, Any], notices: list[str]
) -> bytes:
    """A file of one black pixel with the picture's mode and metadata, as Pillow writes it."""
    file = io.BytesIO()
    _by_pillow(Image.new(_mode_of(picture, alpha), (1, 1)), format, metadata, notices)(file)
    return file.getvalue()


def _by_pillow(
    image: Image.Image, format: str, metadata: dict[str, Any], notices: list[str]
) -> Callable[[BinaryIO], object]:
    """A function that saves the image; appends to the notices what had to be left out."""

    def save(file: BinaryIO) -> None:
        settings = {**FORMATS[format].settings, **_settings_for(format, metadata)}
        image.save(_WithoutDescriptor(file), format, **settings)  # type: ignore[arg-type]

    def write(file: BinaryIO) -> None:
        if not file.seekable():
            buffer = io.BytesIO()
            write(buffer)
            file.write(buffer.getbuffer())
            return
        beginning = file.tell()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    save(file)
                except PARSER_ERRORS as error:
                    if "exif" not in metadata or getattr(error, "errno", None) is not None:
                        raise
                    del metadata["exif"]  # the one part that Pillow takes apart (TIFF), and that may be broken
                    notices.append(f"{format} cannot hold this EXIF, it was left out")
                    file.seek(beginning)
                    file.truncate()
                    save(file)
        except Exception as error:  # Pillow's writers, like its readers, raise exceptions of many kinds
            if isinstance(error, HpcmError) or getattr(error, "errno", None) is not None:
                raise
            raise FileError(f"cannot be written as {format} ({error})", advice="choose PNG") from error

    return write


class _WithoutDescriptor:
    """A file that Pillow must write to through its methods: when it writes to the descriptor itself, it does not detect a short write."""

    def __init__(self, file: BinaryIO) -> None:
        self.write, self.seek, self.tell, self.flush = file.write, file.seek, file.tell, file.flush


def _alpha_for(picture: Picture | StripPicture, format: str) -> Samples | None:
    """The alpha plane as the format holds it; raises FileError for a picture that the format cannot hold."""
    rules, alpha = FORMATS[format], picture.alpha
    if max(picture.width, picture.height) > rules.longest_side:
        raise FileError(f"{format} holds at most {rules.longest_side} pixels a side", advice="choose PNG or TIFF")
    if alpha is not None and not rules.alpha:
        if alpha.min() < 255:
            raise FileError(f"the picture has transparency, which {format} cannot hold", advice="choose PNG or WebP")
        return None  # opaque throughout: nothing is lost
    return alpha


def _metadata_for(picture: Picture | StripPicture, format: str) -> tuple[dict[str, Any], list[str]]:
    """What of the metadata the format can hold, as Pillow's `save` names it, and notices about the rest."""
    rules = FORMATS[format]
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
    extras = picture.extras
    if extras.dpi is not None and rules.dpi and (format != "JPEG" or max(extras.dpi) < JPEG_DPI):
        metadata["dpi"] = extras.dpi
    elif extras.dpi is not None:
        left_out.append(f"{format} cannot hold this resolution, it was left out")
    if extras.iptc is not None and rules.iptc and len(extras.iptc) + IPTC_OVERHEAD <= limit:
        metadata["iptc"] = extras.iptc
    elif extras.iptc is not None:
        left_out.append(f"{format} cannot hold these IPTC data, they were left out")
    comment_fits = format == "JPEG" and len((extras.comment or "").encode()) <= limit
    kept = [entry for entry in extras.texts if rules.texts or (comment_fits and entry[0] == COMMENT)]
    if kept:
        metadata["texts"] = kept
    if lost := [entry[0] for entry in extras.texts if entry not in kept]:
        left_out.append(f"{format} cannot hold these texts ({', '.join(lost)}), they were left out")
    return metadata, left_out


def _settings_for(format: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Pillow's `save` arguments for metadata; PNG and TIFF have no argument for XMP."""
    settings = dict(metadata)
    iptc, texts = settings.pop("iptc", None), settings.pop("texts", ())
    if format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if "xmp" in settings:
            chunks.add(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + settings.pop("xmp"))
        for keyword, text in texts:
            chunks.add_text(keyword, text)  # which takes iTXt for what is not Latin-1
        if iptc is not None:
            chunks.add_text("Raw profile type iptc", as_raw_profile(iptc), zip=True)
        settings["pnginfo"] = chunks
    if format == "JPEG":
        if texts:
            settings["comment"] = texts[0][1].encode()
        settings["extra"] = b"" if iptc is None else photoshop_segment(iptc)
    if format == "TIFF" and ("xmp" in settings or iptc is not None):
        tags = Image.Exif()
        if "exif" in settings:
            tags.load(settings["exif"])
        if "xmp" in settings:
            tags[int(ExifTags.Base.XMLPacket)] = settings.pop("xmp")
        if iptc is not None:
            tags[IPTC_TAG] = iptc
        settings["exif"] = tags
    return settings
