"""Formats that Pillow reads and writes with the help of plug-ins: HEIC and JPEG XL, with the extra `hpcm-codec[formats]`.

They are imported when a file of one of these formats is to be read or written.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib import import_module

from PIL import Image

ADVICE = "pip install 'hpcm-codec[formats]'"
NAMES = {"HEIF": "HEIC", "JXL": "JPEG XL"}  # as Pillow's plug-ins call the formats, and as people do
_MODULES = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")


def format_of(start: bytes) -> str | None:
    """The format, of those above, of a file that begins so (12 bytes are enough); None for others."""
    if start.startswith(_JXL_STARTS):
        return "JXL"
    return "HEIF" if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS else None


@cache
def is_there(format: str) -> bool:
    """Whether Pillow reads and writes that format now; imports its plug-in."""
    with suppress(ImportError, OSError, AttributeError):
        module = import_module(_MODULES[format])
        if hasattr(module, "register_heif_opener"):
            module.register_heif_opener()
    return format in Image.OPEN and format in Image.SAVE
