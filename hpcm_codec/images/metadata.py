"""EXIF and XMP: reading them, and setting their orientation to upright without changing another byte."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from typing import NamedTuple

from PIL import ExifTags, Image

from hpcm_codec.images.extras import raw_profile
from hpcm_codec.images.picture import EXIF_PREFIX, ORIENTATION, PARSER_ERRORS, Samples

NOT_RESET = "its EXIF says that the picture is to be turned, which could not be reset; the picture is upright, the EXIF was left out"
NO_BYTE_ORDER = "its EXIF begins with no byte order mark, it was left out"
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_ENTRY_BYTES = 12
_SHORT, _LONG, _IFD = 3, 4, 13
# pairs of tags about the picture's two sides, in the first directory and in EXIF's own; they change places when rows become columns
_SIDES = ((0x0100, 0x0101), (0x011A, 0x011B))
_SIDES_IN_EXIF = ((0xA002, 0xA003), (0xA20E, 0xA20F))
_SIDES_IN_XMP = (
    (b"tiff:ImageWidth", b"tiff:ImageLength"),
    (b"tiff:XResolution", b"tiff:YResolution"),
    (b"exif:PixelXDimension", b"exif:PixelYDimension"),
    (b"exif:FocalPlaneXResolution", b"exif:FocalPlaneYResolution"),
)


class FoundExif(NamedTuple):
    """orientation: 1 .. 8, the one to be applied; content: EXIF of the upright picture; notices: what had to be left out."""

    orientation: int
    content: bytes | None
    notices: tuple[str, ...] = ()


def sides_change_places(orientation: int) -> bool:
    """Whether applying an EXIF orientation makes rows of columns."""
    return orientation >= 5


def upright(samples: Samples, orientation: int) -> Samples:
    """Samples (H×W or H×W×C) stored under an EXIF orientation (2 .. 8), the way they are meant to be seen."""
    if sides_change_places(orientation):
        samples = samples.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return samples[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def exif_of(image: Image.Image) -> FoundExif:
    """Orientation (1 where it is missing or makes no sense), and EXIF that says 1 and begins with its byte order mark.

    What a program has changed in `image.getexif()` counts. EXIF too broken to be read is kept, but cannot turn the picture.
    """
    if image.format == "TIFF":  # Pillow has turned it already, and its EXIF is mixed with the layout of the file
        return FoundExif(1, exif_of_tiff(image))
    raw = _bytes_of(image)
    orientation = _orientation(image, raw)
    if not raw:
        return FoundExif(1 if image.format == "JXL" else orientation, None)
    if raw[:2] not in _BYTE_ORDERS:
        return FoundExif(orientation, None, (NO_BYTE_ORDER,))
    if orientation == 1:
        return FoundExif(1, raw)
    if (
        image.format == "JXL"
    ):  # its decoder has turned the picture, by what the format itself says; EXIF does not count there
        return FoundExif(1, of_upright_picture(raw, orientation))
    content = of_upright_picture(raw, orientation)
    return FoundExif(orientation, content, () if content is not None else (NOT_RESET,))


def orientation_of(image: Image.Image) -> int:
    """The orientation (1 .. 8) that is still to be applied to an image's pixels."""
    return 1 if image.format in ("TIFF", "JXL") else _orientation(image, _bytes_of(image))


def _orientation(image: Image.Image, raw: bytes) -> int:
    found = None
    with suppress(*PARSER_ERRORS):
        found = _parsed(raw).get(ORIENTATION)
    if found is None:
        with suppress(*PARSER_ERRORS):
            found = image.getexif().get(ORIENTATION)  # Pillow looks into XMP too
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _bytes_of(image: Image.Image) -> bytes:
    """EXIF of an image that is no TIFF, as it is in the file, or as a program has changed it since; empty where there is none."""
    raw = image.info.get("exif")
    if not isinstance(raw, bytes):
        raw = raw_profile(image, "exif") or b""
        segment = raw_profile(image, "APP1") or b""
        if not raw and _without_prefixes(segment)[:2] in _BYTE_ORDERS and not len(image.getexif()):
            return _without_prefixes(segment)  # which Pillow does not support
    with suppress(*PARSER_ERRORS):
        before = Image.Exif()
        before.load(raw)  # first: where this raises, Pillow's own is empty from its second call on
        now = image.getexif()
        if _content(now) != _content(before):
            return _without_prefixes(now.tobytes()) if len(now) else b""
    return _without_prefixes(raw)


def _without_prefixes(exif: bytes) -> bytes:
    while exif.startswith(EXIF_PREFIX):  # some programs write it twice
        exif = exif[len(EXIF_PREFIX) :]
    return exif


def _parsed(exif: bytes | bytearray) -> Image.Exif:
    parsed = Image.Exif()
    if exif:
        parsed.load(EXIF_PREFIX + bytes(exif))
    return parsed


def _content(exif: Image.Exif) -> str:
    """All that EXIF says, for comparing; as text, in which even what is not a number equals itself."""
    directories = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop)
    return repr([sorted(dict(exif).items()), *(sorted(exif.get_ifd(directory).items()) for directory in directories)])


def exif_of_tiff(image: Image.Image) -> bytes | None:
    """EXIF of a TIFF's tags that are about the picture; its pixels are loaded, and so turned already."""
    about_the_picture = ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "Copyright")
    try:
        turned = turned_by_pillow(image)
        found = image.getexif()
        kept = Image.Exif()
        for tag in (int(ExifTags.Base[name]) for name in about_the_picture):
            if tag in found:
                kept[tag] = found[tag]
        for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if content := found.get_ifd(directory):
                if turned and directory == ExifTags.IFD.Exif:
                    other = {tag: twin for pair in _SIDES_IN_EXIF for tag, twin in (pair, pair[::-1])}
                    content = {other.get(tag, tag): value for tag, value in content.items()}
                kept.get_ifd(directory).update(content)
                kept[int(directory)] = content
        return kept.tobytes().removeprefix(EXIF_PREFIX) if len(kept) else None
    except PARSER_ERRORS:  # broken tags are ignored: the picture itself is readable
        return None


