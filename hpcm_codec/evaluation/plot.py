"""Rate-distortion curves as a picture: bits per pixel on the x axis, decibels on the y axis, every curve labelled at its end.

Curves differ in dashes, marks and lightness as well as in colour, so the picture can be read without colours. The first
curve is drawn black and thick, and its range of rates is shown.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcm_codec.errors import HpcmError, UsageError
from hpcm_codec.evaluation.bjontegaard import MS_SSIM_DB, PSNR, Curve
from hpcm_codec.evaluation.perceptual import SSIMULACRA2

SUFFIXES = (".png", ".svg", ".pdf")
AXIS_NAMES = {PSNR: "RGB PSNR, dB", MS_SSIM_DB: "RGB MS-SSIM, dB", SSIMULACRA2: "SSIMULACRA 2"}
SIZE = (8.0, 5.4)  # inches
DPI = 160  # dots per inch, of PNG
LABEL_SPACE = 0.76  # of the width is left of the labels
LINE_HEIGHT = 0.042  # of the axes' height, between labels
# colour, dashes (points on, off), mark: of the curves after the first; neighbours differ in lightness
STYLES = (
    ("#c1440e", (), "s"),
    ("#2a6fbb", (6, 2), "^"),
    ("#7a7a7a", (2, 1.5), "D"),
    ("#1b7f4d", (8, 2, 2, 2), "v"),
    ("#8a4fbf", (4, 1.5, 1, 1.5), "P"),
    ("#b98900", (1, 1), "X"),
    ("#3b3b8f", (10, 3), "<"),
    ("#d0679d", (3, 3), ">"),
)


def check_plot(path: str) -> None:
    """Raises UsageError for a kind of picture that cannot be drawn, HpcmError where matplotlib is missing."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UsageError(f"a plot is one of {', '.join(SUFFIXES)}, not {Path(path).name!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise HpcmError("a plot needs matplotlib, which is not installed", advice="pip install matplotlib") from error


@dataclass(frozen=True)
class _Line:
    name: str
    bpp: np.ndarray[Any, np.dtype[np.float64]]
    quality: np.ndarray[Any, np.dtype[np.float64]]
    first: bool

    def up_to(self, rate: float) -> tuple[float, float]:
        """Where the curve ends, or leaves a picture that reaches up to `rate`."""
        end = min(rate, float(self.bpp[-1]))
        return end, float(np.interp(end, self.bpp, self.quality))


def draw_curves(curves: Sequence[dict[str, Any]], suffix: str, metric: str = PSNR, dataset: str = "") -> bytes:
    """The picture's bytes. curves: results objects in CompressAI's form, ours first; one that lacks the metric is left out.

    suffix: ".png", ".svg" or ".pdf". The same curves give the same bytes.
    Raises UsageError when the first curve lacks the metric or is none.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = _lines(curves, metric)
    rates = (0.0, 1.12 * float(lines[0].bpp[-1]))
    low = min(float(line.quality[0]) for line in lines[:1])
    high = max(line.up_to(rates[1])[1] for line in lines)
    low -= 0.25 * (high - low)
    with rc_context({"svg.hashsalt": "hpcm", "font.size": 10.5, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=SIZE, dpi=DPI)
        axes = figure.add_axes((0.085, 0.105, LABEL_SPACE - 0.085, 0.83))
        for place, line in reversed(list(enumerate(lines))):
            colour, dashes, mark = ("#000000", (), "o") if place == 0 else STYLES[(place - 1) % len(STYLES)]
            (drawn,) = axes.plot(
                line.bpp,
                line.quality,
                color=colour,
                marker=mark,
                markersize=5.5 if place == 0 else 4,
                linewidth=2.6 if place == 0 else 1.3,
            )
            if dashes:
                drawn.set_dashes(dashes)
        axes.set_xlim(*rates)
        axes.set_ylim(low, high + 0.04 * (high - low))
        axes.set_xlabel("rate, bits per pixel")
        axes.set_ylabel(AXIS_NAMES.get(metric, metric))
        axes.set_title(f"{dataset}: higher and further left is better" if dataset else "", loc="left", fontsize=10.5)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        _label(axes, lines, rates[1])
        buffer = io.BytesIO()
        kind = suffix.lower().lstrip(".")
        no_date = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(buffer, format=kind, metadata=no_date.get(kind))
    return buffer.getvalue()


def _lines(curves: Sequence[dict[str, Any]], metric: str) -> list[_Line]:
    lines: list[_Line] = []
    for data in curves:
        try:
            curve = Curve.from_results(data, metric)
        except UsageError:
            if not lines:
                raise
            continue
        lines.append(_Line(curve.name, np.asarray(curve.bpp), np.asarray(curve.quality), not lines))
    return lines


def _label(axes: Any, lines: Sequence[_Line], rate: float) -> None:
    """Names beside the axes, at the height where each curve ends, moved apart where they would touch."""
    low, high = axes.get_ylim()
    ends = []
    for place, line in enumerate(lines):
        end, quality = line.up_to(rate)
        ends.append(((quality - low) / (high - low), end / rate, place))
    ends.sort()
    heights = spread_apart([height for height, _, _ in ends], LINE_HEIGHT)
    for (height, end, place), shown in zip(ends, heights, strict=True):
        colour = "#000000" if place == 0 else STYLES[(place - 1) % len(STYLES)][0]
        axes.annotate(
            short_name(lines[place].name),
            xy=(end, height),
            xytext=(1.03, shown),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontweight="bold" if place == 0 else "normal",
            fontsize=9.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
        )


def short_name(name: str) -> str:
    """A name that fits beside the axes: without what is in brackets, if it is long, and never over 26 letters.

    >>> short_name("HEVC intra (x265 4:4:4 10 bit, BPG-like)"), short_name("AVIF (tune=psnr)")
    ('HEVC intra', 'AVIF (tune=psnr)')
    """
    longest = 26
    short = name if len(name) <= longest else name.split(" (")[0]
    return short if len(short) <= longest else short[: longest - 1] + "…"


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved as little as possible so that neighbours are `gap` apart.

    >>> [round(height, 2) for height in spread_apart([0.1, 0.5, 0.52], 0.1)]
    [0.1, 0.46, 0.56]
    """
    groups: list[list[float]] = []  # each: sum of (height − its place in the group · gap), and how many
    for height in heights:
        groups.append([height, 1])
        while len(groups) > 1:
            (before, many), (after, more) = groups[-2:]
            if after / more - before / many >= gap * many:
                break
            groups[-2:] = [[before + after - gap * many * more, many + more]]
    return [total / many + gap * place for total, many in groups for place in range(int(many))]
