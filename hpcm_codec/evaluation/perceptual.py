"""Perceptual measures, by optional packages: SSIMULACRA 2 and FLIP.

SSIMULACRA 2 (Sneyers, Cloudinary, in libjxl; package `ssimulacra2`): 100 is identical, 90 can hardly be distinguished, 70 is high quality,
50 medium, 30 low. FLIP (Andersson et al., "FLIP: A Difference Evaluator for Alternating Images", HPG 2020; NVIDIA's package
`flip-evaluator`, for the viewing distance that it takes by itself): the mean difference, 0 (identical) to 1.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpcm_codec.errors import UnsupportedError, UsageError
from hpcm_codec.images import Samples

SSIMULACRA2, FLIP = "ssimulacra2", "flip"
MODULES = {SSIMULACRA2: "ssimulacra2", FLIP: "flip_evaluator"}
TITLES = {SSIMULACRA2: "SSIMULACRA 2", FLIP: "FLIP"}
SMALLEST_SIDE = 8  # pixels, of what is compared; smaller pictures have no such figures
INSTALL = "pip install 'hpcm-codec[eval]'"


def is_installed(name: str) -> bool:
    """Whether a measure's package is installed; does not import it."""
    return importlib.util.find_spec(MODULES[name]) is not None


def parse_perceptual(text: str | None) -> tuple[str, ...]:
    """The measures of "none" or "ssimulacra2,flip"; None: SSIMULACRA 2 where it is installed.

    Raises UsageError for other names, UnsupportedError for one whose package is not installed.
    """
    if text is None:
        return (SSIMULACRA2,) if is_installed(SSIMULACRA2) else ()
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if names == ("none",):
        return ()
    for name in names:
        if name not in MODULES:
            raise UsageError(f"--perceptual takes none or {', '.join(MODULES)} with commas between them, not {text!r}")
        if not is_installed(name):
            raise UnsupportedError(f"{TITLES[name]} is not installed", advice=INSTALL)
    return names


def measure_perceptual(names: Sequence[str], original: Samples, decoded: Samples) -> dict[str, float]:
    """The figures of two pictures, uint8 H×W×1 or H×W×3, by the measures' names; none for pictures with a side below 8 pixels."""
    if min(original.shape[:2]) < SMALLEST_SIDE:
        return {}
    return {name: _FUNCTIONS[name](_as_rgb(original), _as_rgb(decoded)) for name in names}


def _as_rgb(samples: Samples) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.broadcast_to(samples, (*samples.shape[:2], 3)))


def _ssimulacra2(original: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    from ssimulacra2 import compute_ssimulacra2

    return float(compute_ssimulacra2(*(_as_file(samples) for samples in (original, decoded))))


def _as_file(samples: NDArray[np.uint8]) -> io.BytesIO:
    """The picture as a lossless file, which the package reads."""
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "PPM")
    file.seek(0)
    return file


def _flip(original: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    import flip_evaluator

    reference, test = (samples.astype(np.float32) / 255 for samples in (original, decoded))
    _, mean, _ = flip_evaluator.evaluate(reference, test, "LDR")
    return float(mean)


_FUNCTIONS: dict[str, Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]] = {
    SSIMULACRA2: _ssimulacra2,
    FLIP: _flip,
}