def turned_by_pillow(image: Image.Image) -> bool:
    """Whether Pillow has made rows of a TIFF's columns while it read the pixels; of a square it does not matter."""
    layout = getattr(image, "tag_v2", {})
    return (layout.get(0x0100), layout.get(0x0101)) == (image.height, image.width) != image.size


def of_upright_picture(exif: bytes, orientation: int) -> bytes | None:
    """EXIF of a picture that had this orientation (2 .. 8) and is upright now; None where that cannot be written.

    Every orientation in the first directory, of whatever type, becomes 1, and where rows have become columns width and height change
    places; not one other byte is changed.
    """
    order = _BYTE_ORDERS[exif[:2]]
    changed = bytearray(exif)
    try:
        (first,) = struct.unpack_from(f"{order}I", exif, 4)
        entries = _entries(exif, order, first)
        for tag, place in entries:
            if tag == ORIENTATION:
                _set_short(changed, order, place, 1)
        if sides_change_places(orientation):
            _exchange(changed, order, entries, _SIDES)
            for directory in _directories_of(exif, order, entries):
                _exchange(changed, order, _entries(exif, order, directory), _SIDES_IN_EXIF)
        return bytes(changed) if _parsed(changed).get(ORIENTATION, 1) == 1 else None
    except PARSER_ERRORS:
        return None


def xmp_of_upright_picture(xmp: bytes, orientation: int) -> bytes:
    """An XMP packet of a picture that had this orientation (2 .. 8) and is upright now; other bytes stay as they are."""
    xmp = re.sub(rb"(tiff:Orientation(?:=[\"']|>))[2-8]", rb"\g<1>1", xmp)
    if not sides_change_places(orientation):
        return xmp
    other = {name: twin for pair in _SIDES_IN_XMP for name, twin in (pair, pair[::-1])}
    return re.sub(rb"\b(?:" + b"|".join(other) + rb")\b", lambda match: other[match[0]], xmp)


def exif_of_size(exif: bytes, width: int, height: int) -> bytes:
    """EXIF of a picture that has that size now: what it says of width and height is set, where it says something, and nothing else."""
    changed = bytearray(exif)
    with suppress(*PARSER_ERRORS):
        order = _BYTE_ORDERS[exif[:2]]
        first = _entries(exif, order, struct.unpack_from(f"{order}I", exif, 4)[0])
        found = [(first, _SIDES[0])]
        found += [(_entries(exif, order, place), _SIDES_IN_EXIF[0]) for place in _directories_of(exif, order, first)]
        for entries, tags in found:
            for tag, place in entries:
                if tag in tags:
                    struct.pack_into(f"{order}HII", changed, place + 2, _LONG, 1, (width, height)[tags.index(tag)])
    return bytes(changed)


def xmp_of_size(xmp: bytes, width: int, height: int) -> bytes:
    """The same for an XMP packet."""
    for names, size in zip(zip(*_SIDES_IN_XMP[::2], strict=True), (width, height), strict=True):
        pattern = rb"(\b(?:" + b"|".join(names) + rb")(?:=[\"']|>))\d+"
        xmp = re.sub(pattern, rb"\g<1>%d" % size, xmp)
    return xmp


def _entries(exif: bytes, order: str, directory: int) -> list[tuple[int, int]]:
    """Tag and place of the entries of a directory, up to where the data ends."""
    (count,) = struct.unpack_from(f"{order}H", exif, directory)
    begin = directory + 2
    places = range(begin, min(begin + _ENTRY_BYTES * count, len(exif) - _ENTRY_BYTES + 1), _ENTRY_BYTES)
    return [(struct.unpack_from(f"{order}H", exif, place)[0], place) for place in places]


def _directories_of(exif: bytes, order: str, entries: list[tuple[int, int]]) -> list[int]:
    """Where EXIF's own directories begin that entries of the first one point to."""
    found = []
    for tag, place in entries:
        kind, _, offset = struct.unpack_from(f"{order}HII", exif, place + 2)
        if tag == ExifTags.IFD.Exif and kind in (_LONG, _IFD) and offset + 2 <= len(exif):
            found.append(offset)
    return found


def _set_short(exif: bytearray, order: str, place: int, value: int) -> None:
    """Make an entry the single SHORT of that value."""
    if struct.unpack_from(f"{order}HI", exif, place + 2) != (_SHORT, 1):
        struct.pack_into(f"{order}HII", exif, place + 2, _SHORT, 1, 0)
    struct.pack_into(f"{order}H", exif, place + 8, value)


def _exchange(exif: bytearray, order: str, entries: list[tuple[int, int]], pairs: tuple[tuple[int, int], ...]) -> None:
    """Let the tags of each pair change their values; one that is alone becomes the other."""
    places = dict(entries)
    for pair in pairs:
        there = [tag for tag in pair if tag in places]
        if len(there) == 2:
            one, two = (slice(places[tag] + 2, places[tag] + _ENTRY_BYTES) for tag in pair)
            exif[one], exif[two] = exif[two], exif[one]
        elif there:
            struct.pack_into(f"{order}H", exif, places[there[0]], pair[1 - pair.index(there[0])])
