"""PSNR: the distance between two pictures, over 8-bit samples.

>>> import numpy as np
>>> black, grey = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 25, np.uint8)
>>> round(psnr(black, grey), 3)
20.172
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from hpcm_codec.images.picture import PixelSource, Samples

PEAK = 255.0


def psnr(original: Samples, decoded: Samples) -> float:
    """Peak signal-to-noise ratio in dB, from one mean squared error over all samples; infinite for identical pictures.

    original, decoded: uint8 H×W×C. Raises ValueError when shapes or types differ from that or from each other.
    """
    refuse_incomparable(original, decoded)
    return _of_error(float(np.square(original.astype(np.int32) - decoded).mean(dtype=np.float64)))


def psnr_of_strips(picture: PixelSource, strips: Iterable[Samples]) -> float:
    """PSNR in dB over all samples, of a decoded picture in strips (uint8 h×W×C) from top to bottom; infinite where nothing differs."""
    squares, top = 0.0, 0
    for strip in strips:
        squares += float(np.square(picture.rows(top, top + len(strip)).astype(np.int32) - strip).sum(dtype=np.float64))
        top += len(strip)
    return _of_error(squares / (picture.height * picture.width * (1 if picture.grey else 3)))


def refuse_incomparable(original: Samples, decoded: Samples) -> None:
    """Raise ValueError unless both are uint8 H×W×C of one shape."""
    if original.shape != decoded.shape or original.ndim != 3:
        raise ValueError(f"pictures of one shape H×W×C can be compared, not {original.shape} and {decoded.shape}")
    if original.dtype != np.uint8 or decoded.dtype != np.uint8:
        raise ValueError(f"samples must be uint8, not {original.dtype} and {decoded.dtype}")


def _of_error(error: float) -> float:
    """PSNR in dB of a mean squared error of 8-bit samples; infinite for 0."""
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)
