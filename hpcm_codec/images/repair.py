"""Small faults that viewers tolerate: the file is read as if they were not there, and a notice reports them."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from typing import BinaryIO

from PIL import Image

from hpcm_codec.images.picture import STRIP_ROWS
from hpcm_codec.images.png import SIGNATURE, content_of, damaged_chunks, without_chunks

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
NO_JPEG_END = "the JPEG's end is missing, but no pixel depends on it"
_SCAN, _FRAMES = 0xDA, (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_COEFFICIENTS = 64
LARGEST_TRIED = 2**25  # pixels of a JPEG that is decoded to find out whether it is whole: 128 MiB
# What could follow: pixels that are all there do not depend on it.
_PADDINGS = (b"\xaa" * 64, b"\x55" * 64, bytes(range(250, 186, -1)))


def repaired(file: BinaryIO) -> tuple[BinaryIO, list[str]]:
    """The file, or one in memory without its small faults, at its beginning; and a notice for each."""
    start = content_of(file, 0, len(SIGNATURE))
    if start == SIGNATURE:
        file, notices = _repaired_png(file)
    elif start.startswith(JPEG_START):
        file, notices = _repaired_jpeg(file)
    else:
        notices = []
    file.seek(0)
    return file, notices


def _repaired_png(file: BinaryIO) -> tuple[BinaryIO, list[str]]:
    """Without those ancillary chunks whose checksum is wrong; their contents cannot be relied on."""
    damaged = damaged_chunks(file)
    if not damaged:
        return file, []
    kinds = ", ".join(sorted({kind.decode("ascii") for kind, _ in damaged}))
    notice = f"the checksum of a part of the PNG besides the pixels ({kinds}) is wrong, the part was left out"
    return io.BytesIO(without_chunks(file, {offset for _, offset in damaged})), [notice]


def _repaired_jpeg(file: BinaryIO) -> tuple[BinaryIO, list[str]]:
    """With an end mark, where only that is missing."""
    file.seek(-2, io.SEEK_END)
    if file.read(2) == JPEG_END:
        return file, []
    data = content_of(file, 0, -1).removesuffix(b"\xff")
    if not _has_all_scans(data) or not _is_complete(data):
        return file, []
    return io.BytesIO(data + JPEG_END), [NO_JPEG_END]


def _has_all_scans(jpeg: bytes) -> bool:
    """Whether a JPEG without end mark has scans for every coefficient of every component to its last bit (ITU T.81, annexes B and G)."""
    missing: dict[int, set[int]] = {}
    offset = 2
    while match := re.compile(rb"\xff+([^\x00\xff\xd0-\xd8])", re.DOTALL).search(jpeg, offset):
        marker, begin = match[1][0], match.end()
        if marker == JPEG_END[1]:
            return False  # it has one: what follows does not matter
        segment = jpeg[begin + 2 : begin + int.from_bytes(jpeg[begin : begin + 2], "big")]
        offset = begin + 2 + len(segment)
        if marker in _FRAMES and len(segment) >= 6:
            missing = {segment[place]: set(range(_COEFFICIENTS)) for place in range(6, len(segment) - 2, 3)}
        elif marker == _SCAN and segment and len(segment) >= 4 + 2 * segment[0]:
            components = segment[1 : 1 + 2 * segment[0] : 2]
            first, last, bits = segment[1 + 2 * segment[0] :][:3]
            if bits & 15 == 0:
                for component in components:
                    missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())


def _is_complete(jpeg: bytes) -> bool:
    """Whether the last scan of a JPEG without end mark is whole: else what follows would be taken for pixels."""
    try:
        return len({_digest_of_pixels(jpeg + padding + JPEG_END) for padding in (b"", *_PADDINGS)}) == 1
    except OSError:
        return False


def _digest_of_pixels(jpeg: bytes) -> bytes:
    with warnings.catch_warnings(), Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        warnings.simplefilter("ignore")
        if image.width * image.height > LARGEST_TRIED:
            raise OSError("too large to be decoded several times")
        digest = hashlib.sha256()
        for top in range(0, image.height, STRIP_ROWS):
            digest.update(image.crop((0, top, image.width, min(image.height, top + STRIP_ROWS))).tobytes())
        return digest.digest()
