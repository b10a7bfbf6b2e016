"""PNG without a Pillow image: its chunks, and files written in strips.

Pillow handles metadata: it reads them from a PNG of one pixel that has the other chunks of a large file, and writes them into
a PNG of one pixel whose chunks a large file then takes.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.images.picture import Picture, Samples, StripPicture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# all that our reader uses
METADATA_CHUNKS = (b"iCCP", b"eXIf", b"iTXt", b"tEXt", b"zTXt", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs")
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
LEVEL = 3  # of zlib: decoded photographs take 40% of its default's time and get from 3% smaller to 5% larger
IDAT_BYTES = 2**16  # a chunk of compressed pixels has at least these, but for the last
WORK_BYTES = 2**20  # rows that are filtered at once
HELD_BYTES = 50 * WORK_BYTES  # by the work on them, rounded up


def one_pixel_of(file: BinaryIO) -> bytes:
    """A PNG of one pixel with a PNG file's kind of pixels and all its metadata, those after its pixels included.

    The pixels are passed over unread. Checks are copied, so that Pillow decides what a wrong one means.
    """
    chunks = []
    pixel = b""
    for kind, offset, length in _chunks(file):
        if kind == b"IHDR":
            head = content_of(file, offset, length)
            depth, colour_type = head[8:10]
            pixel = _chunk(b"IDAT", zlib.compress(bytes(1 + -(-CHANNELS[colour_type] * depth // 8))))
            chunks.append(_chunk(b"IHDR", struct.pack(">II", 1, 1) + head[8:]))
        elif kind == b"IDAT":
            chunks.append(pixel)
            pixel = b""  # the first stands for all
        elif kind in METADATA_CHUNKS:
            chunks.append(content_of(file, offset - 8, length + 12))
    return b"".join((SIGNATURE, *chunks, _chunk(b"IEND", b"")))


def damaged_chunks(file: BinaryIO) -> list[tuple[bytes, int]]:
    """Kind and offset of the content of a PNG's ancillary chunks (those that it can be shown without) whose checksum is wrong."""
    found = []
    for kind, offset, length in _chunks(file):
        if kind.isalpha() and kind[:1].islower():
            content = content_of(file, offset, length + 4)
            whole = len(content) == length + 4
            if whole and zlib.crc32(kind + content[:length]) != int.from_bytes(content[length:], "big"):
                found.append((kind, offset))
    return found


def chunk_before_pixels(file: BinaryIO, wanted: bytes) -> bytes | None:
    """The content of the first chunk of that kind before a PNG's pixels; None where there is none."""
    for kind, offset, length in _chunks(file):
        if kind == wanted:
            return content_of(file, offset, length)
        if kind == b"IDAT":
            break
    return None


def without_chunks(file: BinaryIO, offsets: set[int]) -> bytes:
    """A PNG file without the chunks whose content begins there."""
    kept = (
        content_of(file, offset - 8, length + 12) for kind, offset, length in _chunks(file) if offset not in offsets
    )
    return b"".join((SIGNATURE, *kept))


def png_in_strips(
    picture: Picture | StripPicture, alpha: Samples | None, one_pixel: bytes
) -> Callable[[BinaryIO], object]:
    """A function that writes a picture, whose strips it takes, as a PNG of 8 bits a sample.

    alpha:     H×W, or None. one_pixel: a PNG of the same mode, whose metadata the file gets.
    Every row gets the filter that leaves the smallest sum of absolute differences, as libpng and Pillow choose it.
    """
    source = io.BytesIO(one_pixel)
    chunks = [(kind, content_of(source, offset, length)) for kind, offset, length in _chunks(source)]
    size = struct.pack(">II", picture.width, picture.height)

    def write(file: BinaryIO) -> None:
        file.write(SIGNATURE)
        for kind, content in chunks:
            if kind == b"IDAT":
                _write_pixels(file, _rows_of(picture, alpha))
            else:
                file.write(_chunk(kind, size + content[8:] if kind == b"IHDR" else content))

    return write


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, and offset and length of the content, of a PNG's chunks up to IEND, or up to where the file ends."""
    offset = len(SIGNATURE)
    while len(start := content_of(file, offset, 8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        yield kind, offset + 8, length
        if kind == b"IEND":
            return
        offset += 12 + length


def content_of(file: BinaryIO, offset: int, length: int) -> bytes:
    """So many bytes of a file, fewer where it ends; -1: all that follow."""
    file.seek(offset)
    return file.read(length)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _rows_of(picture: Picture | StripPicture, alpha: Samples | None) -> Iterator[Samples]:
    """All rows of samples, some at a time, h×W×C; alpha last."""
    channels = (1 if picture.grey else 3) + (0 if alpha is None else 1)
    at_once = max(1, WORK_BYTES // (picture.width * channels))
    done = 0
    for strip in picture.strips:
        for top in range(0, len(strip), at_once):
            rows = strip[top : top + at_once]
            yield rows if alpha is None else np.dstack([rows, alpha[done + top : done + top + len(rows)]])
        done += len(strip)


def _write_pixels(file: BinaryIO, parts: Iterator[Samples]) -> None:
    """The IDAT chunks of all rows."""
    # Pillow's settings for filtered rows, but for the level
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    above: Samples | None = None
    packed = bytearray()
    for rows in parts:
        packed += packer.compress(_filtered(rows, np.zeros_like(rows[0]) if above is None else above).data)
        above = rows[-1].copy()
        if len(packed) >= IDAT_BYTES:
            file.write(_chunk(b"IDAT", bytes(packed)))
            packed.clear()
    file.write(_chunk(b"IDAT", bytes(packed) + packer.flush()))


def _filtered(rows: Samples, above: Samples) -> Samples:
    """The rows (h×W×C) filtered as PNG's section 9 has it, each behind the number of its filter; h×(1 + W·C).

    above: the row before the first, W×C; zeros at the picture's beginning.
    """
    up = np.concatenate([above[None], rows[:-1]])
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, 1:], corner[:, 1:] = rows[:, :-1], up[:, :-1]
    average = ((left.astype(np.uint16) + up) >> 1).astype(np.uint8)
    predictions = (None, left, up, average, _paeth(left, up, corner))
    best = np.empty((len(rows), 1 + rows[0].size), np.uint8)
    smallest = np.full(len(rows), np.iinfo(np.int64).max)
    for number, prediction in enumerate(predictions):
        residual = (rows if prediction is None else rows - prediction).reshape(len(rows), -1)
        cost = np.abs(residual.view(np.int8)).view(np.uint8).sum(axis=1, dtype=np.int64)
        better = cost < smallest
        best[better, 0], best[better, 1:] = number, residual[better]
        smallest[better] = cost[better]
    return best


def _paeth(left: Samples, up: Samples, corner: Samples) -> Samples:
    """Whichever of the three neighbours is closest to left + up - corner, in this order."""
    by_left: NDArray[np.int16] = up.astype(np.int16) - corner  # how far the sum is from `left`
    by_up: NDArray[np.int16] = left.astype(np.int16) - corner
    by_corner = np.abs(by_left + by_up)
    by_left, by_up = np.abs(by_left), np.abs(by_up)
    second = np.where(by_up <= by_corner, up, corner)
    return np.where((by_left <= by_up) & (by_left <= by_corner), left, second)
