"""EXIF and orientation: found, applied, and set to upright without touching another byte."""

from __future__ import annotations

import struct

from PIL import ExifTags, Image

from hpcm_codec.images.picture import EXIF_PREFIX, ORIENTATION, PARSER_ERRORS, Samples


def upright(samples: Samples, orientation: int) -> Samples:
    """Samples (H×W or H×W×C) stored under an EXIF orientation (2 .. 8), the way they are meant to be seen."""
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return samples[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def exif_of(image: Image.Image) -> tuple[int, bytes | None]:
    """Orientation (1 .. 8; 1 where it is missing or makes no sense), and EXIF that says 1."""
    if image.format == "TIFF":  # Pillow has turned it already, and its EXIF is mixed with the layout of the file
        return 1, exif_of_tiff(image)
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
    return orientation, (with_orientation_1(raw) if orientation != 1 else raw) or None


def exif_of_tiff(image: Image.Image) -> bytes | None:
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


def with_orientation_1(exif: bytes) -> bytes:
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
