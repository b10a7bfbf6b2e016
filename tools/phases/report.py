"""Tables and plot of what the context models need, and how certain that is."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hpcm_codec.errors import FileError
from hpcm_codec.evaluation.plot import LINE_HEIGHT, STYLES, spread_apart
from hpcm_codec.model.complexity import complexity_by_part
from hpcm_codec.system.files import write_atomically
from phases.training import BATCH, Row, read_rows
from phases.variants import REFERENCE, VARIANTS

_SIZE, _DPI = (8.0, 4.6), 160
At = Callable[[Sequence[Row]], tuple[float, ...]]


@dataclass(frozen=True)
class Saving:
    """Against the reference, the mean over the seeds: bits saved in percent, what they are worth in dB, half the range of the seeds."""

    bpp: tuple[float, ...]
    percent: float
    decibels: float
    spread: float


def decibels_per_log_rate(curve: dict[str, Any]) -> tuple[float, float, float]:
    """dPSNR / d ln(bits) at the lowest, the middle and the highest rate of results of `hpcm eval`."""
    rates = np.log(np.asarray(curve["results"]["bpp"], np.float64))
    slopes = np.gradient(np.asarray(curve["results"]["psnr-rgb"], np.float64), rates)
    middle = float(np.interp(50.0, curve["qualities"], slopes))
    return float(slopes[0]), middle, float(slopes[-1])


def runs_of(folder: Path) -> dict[str, list[list[Row]]]:
    """Every variant's runs, one for each seed that all of them have; raises FileError where there is nothing to compare."""
    seeds: dict[str, dict[str, list[Row]]] = {name: {} for name in VARIANTS}
    for path in sorted(folder.glob("*.json")):
        name, _, seed = path.stem.rpartition("-")
        if name in seeds:
            seeds[name][seed] = read_rows(path)
    begun = {name: runs for name, runs in seeds.items() if runs}
    if REFERENCE not in begun or len(begun) < 2:
        raise FileError(f"no runs of {REFERENCE} and another variant", file=folder, advice="train them first")
    common = sorted(set.intersection(*(set(runs) for runs in begun.values())))
    if not common:
        raise FileError("no seed that all variants have", file=folder, advice="train them with the same --seeds")
    return {name: [runs[seed] for seed in common] for name, runs in begun.items()}


def at_step(step: int) -> At:
    """The row of a step that was measured."""

    def find(rows: Sequence[Row]) -> tuple[float, ...]:
        return next(row.bpp for row in rows if row.step == step)

    return find


def at_seconds(seconds: float) -> At:
    """Between two rows, linear in the seconds."""

    def find(rows: Sequence[Row]) -> tuple[float, ...]:
        times = [row.seconds for row in rows]
        return tuple(float(np.interp(seconds, times, rates)) for rates in zip(*(row.bpp for row in rows), strict=True))

    return find


def savings(runs: dict[str, list[list[Row]]], at: At, slopes: Sequence[float]) -> dict[str, Saving]:
    """What every variant saves against the reference at one moment of the training; seeds are compared in pairs."""
    found = {}
    reference = np.array([at(rows) for rows in runs[REFERENCE]])
    for name, seeds in runs.items():
        rates = np.array([at(rows) for rows in seeds])
        logarithms = np.log(rates / reference)  # seeds × rates
        percent = 100 * (1 - np.exp(logarithms.mean(axis=1)))
        worth = float((-logarithms * np.asarray(slopes)).mean())
        spread = float(percent.max() - percent.min()) / 2
        found[name] = Saving(tuple(rates.mean(axis=0).tolist()), float(percent.mean()), worth, spread)
    return found


def steps_in_common(runs: dict[str, list[list[Row]]]) -> list[int]:
    """The steps at which all runs were measured, without the start."""
    return sorted(
        set.intersection(*({row.step for row in rows if row.step} for seeds in runs.values() for rows in seeds))
    )


def seconds_in_common(runs: dict[str, list[list[Row]]]) -> float:
    """How long all runs have trained for, at least."""
    return min(rows[-1].seconds for seeds in runs.values() for rows in seeds)


def ranking(found: dict[str, Saving]) -> list[str]:
    return sorted(found, key=lambda name: -found[name].percent)


