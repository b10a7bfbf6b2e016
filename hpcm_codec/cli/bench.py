"""`hpcm bench`: time and memory of encoding and decoding on this machine, by stage; their growth with the picture; the cost of the
context cells; and the speed of training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hpcm_codec.cli import options
from hpcm_codec.constants import own_name
from hpcm_codec.errors import UsageError
from hpcm_codec.system.threads import set_threads

if TYPE_CHECKING:
    from hpcm_codec.benchmark.measure import Settings

LARGEST_SIDE = 2**15
DEFAULT_SIZE = "768x512"
RUNS, TURNS = 5, 3
OF_TRAINING = ("steps", "crops_per_process", "against", "against_crops")
NOT_OF_TRAINING = ("sizes", "quality", "profile", "longest")

Size = tuple[int, int]


def parse_sides(text: str) -> Size:
    """(width, height) of "768x512"; raises UsageError.

    >>> parse_sides("768x512")
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
@click.option("--whole", "kind", flag_value="whole", help="Where the time of a whole command goes, on the processor.")
@click.option(
    "--peers", "kind", flag_value="peers", help="Beside cjxl, avifenc and cwebp, whole processes at about equal PSNR."
)
@click.option(
    "--training", "kind", flag_value="training", help="Crops of 256x256 a second in `hpcm train run` instead."
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
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Processor threads.  [default: torch's choice; --training: 1 a process]",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    help=f"Runs a median is taken of, at most.  [default: {RUNS}; --training: {TURNS}]",
)
@click.option("--longest", type=click.FloatRange(min=0), metavar="SECONDS", help="Leave out what takes longer one way.")
@click.option("--steps", type=click.IntRange(min=2), help="--training: steps that are timed in a run.  [default: 40]")
@click.option(
    "--crops-per-process",
    type=click.IntRange(min=1),
    metavar="N",
    help="--training: crops of a process in a step.  [default: 4]",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="--training: a checkout of another version, measured in turns with this one.",
)
@click.option(
    "--against-crops",
    type=click.IntRange(min=1),
    metavar="N",
    help="--training: the other version's crops of a process.  [default: 2]",
)
@click.option("--json", "output", metavar="OUT", help="Write the figures as JSON (- for stdout).")
@click.option("-f", "--force", is_flag=True, help="Overwrite OUT.")
@click.pass_context
def command(
    context: click.Context,
    kind: str | None,
    sizes: tuple[str, ...],
    image: Path | None,
    quality: float,
    models: tuple[str, ...],
    profile: str,
    device: str,
    threads: int | None,
    runs: int | None,
    longest: float | None,
    steps: int | None,
    crops_per_process: int | None,
    against: Path | None,
    against_crops: int | None,
    output: str | None,
    force: bool,
) -> None:
    """Measure what encoding and decoding a picture takes: time by stage, next to what this machine can at most do, and memory.

    Times are inside the process, the model loaded, medians after a warm-up (where one run takes 10 seconds and more, of that run);
    memory is that of a whole fresh process.

    --training measures `hpcm train run` on the processor, in one process and in two; LD_PRELOAD and the like hold for it too.
    """
    chosen = [parse_sides(size) for size in sizes]
    models = tuple(map(own_name, models))
    options.check_device(device)
    if kind == "growth" and (len(models) > 1 or 0 < len(chosen) < 3):
        raise UsageError("--growth takes one model, and three sizes or more (or none for its own)")
    _refuse_options_of_another_kind(context, kind == "training")
    if kind == "training" and (len(models) > 1 or device.startswith("cuda")):
        raise UsageError("--training takes one preset, and measures the processor")
    if against_crops is not None and against is None:
        raise UsageError("--against-crops needs --against")
    options.refuse_existing(output, force)
    if kind == "training":
        given: dict[str, Any] = {"crops": crops_per_process, "steps": steps, "turns": runs, "threads": threads}
        given |= {"image": image, "against": against, "against_crops": against_crops}
        results = _training(models, {name: value for name, value in given.items() if value is not None})
    else:
        few = RUNS if runs is None else runs
        results = _results(kind or "stages", chosen, models, image, quality, profile, device, threads, few, longest)
    if output is not None:
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        if output == "-":
            click.echo(text, nl=False)
            return
        from hpcm_codec.system.files import write_atomically

        write_atomically(output, text.encode(), overwrite=force)
    from hpcm_codec.benchmark.tables import as_markdown

    click.echo(as_markdown(results), nl=False)


def _refuse_options_of_another_kind(context: click.Context, training: bool) -> None:
    """Raise UsageError for options that have no meaning with, or without, --training."""
    for name in NOT_OF_TRAINING if training else OF_TRAINING:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = next(parameter.opts[-1] for parameter in context.command.params if parameter.name == name)
            raise UsageError(f"{option} {'means nothing with' if training else 'is for'} --training")


def _training(models: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    from hpcm_codec.benchmark.training import TrainingSettings, measure_training
    from hpcm_codec.constants import DEFAULT_MODEL
    from hpcm_codec.evaluation.machine import describe_machine, load_average

    load_before = round(load_average(), 2)
    settings = TrainingSettings(models[0] if models else DEFAULT_MODEL, **given)
    set_threads(settings.threads)
    about = {"kind": "training", "machine": describe_machine("cpu"), "load_average_before": load_before}
    return about | {"training": measure_training(settings)}


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
    from hpcm_codec.constants import DEFAULT_MODEL
    from hpcm_codec.evaluation.machine import describe_machine, load_average

    load_before = round(load_average(), 2)  # before our own runs
    set_threads(threads)
    if kind in ("whole", "peers"):
        asked = _whole if kind == "whole" else _peers
        about = {"kind": kind, "machine": describe_machine("cpu"), "load_average_before": load_before}
        return about | asked((models or (DEFAULT_MODEL,))[0], sizes, image, quality, threads, runs)
    from hpcm_codec.benchmark.measure import Settings
    from hpcm_codec.system.devices import has_cuda

    if device == "auto":
        device = "cuda" if has_cuda() else "cpu"
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
    measurements = list(measure_models(models, sizes or [parse_sides(DEFAULT_SIZE)], settings))
    ceilings = before.highest(measure_ceilings(settings.device))
    return {"ceilings": ceilings.to_json(), "measurements": measurements}


def _whole(
    model: str, sizes: list[Size], image: Path | None, quality: float, threads: int | None, runs: int
) -> dict[str, Any]:
    from hpcm_codec.benchmark.whole import measure_whole

    with _picture_files(sizes, image) as pictures:
        measured = [{"picture": name, **measure_whole(path, quality, model, threads, runs)} for name, path in pictures]
    return {"quality": quality, "measurements": measured}


def _peers(
    model: str, sizes: list[Size], image: Path | None, quality: float, threads: int | None, runs: int
) -> dict[str, Any]:
    from hpcm_codec.benchmark.peers import measure_peers
    from hpcm_codec.system.threads import thread_count

    several = threads or thread_count()
    with _picture_files(sizes, image) as pictures:
        measured = [
            {"picture": name, "rows": measure_peers(path, quality, model, several, runs)} for name, path in pictures
        ]
    return {"quality": quality, "threads": several, "measurements": measured}


@contextmanager
def _picture_files(sizes: list[Size], image: Path | None) -> Iterator[list[tuple[str, Path]]]:
    """The picture at every size asked for, as PNG files, and what to call them."""
    from PIL import Image

    from hpcm_codec.benchmark.pictures import picture_of_size

    with TemporaryDirectory() as folder:
        found = []
        for width, height in sizes or [parse_sides(DEFAULT_SIZE)]:
            picture, name = picture_of_size(width, height, image)
            path = Path(folder) / f"{width}x{height}.png"
            Image.fromarray(picture.pixels.squeeze()).save(path)
            found.append((f"{name}, {width}×{height}", path))
        yield found


def _growth(models: tuple[str, ...], sizes: list[Size], settings: Settings) -> dict[str, Any]:
    from hpcm_codec.benchmark.growth import SIZES, growth

    return {"growth": growth(models[0], sizes or SIZES, settings)}


def _cells(models: tuple[str, ...], sizes: list[Size], settings: Settings) -> dict[str, Any]:
    from hpcm_codec.benchmark.cells import SIZES, compare_cells

    return {"sizes": [compare_cells(*size, settings.device) for size in sizes or SIZES]}
