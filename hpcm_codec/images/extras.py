"""What a picture carries besides profile, EXIF and XMP: IPTC data, resolution and texts, out of image files and into them."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL import TiffImagePlugin as tiff

from hpcm_codec.images.picture import COMMENT, PARSER_ERRORS, Extras

TEXTS_BYTES = 65535  # of all texts of a picture, with what is around them in a file of ours
_AROUND_TEXT = 8  # bytes, at most
KEYWORD_BYTES = 79  # in Latin-1, as PNG has them
_IPTC_RESOURCE, IPTC_TAG, _PHOTOSHOP_TAG = 0x0404, 33723, 34377
INCH = 0.0254
_LARGEST = 2**32 - 1
_PROFILE = "raw profile type "


# ------------------------------------------------------------------------------------------------------- out of image files


def extras_of(image: Image.Image, sides_changed: bool, notices: list[str]) -> Extras:
    """The extras of a file's image, whose pixels are loaded; notices get what is left out.

    sides_changed: whether the picture is turned so that its rows were columns in the file.
    """
    dpi = _dpi_of(image)
    if dpi is not None and sides_changed:
        dpi = dpi[::-1]
    aspect = image.info.get("aspect")
    if isinstance(aspect, tuple) and len(set(aspect)) > 1:
        notices.append(f"its pixels are not square ({aspect[0]}:{aspect[1]}), which is not kept")
    return Extras(_iptc_of(image), dpi, _texts_of(image, notices))


def thousandths(dpi: float) -> int:
    """A resolution in thousandths of a pixel per metre."""
    return round(dpi / INCH * 1000)


def raw_profile(image: Image.Image, kind: str) -> bytes | None:
    """What ImageMagick wrote into a PNG's text as a "Raw profile type" of that kind (exif, APP1, iptc, xmp, icc); None without one."""
    for keyword, text in image.info.items():
        if isinstance(keyword, str) and isinstance(text, str) and keyword.lower() == _PROFILE + kind.lower():
            lines = text.strip("\n").split("\n")  # a name, the number of bytes, and the bytes in hexadecimal digits
            try:
                return bytes.fromhex("".join(lines[2:]))
            except ValueError:
                return None
    return None


def _dpi_of(image: Image.Image) -> tuple[float, float] | None:
    if image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):
        return None  # Pillow's is that of EXIF, which is kept itself
    try:
        across, down = (float(value) for value in image.info.get("dpi", ()))
    except PARSER_ERRORS:
        return None
    if (across, down) == (1, 1):
        return None  # what TIFF writers say that have none
    return dpi_that_fits((across, down))


def dpi_that_fits(found: tuple[float, float]) -> tuple[float, float] | None:
    """The resolution, unless a file of ours has no room for it."""
    return found if all(math.isfinite(value) and 1 <= thousandths(value) <= _LARGEST for value in found) else None


def _iptc_of(image: Image.Image) -> bytes | None:
    try:
        resources = image.info.get("photoshop")
        if isinstance(resources, Mapping):
            found = resources.get(_IPTC_RESOURCE)
        elif (tags := getattr(image, "tag_v2", None)) is not None:
            found = _bytes_of_tag(tags, IPTC_TAG) or _iptc_in(_bytes_of_tag(tags, _PHOTOSHOP_TAG))
        else:
            found = raw_profile(image, "iptc")
            found = _iptc_in(found) if found is not None and found.startswith(b"8BIM") else found
    except PARSER_ERRORS:
        return None
    return found if isinstance(found, bytes) and found else None


def _bytes_of_tag(tags: tiff.ImageFileDirectory_v2, tag: int) -> bytes:
    """A tag's bytes; some programs write IPTC as LONG."""
    value: Any = tags.get(tag, b"")
    if isinstance(value, tuple):
        return struct.pack(f"{tags._endian}{len(value)}I", *value)
    return value if isinstance(value, bytes) else b""


def _iptc_in(resources: bytes) -> bytes | None:
    """The IPTC records among Photoshop's image resources (8BIM, number, name, length, content)."""
    offset = 0
    while resources[offset : offset + 4] == b"8BIM" and offset + 12 <= len(resources):
        number = int.from_bytes(resources[offset + 4 : offset + 6], "big")
        offset += 6 + (resources[offset + 6] + 2) // 2 * 2
        size = int.from_bytes(resources[offset : offset + 4], "big")
        if number == _IPTC_RESOURCE:
            return resources[offset + 4 : offset + 4 + size]
        offset += 4 + size + size % 2
    return None


def _texts_of(image: Image.Image, notices: list[str]) -> tuple[tuple[str, str], ...]:
    found: dict[str, Any] = dict(image.text) if image.format == "PNG" and hasattr(image, "text") else {}
    if COMMENT not in found:
        found[COMMENT] = image.info.get("comment")
    kept, size = [], 0
    for keyword, text in found.items():
        text = text.decode("utf-8" if _is_utf8(text) else "latin-1") if isinstance(text, bytes) else text
        special = keyword.lower().startswith(_PROFILE) or keyword == "XML:com.adobe.xmp"
        if special or not isinstance(text, str) or not text.strip("\0"):
            continue
        entry = str(keyword), str(text).rstrip("\0")
        more = sum(len(part.encode("utf-8", "replace")) for part in entry) + _AROUND_TEXT
        if not is_keyword(keyword) or size + more > TEXTS_BYTES:
            notices.append(f"its text {keyword!r} of {len(text)} characters is too long to be kept")
            continue
        kept.append(entry)
        size += more
    return tuple(kept)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except ValueError:
        return False
    return True


def is_keyword(keyword: str) -> bool:
    """Whether PNG would take it: 1 to 79 printable characters of Latin-1, without spaces at its ends."""
    latin = all(" " <= letter <= "~" or "\xa1" <= letter <= "\xff" for letter in keyword)
    return latin and 1 <= len(keyword) <= KEYWORD_BYTES and keyword == keyword.strip(" ")


# ------------------------------------------------------------------------------------------------------------ into image files


def photoshop_segment(iptc: bytes) -> bytes:
    """IPTC as a JPEG's APP13 segment, marker included; it has room for 65,507 bytes."""
    content = b"Photoshop 3.0\0" + _as_resource(iptc)
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def as_raw_profile(iptc: bytes) -> str:
    """IPTC as the text of PNG's keyword "Raw profile type iptc"."""
    content = _as_resource(iptc)
    digits = content.hex()
    lines = (digits[start : start + 72] for start in range(0, len(digits), 72))
    return "\n".join(("\niptc", f"{len(content):8}", *lines)) + "\n"


def _as_resource(iptc: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)


def info_of(extras: Extras) -> dict[str | tuple[int, int], Any]:
    """What of the extras Pillow keeps in an image's `info`."""
    comment = extras.comment
    info: dict[str | tuple[int, int], Any] = {
        "dpi": extras.dpi,
        "comment": None if comment is None else comment.encode(),
        "photoshop": None if extras.iptc is None else {_IPTC_RESOURCE: extras.iptc},
    }
    return {name: value for name, value in info.items() if value is not None}