def table(found: dict[str, Saving], runs: dict[str, list[list[Row]]], step: int) -> list[str]:
    """One line for each variant, the most frugal first."""
    lines = [
        "| context model | kMAC/pixel | parameters | ms a step | bpp at the three rates | bits saved | ± (seeds) | worth |",
        "|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for name in ranking(found):
        parts = complexity_by_part(VARIANTS[name])
        seconds = [next(row.seconds for row in rows if row.step == step) for rows in runs[name]]
        saving = found[name]
        rates = " ".join(f"{bpp:.4f}" for bpp in saving.bpp)
        kmac, size = parts["context"].kmac_per_pixel, parts["context"].parameters / 1e6
        lines.append(
            f"| {name} | {kmac:.1f} | {size:.1f} M | {1000 * np.mean(seconds) / step:.0f} | {rates} "
            f"| {_signed(saving.percent, 2)}% | {saving.spread:.2f} | {_signed(saving.decibels, 3)} dB |"
        )
    return lines


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def order_over_time(runs: dict[str, list[list[Row]]], slopes: Sequence[float]) -> list[str]:
    """The order after every stretch, and since when it has not changed."""
    steps = steps_in_common(runs)
    orders = [ranking(savings(runs, at_step(step), slopes)) for step in steps]
    since = steps[0]
    for (_, before), (step, order) in pairwise(zip(steps, orders, strict=True)):
        if order != before:
            since = step
    rows = [f"| {step} | {', '.join(order)} |" for step, order in zip(steps, orders, strict=True)]
    return ["| steps | fewest bits first |", "|---:|---|", *rows, "", f"The order has not changed since step {since}."]


def plot(runs: dict[str, list[list[Row]]], slopes: Sequence[float]) -> bytes:
    """Bits saved against the reference over steps, as PNG; a band from seed to seed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    steps = steps_in_common(runs)
    over_time = [savings(runs, at_step(step), slopes) for step in steps]
    with rc_context({"font.size": 10.5, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=_SIZE, dpi=_DPI)
        axes = figure.add_axes((0.09, 0.12, 0.68, 0.82))
        last = over_time[-1]
        others = sorted((name for name in runs if name != REFERENCE), key=lambda name: last[name].percent)
        for name, (colour, dashes, mark) in zip(others, STYLES, strict=False):
            line = np.array([found[name].percent for found in over_time])
            spread = np.array([found[name].spread for found in over_time])
            axes.plot(steps, line, color=colour, dashes=dashes or (None, None), marker=mark, markersize=5)
            axes.fill_between(steps, line - spread, line + spread, color=colour, alpha=0.12, linewidth=0)
        low, high = axes.get_ylim()
        ends = spread_apart([last[name].percent for name in others], LINE_HEIGHT * (high - low))
        for name, end, (colour, _, _) in zip(others, ends, STYLES, strict=False):
            axes.annotate(name, (steps[-1], end), (8, 0), textcoords="offset points", va="center", color=colour)
        axes.axhline(0, color="black", linewidth=2)
        axes.set_xlabel(f"training steps of {BATCH} crops")
        axes.set_ylabel(f"bits saved against {REFERENCE}, %")
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_report(folder: Path, curve: Path, output: Path) -> None:
    """Write tables (.md), plot (.png) and what both are made of (.json) from the runs in a folder.

    output: the path of all three, without a suffix.
    """
    runs = runs_of(folder)
    slopes = decibels_per_log_rate(json.loads(curve.read_text()))
    steps, seconds = steps_in_common(runs), seconds_in_common(runs)
    if not steps:
        raise FileError("the runs have no measured step in common", file=folder, advice="train them further")
    lines = [f"### The same {steps[-1]} steps", ""]
    lines += table(savings(runs, at_step(steps[-1]), slopes), runs, steps[-1])
    lines += ["", f"### The same {seconds:.0f} seconds of one core", ""]
    lines += table(savings(runs, at_seconds(seconds), slopes), runs, steps[-1])
    lines += ["", "### After every stretch, at the same steps", "", *order_over_time(runs, slopes), ""]
    record = {name: [[vars(row) for row in rows] for rows in seeds] for name, seeds in runs.items()}
    text = json.dumps({"decibels_per_log_rate": slopes, "runs": record}, indent=1)
    for suffix, content in ((".md", "\n".join(lines).encode()), (".json", text.encode()), (".png", plot(runs, slopes))):
        write_atomically(output.with_suffix(suffix), content, overwrite=True)
