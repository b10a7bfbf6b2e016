"""Pillow's limits against decompression bombs, adapted to ours.

They are settings of Pillow's modules, shared by all threads: changed while any thread reads a picture here, and restored by the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, PngImagePlugin

TEXT_CHUNK_BYTES = 2**26  # of one text, ICC or XMP chunk of a PNG, unpacked
TEXT_BYTES = 2**28  # of all of them

_lock = threading.Lock()
_readers = 0
_before: tuple[int | None, int, int] = (None, 0, 0)


@contextmanager
def our_limits(max_pixels: int, metadata: bool = True) -> Iterator[None]:
    """In here Pillow's guard against huge pictures begins at twice `max_pixels`, if that is later than usual (ours begins before it).

    metadata: the chunks of a PNG that are packed may have `TEXT_CHUNK_BYTES` each, instead of 1 MB.
    """
    global _readers, _before
    with _lock:
        if _readers == 0:
            _before = (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
        _readers += 1
        if Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
        if metadata:
            PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, TEXT_CHUNK_BYTES)
            PngImagePlugin.MAX_TEXT_MEMORY = max(PngImagePlugin.MAX_TEXT_MEMORY, TEXT_BYTES)
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = _before


def is_text_limit(error: Exception) -> bool:
    """Whether Pillow has raised this because a text limit was passed."""
    return isinstance(error, ValueError) and "MAX_TEXT" in str(error)
