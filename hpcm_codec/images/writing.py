"""Pictures into image files."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.files import file_error, write_atomically
from hpcm_codec.images.picture import EXIF_PREFIX, PARSER_ERRORS, Picture

JPEG_SEGMENT = 65533  # bytes of metadata a JPEG segment holds
XMP_OVERHEAD = 29  # bytes of the name in front of XMP in a JPEG segment


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
