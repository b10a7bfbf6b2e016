"""How time and memory grow with the picture: fresh processes over a range of sizes, and the exponents that fit."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcm_codec.benchmark.measure import Settings
from hpcm_codec.benchmark.pictures import picture_of_size
from hpcm_codec.benchmark.process import Run, RunResult, run_fresh
from hpcm_codec.benchmark.timing import ACTIONS, Action
from hpcm_codec.images import write_picture

# 0.1 to 33 megapixels: each about four times the one before
SIZES = ((384, 256), (768, 512), (1920, 1080), (3840, 2160), (7680, 4320))
DEFAULTS = Settings()
REPEATS_BELOW = 1.0  # seconds: shorter work is done three times in fresh processes, and the median counts


def growth(model: str, sizes: Sequence[tuple[int, int]] = SIZES, settings: Settings = DEFAULTS) -> dict[str, Any]:
    """Time (of the codec alone) and peak memory of encoding from PPM and decoding to PPM, and the exponents of their growth.

    sizes: (width, height), three or more for a fit; the settings runs and longest are not used. Raises HpcmError.
    """
    points: list[dict[str, Any]] = []
    identity = chosen = ""
    with tempfile.TemporaryDirectory(prefix="hpcm-bench-") as name:
        folder = Path(name)
        original, coded, decoded = (folder / file for file in ("picture.ppm", "picture.hpcm", "decoded.ppm"))
        for width, height in sizes:
            write_picture(picture_of_size(width, height, settings.image)[0], original, overwrite=True)
            point: dict[str, Any] = {"width": width, "height": height}
            ways: list[tuple[Action, Path, Path]] = [("encode", original, coded), ("decode", coded, decoded)]
            for action, source, target in ways:
                job = settings.job(action, source, target, model)
                middle = _middle_of_runs(job)
                point[action] = {
                    "seconds": round(middle.seconds, 6),
                    "peak_memory_bytes": middle.peak_memory_bytes,
                    "device_memory_bytes": middle.device_memory_bytes,
                }
                identity, chosen = middle.identity, middle.profile
            points.append(point | {"bytes": coded.stat().st_size})
    pixels = [point["width"] * point["height"] for point in points]
    exponents = {
        action: {
            quantity: round(exponent(pixels, [point[action][quantity] for point in points]), 3)
            for quantity in ("seconds", "peak_memory_bytes")
        }
        for action in ACTIONS
    }
    about = {"model": model, "identity": identity, "profile": chosen, "quality": settings.quality}
    return about | {"points": points, "exponents": exponents}


def _middle_of_runs(job: Run) -> RunResult:
    """The run of median time; more than one where it is short."""
    runs = [run_fresh(job)]
    if runs[0].seconds < REPEATS_BELOW:
        runs += [run_fresh(job), run_fresh(job)]
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The e of values ∝ sizes^e, by least squares on logarithms; both positive, two different sizes or more.

    >>> round(exponent([1, 10, 100], [3, 30, 300]), 6)
    1.0
    """
    x, y = ([math.log(value) for value in both] for both in (sizes, values))
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    spread = sum((value - x_mean) ** 2 for value in x)
    return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread
