"""What `hpcm bench` has measured, as Markdown: for the terminal, and for docs/benchmarks.md (`tools/benchmark_tables.py`)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from hpcm_codec.benchmark.cells import TARGET, meets_target
from hpcm_codec.benchmark.stages import STAGES, STEPS
from hpcm_codec.benchmark.timing import ACTIONS
from hpcm_codec.evaluation.machine import machine_in_words

DASH = "–"
BUSY = 0.5  # processes that use a core before we start: above it, a note warns that times are too long
Row = Sequence[str]


def markdown_table(headings: Row, rows: Sequence[Row]) -> str:
    """A table whose source lines up too; the first column is text, the others numbers."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    rules = [("-" * width if index == 0 else "-" * (width - 1) + ":") for index, width in enumerate(widths)]

    def line(cells: Row) -> str:
        padded = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(line, [headings, rules, *rows])) + "\n"


def as_markdown(results: dict[str, Any]) -> str:
    """All tables of a results file, with the machine they were measured on. results: as `hpcm bench --json` writes them."""
    kinds = {
        "stages": stages_in_words,
        "growth": growth_in_words,
        "cells": cells_in_words,
        "training": training_in_words,
        "whole": whole_in_words,
        "peers": peers_in_words,
    }
    return f"{_measured_on(results)}\n\n{kinds[results['kind']](results)}"


def _measured_on(results: dict[str, Any]) -> str:
    busy = results["load_average_before"]
    note = f" The machine was busy (load {busy:g} before the first run): idle, it is faster." if busy > BUSY else ""
    return f"Measured on {machine_in_words(results['machine'])}.{note}"


# -- stages -----------------------------------------------------------------------------------------------------------


def stages_in_words(results: dict[str, Any]) -> str:
    """The ceilings, and a table for every measurement."""
    ceilings = results["ceilings"]
    integer = ceilings["integer_operations"]
    parts = [
        f"Ceilings, measured in the same run: float32 {_giga(ceilings['float32_operations'])} GFLOP/s, "
        f"int16 {'not measured' if integer is None else _giga(integer) + ' Gop/s'}, "
        f"memory {_giga(ceilings['triad_bytes'])} GB/s (triad), {_giga(ceilings['copy_bytes'])} GB/s (copy).\n"
    ]
    for measured in results["measurements"]:
        title = f"`{measured['model']}`, {measured['width']}×{measured['height']}"
        if "left_out" in measured:
            parts.append(f"{title}: left out, {measured['left_out']}.\n")
        else:
            parts.append(f"{_stages_title(title, measured)}\n\n{stage_table(measured, ceilings)}")
    return "\n".join(parts)


def _stages_title(title: str, measured: dict[str, Any]) -> str:
    rate = 8 * measured["bytes"] / (measured["width"] * measured["height"])
    size = f"{measured['bytes']} bytes, {rate:.3f} bpp"
    weights = size if measured["weights"] == "checkpoint" else "random weights: the file's size means nothing"
    return f"**{title}**, {measured['profile']} profile, quality {measured['quality']:g}, {measured['picture']} ({weights})"


def stage_table(measured: dict[str, Any], ceilings: dict[str, float | None]) -> str:
    """A measurement's stages: time both ways, operations and least bytes, and the share of the machine's ceilings.

    Speeds are of encoding, and of decoding for stages that only decoding has.
    """
    rows = []
    for stage in STAGES:
        both = [measured[action]["stages"][stage] for action in ACTIONS]
        work = measured["work"].get(stage, {"operations": 0, "bytes": 0})
        seconds = both[0] or both[1]
        transforms = ("analysis", "hyper analysis", "synthesis") if measured.get("integer_transforms") else ()
        exact = measured["profile"] == "exact" and stage in ("hyper synthesis", *STEPS, *transforms)
        ceiling = ceilings["integer_operations" if exact else "float32_operations"]
        rows.append(
            [
                stage,
                *map(_milliseconds, both),
                *_speed(work["operations"], 1e9, seconds, ceiling),
                *_speed(work["bytes"], 1e6, seconds, ceilings["triad_bytes"]),
            ]
        )
    ways = [measured[action] for action in ACTIONS]
    nothing = [DASH] * 6
    rows += [
        ["**codec in all**", *(f"**{_milliseconds(way['seconds'])}**" for way in ways), *nothing],
        ["range of the runs", *map(_span, ways), *nothing],
        ["file to file", *(_milliseconds(way["file_to_file"]) for way in ways), *nothing],
        ["from the shell", *map(_from_the_shell, ways), *nothing],
        ["peak memory", *(_megabytes(way["peak_memory_bytes"]) for way in ways), *nothing],
    ]
    if any(way["device_memory_bytes"] is not None for way in ways):
        rows.append(["peak memory of the GPU", *(_megabytes(way["device_memory_bytes"]) for way in ways), *nothing])
    headings = ["stage", "encode", "decode", "Gop", "Gop/s", "of ceiling", "least MB", "GB/s", "of ceiling"]
    return markdown_table(headings, rows)


def _speed(amount: float, unit: float, seconds: float, ceiling: float | None) -> list[str]:
    """The amount in its unit, 10⁹ of it in a second, and the share of the ceiling."""
    if not amount:
        return [DASH] * 3
    speed = amount / seconds if seconds else 0.0
    share = f"{speed / ceiling:.0%}" if ceiling and seconds else DASH
    return [f"{amount / unit:.2f}", f"{speed / 1e9:.1f}" if seconds else DASH, share]


def _span(way: dict[str, Any]) -> str:
    taken = way["all_seconds"]
    if len(taken) == 1:
        return "1 run"
    return f"{min(taken) * 1000:.0f}–{max(taken) * 1000:.0f} ms, {len(taken)} runs"


def _from_the_shell(way: dict[str, Any]) -> str:
    taken = way["shell_seconds"]
    return DASH if taken is None else f"{taken[len(taken) // 2]:.2f} s"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds else DASH  # exactly nothing: a stage this direction does not have


def _megabytes(count: int | None) -> str:
    return DASH if count is None else f"{count / 1e6:.0f} MB"


def _giga(value: float) -> str:
    return f"{value / 1e9:.0f}"


# -- growth -----------------------------------------------------------------------------------------------------------


def growth_in_words(results: dict[str, Any]) -> str:
    """Time and memory against pixels, and the exponents."""
    found = results["growth"]
    rows = []
    for point in found["points"]:
        pixels = point["width"] * point["height"]
        cells = [f"{point['width']}×{point['height']}", f"{pixels / 1e6:.2f}"]
        for action in ACTIONS:
            way = point[action]
            cells += [
                f"{way['seconds']:.2f} s",
                f"{way['seconds'] / pixels * 1e6:.2f} s",
                _megabytes(way["peak_memory_bytes"]),
            ]
        rows.append(cells)
    exponents = ["exponent", DASH]
    for action in ACTIONS:
        fitted = found["exponents"][action]
        exponents += [f"{fitted['seconds']:.2f}", DASH, f"{fitted['peak_memory_bytes']:.2f}"]
    sides = [f"{action}{what}" for action in ACTIONS for what in (": time", ", a megapixel", ": peak memory")]
    about = f"`{found['model']}`, {found['profile']} profile, quality {found['quality']:g}, from PPM and to PPM, fresh processes:"
    return f"{about}\n\n{markdown_table(['size', 'megapixels', *sides], [*rows, exponents])}"


# -- cells ------------------------------------------------------------------------------------------------------------


def cells_in_words(results: dict[str, Any]) -> str:
    """A table for every size: each cell beside the baseline, and the planned reductions."""
    parts = []
    for found in results["sizes"]:
        baseline = found["cells"][0]
        before = found["before_the_cell"]
        rows = [_cell_row(cell, baseline, before) for cell in found["cells"]]
        promised = (
            f"{TARGET[quantity]:+.0%}".replace("-", "−") for quantity in ("operations", "memory_bytes", "seconds")
        )
        operations, memory, seconds = promised
        rows.append(["promised", DASH, DASH, operations, DASH, memory, DASH, seconds, DASH])
        headings = ["cell at s3", "M weights", "Gop", "Δ", "memory", "Δ", "time", "Δ", "whole step"]
        parts.append(
            f"{found['width']}×{found['height']}, {baseline['rounds']} rounds:\n\n{markdown_table(headings, rows)}"
        )
        parts.append(
            f"Adaptor and prior before the cell, the same in every row: {before['operations'] / 1e9:.1f} Gop, "
            f"{before['seconds'] * 1000:.0f} ms.\n"
        )
    return "\n".join(parts)


def _cell_row(cell: dict[str, Any], baseline: dict[str, Any], before: dict[str, Any]) -> list[str]:
    name = f"{cell['title']} (`{cell['preset']}`)" if cell["preset"] else cell["title"]
    step = f"{(cell['seconds'] + before['seconds']) * 1000:.0f} ms"
    shown = {
        "operations": f"{cell['operations'] / 1e9:.2f}",
        "memory_bytes": f"{cell['memory_bytes'] / 1e6:.1f} MB",
        "seconds": f"{cell['seconds'] * 1000:.1f} ms",
    }
    cells = [f"**{name}**" if meets_target(cell, baseline) else name, f"{cell['parameters'] / 1e6:.2f}"]
    for quantity, text in shown.items():
        change = cell[quantity] / baseline[quantity] - 1
        cells += [text, DASH if cell is baseline else f"{change:+.0%}".replace("-", "−")]
    return [*cells, step]


# -- training ---------------------------------------------------------------------------------------------------------


def training_in_words(results: dict[str, Any]) -> str:
    """Crops a second by the number of processes, for this version and the one it is compared with."""
    found = results["training"]
    runs = found["runs"]
    others = {run["processes"]: run for run in runs if run["version"] == "other"}
    rows = []
    for run in runs:
        ceiling = found["bfloat16_operations"][str(run["processes"])]
        step = run["processes"] * run["crops_per_process"] / run["crops_per_second"]
        taken = run["all_crops_per_second"]
        commit = "" if run["commit"] is None else f" ({run['commit']})"
        rows.append(
            [
                f"{run['version']}{commit}",
                str(run["processes"]),
                str(run["crops_per_process"]),
                _milliseconds(step),
                f"**{run['crops_per_second']:.2f}**",
                f"{min(taken):.2f}–{max(taken):.2f}",
                f"{ceiling / 1e12:.2f} TFLOP/s",
                f"{run['operations_per_second'] / ceiling:.1%}",
                DASH if run["version"] == "other" else _times(run, others.get(run["processes"])),
            ]
        )
    headings = ["version", "processes", "crops each", "step", "crops a second", "range", "bfloat16 rate", "share of it"]
    headings.append("times the other")
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    allocator = "the C library's allocator" if found["allocator"] is None else f"{found['allocator']} preloaded"
    turns = len(runs[0]["all_crops_per_second"])
    return (
        f"`{found['model']}` ({found['kmac_per_pixel']:.1f} kMAC/pixel), crops of {found['edge']}×{found['edge']} of {found['picture']}, "
        f"{threads} a process, matrix products: {found['matrix_products']}, {allocator}. Each figure is the median of {turns} "
        f"run{'s' if turns > 1 else ''} of {found['steps']} steps after {found['warm_up_steps']} that do not count.\n\n"
        f"{markdown_table(headings, rows)}"
    )


def _times(run: dict[str, Any], other: dict[str, Any] | None) -> str:
    """How many times as fast as the other version: the median over the turns, in each of which both met the same load."""
    if other is None:
        return DASH
    pairs = zip(run["all_crops_per_second"], other["all_crops_per_second"], strict=True)
    return f"**{statistics.median(here / there for here, there in pairs):.2f}**"


# -- whole commands ---------------------------------------------------------------------------------------------------


def whole_in_words(results: dict[str, Any]) -> str:
    """Where a whole command's time goes, for every picture."""
    tables = []
    for measured in results["measurements"]:
        rows = [
            (part, *(f"{measured[action]['parts'][part]:.3f}" for action in ACTIONS))
            for part in measured["encode"]["parts"]
        ]
        rows.append(("the whole process", *(f"{measured[action]['whole']:.3f}" for action in ACTIONS)))
        rows.append(("peak memory, MB", *(f"{measured[action]['memory'] / 1e6:.0f}" for action in ACTIONS)))
        tables.append(
            f"{measured['picture']}, quality {results['quality']:g}\n\n" + markdown_table(("s", *ACTIONS), rows)
        )
    return "\n".join(tables)


def peers_in_words(results: dict[str, Any]) -> str:
    """Ours and other programs at about equal PSNR, for every picture."""
    tables = []
    headings = ("whole processes", "bytes", "PSNR dB", "encode s", "decode s")
    for measured in results["measurements"]:
        rows = [
            (row["name"], f"{row['bytes']}", f"{row['psnr']:.2f}", f"{row['encode']:.3f}", f"{row['decode']:.3f}")
            for row in measured["rows"]
        ]
        tables.append(f"{measured['picture']}, {results['threads']} threads\n\n" + markdown_table(headings, rows))
    return "\n".join(tables)
