"""Formats whose pixels lie in the file as they are: how to begin and end such a file, so that rows can be written as they come."""

from __future__ import annotations

import struct
from typing import Any

LARGEST_TIFF = 2**32 - 2**24  # offsets have 32 bits; the rest is room for the directory and metadata
TIFF_STRIP_ROWS = 64
_SHORT, _LONG, _BYTE, _UNDEFINED, _RATIONAL = 3, 4, 1, 7, 5


def ppm_start(width: int, height: int, grey: bool, metadata: dict[str, Any]) -> tuple[bytes, bytes]:
    """What comes before and after the rows of a binary PPM or PGM; it holds no metadata."""
    return f"P{5 if grey else 6}\n{width} {height}\n255\n".encode(), b""


def tiff_start(width: int, height: int, grey: bool, metadata: dict[str, Any]) -> tuple[bytes, bytes]:
    """What comes before and after the rows of an uncompressed little-endian TIFF (TIFF 6.0, sections 2 to 6).

    metadata: "icc_profile", "xmp", "iptc" and "dpi" where present. Below LARGEST_TIFF bytes of pixels.
    """
    channels = 1 if grey else 3
    row_bytes, header_bytes = width * channels, 8
    pixel_bytes = row_bytes * height
    strips = [(top, min(TIFF_STRIP_ROWS, height - top)) for top in range(0, height, TIFF_STRIP_ROWS)]
    padding = pixel_bytes % 2  # directories and values begin at even offsets
    directory = header_bytes + pixel_bytes + padding
    fields: list[tuple[int, int, bytes]] = [
        (256, _LONG, struct.pack("<I", width)),
        (257, _LONG, struct.pack("<I", height)),
        (258, _SHORT, struct.pack(f"<{channels}H", *[8] * channels)),
        (259, _SHORT, struct.pack("<H", 1)),  # uncompressed
        (262, _SHORT, struct.pack("<H", 1 if grey else 2)),  # black is 0; RGB
        (273, _LONG, struct.pack(f"<{len(strips)}I", *(header_bytes + top * row_bytes for top, _ in strips))),
        (277, _SHORT, struct.pack("<H", channels)),
        (278, _LONG, struct.pack("<I", TIFF_STRIP_ROWS)),
        (279, _LONG, struct.pack(f"<{len(strips)}I", *(rows * row_bytes for _, rows in strips))),
        (284, _SHORT, struct.pack("<H", 1)),  # colours of a pixel side by side
    ]
    if "xmp" in metadata:
        fields.append((700, _BYTE, metadata["xmp"]))
    if "icc_profile" in metadata:
        fields.append((34675, _UNDEFINED, metadata["icc_profile"]))
    if "iptc" in metadata:
        fields.append((33723, _UNDEFINED, metadata["iptc"]))
    if "dpi" in metadata:
        resolutions = (struct.pack("<II", round(value * 1000), 1000) for value in metadata["dpi"])
        fields += [(tag, _RATIONAL, value) for tag, value in zip((282, 283), resolutions, strict=True)]
        fields.append((296, _SHORT, struct.pack("<H", 2)))  # per inch
    fields.sort()
    sizes = {_RATIONAL: 8, _SHORT: 2, _LONG: 4, _BYTE: 1, _UNDEFINED: 1}
    entries, values = [struct.pack("<H", len(fields))], b""
    first_value = directory + 2 + 12 * len(fields) + 4
    for tag, kind, value in fields:
        if len(value) > 4:
            place = struct.pack("<I", first_value + len(values))
            values += value + bytes(len(value) % 2)
        else:
            place = value.ljust(4, b"\0")
        entries.append(struct.pack("<HHI", tag, kind, len(value) // sizes[kind]) + place)
    start = b"II*\0" + struct.pack("<I", directory)
    return start, bytes(padding) + b"".join(entries) + bytes(4) + values
