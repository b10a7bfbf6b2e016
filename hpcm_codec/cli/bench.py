"""`hpcm bench`: what encoding and decoding take on this machine, by stage; how that grows; and what the context cells take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcm_codec.cli import options
from hpcm_codec.errors import UsageError
from hpcm_codec.threads import set_threads

if TYPE_CHECKING:
    from hpcm_codec.benchmark.measure import Settings

LARGEST_SIDE = 2**15
DEFAULT_SIZE = "768x512"

Size = tuple[int, int]


def parse_size(text: str) -> Size:
    """(width, height) of "768x512"; raises UsageError.

    >>> parse_size("768x512")
    (768, 512)
    """
    match = re.fullmatch(r"([0-9]+)[x×]([0-9]+)", text.strip().lower())
    width, height = map(int, match.groups()) if match else (0, 0)
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise UsageError(f"--size takes WIDTHxHEIGHT, each from 1 to {LARGEST_SIDE}, not {text!r}")
    return width, height


@click.command("bench")
@click.option("--growth", "kind", flag_value="growth", help="Time and memory from 0.1 to 33 megapixels instead.")
@click.option(
    "--cell", "kind", flag_value="cells", help="One full-resolution context step with different cells instead."
)
@click.option("--size", "sizes", metavar="WxH", multiple=True, help=f"Once or more.  [default: {DEFAULT_SIZE}]")
@click.option("--image", type=click.Path(path_type=Path), help="The picture.  [default: a sample photograph]")
@click.option("-q", "--quality", type=click.FloatRange(0, 100), default=50.0, show_default=True)
@click.option(
    "--model",
    "models",
    metavar="NAME|PATH",
    multiple=True,
    help="A checkpoint, or a preset, which gets random weights; once or more.  [default: phase1-lite]",
)
@options.profile
@click.option("--device", metavar="auto|cpu|cuda", default="auto", show_default=True, help="Where the model runs.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.  [default: torch's choice]")
@click.option(
    "--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Runs a median is taken of, at most."
)
@click.option("--longest", type=click.FloatRange(min=0), metavar="SECONDS", help="Leave out what takes longer one way.")
@click.option("--json", "output", metavar="OUT", help="Write the figures as JSON (- for stdout).")
@click.option("-f", "--force", is_flag=True, help="Overwrite OUT.")
def command(
    kind: str | None,
    sizes: tuple[str, ...],
    image: Path | None,
    quality: float,
    models: tuple[str, ...],
    profile: str,
    device: str,
    threads: int | None,
    runs: int,
    longest: float | None,
    output: str | None,
    force: bool,
) -> None:
    """Measure what encoding and decoding a picture takes: time by stage, next to what this machine can at most do, and memory.

    Times are inside the process, the model loaded, medians after a warm-up (where one run takes 10 seconds and more, of that run);
    memory is that of a whole fresh process.
    """
    chosen = [parse_size(size) for size in sizes]
    options.check_device(device)
    if kind == "growth" and (len(models) > 1 or 0 < len(chosen) < 3):
        raise UsageError("--growth takes one model, and three sizes or more (or none for its own)")
    options.refuse_existing(output, force)
    results = _results(kind or "stages", chosen, models, image, quality, profile, device, threads, runs, longest)
    if output is not None:
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        if output == "-":
            click.echo(text, nl=False)
            return
        from hpcm_codec.files import write_atomically

        write_atomically(output, text.encode(), overwrite=force)
    from hpcm_codec.benchmark.tables import as_markdown

    click.echo(as_markdown(results), nl=False)


def _results(
    kind: str,
    sizes: list[Size],
    models: tuple[str, ...],
    image: Path | None,
    quality: float,
    profile: str,
    device: str,
    threads: int | None,
    runs: int,
    longest: float | None,
) -> dict[str, Any]:
    import torch

    from hpcm_codec.benchmark.measure import Settings
    from hpcm_codec.evaluation.machine import describe_machine, load_average
    from hpcm_codec.shipped import DEFAULT_MODEL

    load_before = round(load_average(), 2)  # our own runs must not count
    set_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    models = models or (DEFAULT_MODEL,)
    limit = float("inf") if longest is None else longest
    settings = Settings(image, quality, profile, device, threads, runs, limit)
    measured = {"stages": _stages, "growth": _growth, "cells": _cells}[kind](models, sizes, settings)
    about = {"kind": kind, "machine": describe_machine(device), "load_average_before": load_before}
    return about | measured


def _stages(models: tuple[str, ...], sizes: list[Size], settings: Settings) -> dict[str, Any]:
    from hpcm_codec.benchmark.ceilings import measure_ceilings
    from hpcm_codec.benchmark.measure import measure_models

    before = measure_ceilings(settings.device)
    measurements = list(measure_models(models, sizes or [parse_size(DEFAULT_SIZE)], settings))
    ceilings = before.highest(measure_ceilings(settings.device))
    return {"ceilings": ceilings.to_json(), "measurements": measurements}


def _growth(models: tuple[str, ...], sizes: list[Size], settings: Settings) -> dict[str, Any]:
    from hpcm_codec.benchmark.growth import SIZES, growth

    return {"growth": growth(models[0], sizes or SIZES, settings)}


def _cells(models: tuple[str, ...], sizes: list[Size], settings: Settings) -> dict[str, Any]:
    from hpcm_codec.benchmark.cells import SIZES, compare_cells

    return {"sizes": [compare_cells(*size, settings.device) for size in sizes or SIZES]}
