"""The picture for measurements: a photograph in the size asked for, or a synthetic one with a photograph's spectrum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpcm_codec.images import Picture, Samples, read_picture


def picture_of_size(width: int, height: int, source: Path | None = None) -> tuple[Picture, str]:
    """A picture of that many pixels, and what it was made of.

    source: a picture file; None means the sample photograph, or a synthetic one if there is none. Raises FileError when it cannot be read.
    """
    source = source or sample_photograph()
    pixels = synthetic_photograph(width, height) if source is None else read_picture(source).pixels
    return Picture(fitted(pixels, width, height)), "synthetic" if source is None else source.name


def fitted(pixels: Samples, width: int, height: int) -> Samples:
    """A picture of that size out of another: its middle where it is larger, mirrored over and over where it is smaller.

    pixels: uint8 H×W×C; returns uint8 height×width×C.
    """
    for axis, wanted in ((0, height), (1, width)):
        have = pixels.shape[axis]
        places = np.arange(wanted) + max(0, (have - wanted) // 2)
        places %= 2 * have
        pixels = np.take(pixels, np.minimum(places, 2 * have - 1 - places), axis=axis)
    return np.ascontiguousarray(pixels)


def synthetic_photograph(width: int, height: int) -> Samples:
    """A picture with a photograph's spectrum (amplitude ∝ 1/frequency), always the same: uint8 height×width×3."""
    random = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0

    def plane() -> np.ndarray[Any, np.dtype[np.float64]]:
        spectrum = np.fft.rfft2(random.standard_normal((height, width))) / frequency
        spectrum[0, 0] = 0.0
        values = np.fft.irfft2(spectrum, (height, width))
        return np.asarray(values / max(float(values.std()), 1e-9), np.float64)

    brightness = plane()
    # Colours vary less than brightness, as they do in photographs.
    planes = [128 + 48 * brightness + 12 * plane() for _ in range(3)]
    return np.stack(planes, axis=-1).round().clip(0, 255).astype(np.uint8)


def sample_photograph() -> Path | None:
    """The largest photograph in the source checkout's examples/; None where there is none, as in an installed package."""
    folder = Path(__file__).resolve().parents[2] / "examples"
    kinds = {".png", ".jpg", ".jpeg", ".webp"}
    found = [path for path in folder.glob("*") if path.suffix.lower() in kinds]
    return max(found, key=lambda path: (path.stat().st_size, path.name), default=None)
