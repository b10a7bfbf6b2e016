"""Bjøntegaard deltas: how much rate one curve saves against another at equal quality, as one number.

Curves are interpolated by PCHIP through their points, rate on a log10 axis, and compared over the range that both
cover. The interpolation and the integral are those of the `bjontegaard` package (FAU Erlangen-Nürnberg); this
module reads curves in CompressAI's JSON form, drops points that do not belong on a curve, and refuses to compare curves
that do not overlap.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcm_codec.errors import FileError, HpcmError, UsageError
from hpcm_codec.evaluation.metrics import ms_ssim_db
from hpcm_codec.system.files import file_error

PSNR = "psnr-rgb"
MS_SSIM_DB = "ms-ssim-rgb-db"
FEWEST_POINTS = 3
# Other names for the same column in published results files.
_ALIASES = {PSNR: (PSNR, "psnr"), MS_SSIM_DB: (MS_SSIM_DB, "ms-ssim-db", "ms_ssim_db")}
_PLAIN_MS_SSIM = ("ms-ssim-rgb", "ms-ssim")


@dataclass(frozen=True)
class Curve:
    """A rate-distortion curve: bits per pixel and quality in dB, both strictly rising.

    dropped: how many points of the source were left out because they cost more than another and are no better.
    """

    name: str
    bpp: tuple[float, ...]
    quality: tuple[float, ...]
    dropped: int = 0

    @staticmethod
    def from_points(name: str, bpp: Sequence[float], quality: Sequence[float]) -> Curve:
        """A curve through points in any order; UsageError when fewer than three remain or a number is not finite."""
        if len(bpp) != len(quality):
            raise UsageError(f"the curve {name} has {len(bpp)} rates but {len(quality)} qualities")
        points = sorted(zip(map(float, bpp), map(float, quality), strict=True))
        if any(not (math.isfinite(rate) and math.isfinite(value) and rate > 0) for rate, value in points):
            raise UsageError(f"the curve {name} has a point without a finite rate and quality")
        kept = points[:1]
        for point in points[1:]:
            if point[0] > kept[-1][0] and point[1] > kept[-1][1]:
                kept.append(point)
        if len(kept) < FEWEST_POINTS:
            raise UsageError(
                f"the curve {name} has {len(kept)} rising points; {FEWEST_POINTS} are needed", advice="add qualities"
            )
        rates, qualities = zip(*kept, strict=True)
        return Curve(name, rates, qualities, len(points) - len(kept))

    @staticmethod
    def from_results(data: Mapping[str, Any], metric: str = PSNR) -> Curve:
        """The curve of a results object in CompressAI's form; UsageError when it has none.

        metric: PSNR or MS_SSIM_DB, both in dB.
        """
        results = data.get("results", data)
        name = str(data.get("name", "without a name"))
        try:
            quality = next((results[key] for key in _ALIASES.get(metric, (metric,)) if key in results), None)
            if quality is None and metric == MS_SSIM_DB:
                plain = next((results[key] for key in _PLAIN_MS_SSIM if key in results), None)
                quality = None if plain is None else [ms_ssim_db(value) for value in plain]
            if quality is None or "bpp" not in results:
                raise UsageError(f"the curve {name} has no {'bpp' if 'bpp' not in results else metric}")
            return Curve.from_points(name, results["bpp"], quality)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the curve {name} is not in CompressAI's results form ({error})") from error


def read_curve(path: str | os.PathLike[str], metric: str = PSNR) -> Curve:
    """The curve in a results file.

    Raises FileError when it cannot be read or is not a results file, UsageError when it holds no such curve.
    """
    try:
        return Curve.from_results(read_results(path), metric)
    except UsageError as error:
        raise error.in_file(path) from error.__cause__


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A results file in CompressAI's form; raises FileError when it cannot be read or is none."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except OSError as error:
        raise file_error(path, error) from error
    except ValueError as error:  # JSON's and Unicode's errors both are
        raise FileError(f"not JSON ({error})", file=path, advice="name a results file in CompressAI's form") from error
    if not isinstance(data, dict) or not isinstance(data.get("results", data), dict):
        raise FileError("not a results file in CompressAI's form", file=path)
    return data


@dataclass(frozen=True)
class Comparison:
    """A curve against an anchor.

    bd_rate:       per cent of rate at equal quality, negative: fewer bits than the anchor.
    bd_quality:    dB at equal rate, positive: better than the anchor; None when no rate is covered by both.
    quality_range: dB, where bd_rate was taken; bpp_range: where bd_quality was taken, or None.
    coverage:      share of the curve's own quality range that the anchor covers, 0 to 1.
    """

    anchor: str
    bd_rate: float
    bd_quality: float | None
    quality_range: tuple[float, float]
    bpp_range: tuple[float, float] | None
    coverage: float

    def in_words(self, unit: str = "dB") -> str:
        """One line, the range included; unit: of the quality."""
        low, high = self.quality_range
        at_equal_rate = "" if self.bd_quality is None else f", {self.bd_quality:+.2f} {unit} at equal rate"
        return (
            f"BD-rate against {self.anchor}: {self.bd_rate:+.2f} %{at_equal_rate} "
            f"(common range {low:.2f} to {high:.2f} {unit}, {self.coverage:.0%} of this curve)"
        )


def compare(anchor: Curve, test: Curve) -> Comparison:
    """Bjøntegaard deltas of `test` against `anchor`.

    Raises UsageError when no quality is covered by both, HpcmError when the `bjontegaard` package is missing.
    """
    low, high = max(anchor.quality[0], test.quality[0]), min(anchor.quality[-1], test.quality[-1])
    if high <= low:
        raise UsageError(
            f"{test.name} ({test.quality[0]:.2f} to {test.quality[-1]:.2f} dB) and {anchor.name} "
            f"({anchor.quality[0]:.2f} to {anchor.quality[-1]:.2f} dB) have no quality in common: there is no BD-rate",
            advice="choose qualities that meet the anchor's",
        )
    try:
        import bjontegaard
    except ImportError as error:
        raise HpcmError("the package bjontegaard is not installed", advice="pip install bjontegaard") from error
    curves = (anchor.bpp, anchor.quality, test.bpp, test.quality)
    options = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    arrays = [np.asarray(values, np.float64) for values in curves]
    cheapest, dearest = max(anchor.bpp[0], test.bpp[0]), min(anchor.bpp[-1], test.bpp[-1])
    rates_meet = dearest > cheapest
    return Comparison(
        anchor=anchor.name,
        bd_rate=float(bjontegaard.bd_rate(*arrays, **options)),
        bd_quality=float(bjontegaard.bd_psnr(*arrays, **options)) if rates_meet else None,
        quality_range=(low, high),
        bpp_range=(cheapest, dearest) if rates_meet else None,
        coverage=(high - low) / (test.quality[-1] - test.quality[0]),
    )
