"""`hpcm bench`: encode and decode times of one picture on this machine, by stage, and peak memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from hpcm_codec.cli import options
from hpcm_codec.errors import UsageError

MEGABYTE = 1e6
BUSY = 0.5  # processes wanting a core before we start: above it, a note says that times are too long
LARGEST_SIDE = 2**15


def parse_size(text: str) -> tuple[int, int]:
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
@click.option("--size", metavar="WxH", default="768x512", show_default=True, help="Size the picture is brought to.")
@click.option("--image", type=click.Path(path_type=Path), help="The picture.  [default: a sample photograph]")
@click.option("-q", "--quality", type=click.FloatRange(0, 100), default=50.0, show_default=True)
@click.option("--model", metavar="NAME|PATH", help="The checkpoint.  [default: phase1-lite]")
@options.profile
@click.option("--device", metavar="auto|cpu|cuda", default="auto", show_default=True, help="Where the model runs.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.  [default: torch's choice]")
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Runs the median is taken of.")
@click.option("--json", "output", metavar="OUT", help="Write the figures as JSON (- for stdout).")
@click.option("-f", "--force", is_flag=True, help="Overwrite OUT.")
def command(
    size: str,
    image: Path | None,
    quality: float,
    model: str | None,
    profile: str,
    device: str,
    threads: int | None,
    runs: int,
    output: str | None,
    force: bool,
) -> None:
    """Measure how long encoding and decoding one picture takes, and how much memory.

    Times are inside the process, the model loaded, medians after a warm-up; memory is that of a whole fresh process.
    """
    width, height = parse_size(size)
    options.refuse_existing(output, force)
    results = _measure(width, height, image, quality, model, profile, device, threads, runs)
    if output is not None:
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        if output == "-":
            click.echo(text, nl=False)
        else:
            from hpcm_codec.files import write_atomically

            write_atomically(output, text.encode(), overwrite=force)
    if output != "-":
        _print_table(results)


def _measure(
    width: int,
    height: int,
    image: Path | None,
    quality: float,
    model: str | None,
    profile: str,
    device: str,
    threads: int | None,
    runs: int,
) -> dict[str, Any]:
    import torch

    from hpcm_codec.checkpoints import DEFAULT_MODEL
    from hpcm_codec.codec import load_codec
    from hpcm_codec.evaluation import speed
    from hpcm_codec.evaluation.machine import describe_machine, load_average
    from hpcm_codec.images import Picture, read_picture

    load_before = round(load_average(), 2)  # our own runs must not count
    source = image or speed.sample_photograph()
    pixels = speed.synthetic_photograph(width, height) if source is None else read_picture(source).pixels
    picture = Picture(speed.fitted(pixels, width, height))
    if threads is not None:
        torch.set_num_threads(threads)
    model = model or DEFAULT_MODEL
    codec = load_codec(model, device, profile)
    data = codec.encode(picture, quality)
    results: dict[str, Any] = {
        "width": width,
        "height": height,
        "picture": "synthetic" if source is None else source.name,
        "quality": quality,
        "bytes": len(data),
        "runs": runs,
        "checkpoint": {
            "model": Path(model).stem if model.endswith(".safetensors") else model,
            "identity": codec.identity.hex(),
            "profile": codec.profile,
        },
        "machine": describe_machine(str(codec.device)),
        "load_average_before": load_before,
    }
    works = {"encode": lambda: codec.encode(picture, quality), "decode": lambda: codec.decode(data)}
    for action, work in works.items():
        timing = speed.time_work(codec, work, runs)
        carried = picture if action == "encode" else data
        results[action] = {
            "seconds": round(timing.seconds, 6),
            "all_seconds": [round(value, 6) for value in timing.all_seconds],
            "stages": {stage: round(value, 6) for stage, value in timing.stages.items()},
            "peak_memory_bytes": speed.peak_memory(action, carried, quality, model, device, threads, profile),
        }
    return results


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from hpcm_codec.evaluation.machine import machine_in_words

    encode, decode = results["encode"], results["decode"]
    bpp = 8 * results["bytes"] / (results["width"] * results["height"])
    size = f"{results['width']}×{results['height']}"
    table = Table(
        "",
        title=f"{results['checkpoint']['model']}, {results['checkpoint']['profile']} profile, {size}, quality {results['quality']:g}",
    )
    for heading in ("encode", "decode"):
        table.add_column(heading, justify="right")
    for stage in encode["stages"]:
        table.add_row(f"  {stage}", *(_milliseconds(side["stages"][stage]) for side in (encode, decode)))
    table.add_section()
    table.add_row("in all, median", *(_milliseconds(side["seconds"]) for side in (encode, decode)))
    spans = (
        f"{min(side['all_seconds']) * 1000:.0f}–{max(side['all_seconds']) * 1000:.0f} ms" for side in (encode, decode)
    )
    table.add_row(f"range of {results['runs']} runs", *spans)
    table.add_row("peak memory", *(f"{side['peak_memory_bytes'] / MEGABYTE:.0f} MB" for side in (encode, decode)))
    Console(highlight=False).print(table)
    click.echo(f"picture: {results['picture']}, {results['bytes']} bytes, {bpp:.3f} bpp")
    click.echo(machine_in_words(results["machine"]))
    if results["load_average_before"] > BUSY:
        load = results["load_average_before"]
        click.echo(f"note: the machine was busy before the measurement (load {load:g}); idle, it is faster")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds else "–"  # exactly nothing: a stage this direction does not have
