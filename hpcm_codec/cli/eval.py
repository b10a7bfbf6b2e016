"""`hpcm eval`: rate, quality and time of a codec on a data set, really encoded and really decoded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcm_codec.cli import options
from hpcm_codec.errors import UsageError

if TYPE_CHECKING:
    from hpcm_codec.evaluation.codecs import PictureCodec
    from hpcm_codec.evaluation.datasets import DataSet
    from hpcm_codec.evaluation.runner import Means, Row

CODECS = ("hpcm", "jpeg", "webp", "avif")
# Eight positions spread evenly over 0 to 100, on the half steps a file can name.
DEFAULT_QUALITIES = (0.0, 14.5, 28.5, 43.0, 57.0, 71.5, 85.5, 100.0)
METRICS = ("psnr-rgb", "ms-ssim-rgb-db")
DASH = "–"


def parse_qualities(text: str) -> tuple[float, ...]:
    """Comma-separated qualities, 0 to 100 in half steps, rising and each once; raises UsageError.

    >>> parse_qualities("50, 0,12.5")
    (0.0, 12.5, 50.0)
    """
    try:
        qualities = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"-q takes numbers with commas between them, not {text!r}") from None
    for quality in qualities:
        if not 0 <= quality <= 100:
            raise UsageError(f"quality {quality:g} is not between 0 and 100")
        if 2 * quality != int(2 * quality):
            raise UsageError(f"quality {quality:g} is not a whole or half number")
    return tuple(qualities)


@click.command("eval")
@click.option("--dataset", required=True, metavar="kodak|DIR", help="The Kodak set, or a folder of pictures.")
@click.option("--codec", "kind", type=click.Choice(CODECS), default="hpcm", show_default=True, help="What to measure.")
@click.option("-q", "--qualities", metavar="Q,Q,…", help="Qualities, 0 to 100.  [default: 8 over the whole range]")
@click.option("--model", metavar="NAME|PATH", help="The checkpoint.  [default: phase1-lite]")
@options.profile
@click.option("--device", metavar="auto|cpu|cuda", default="auto", show_default=True, help="Where the model runs.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.  [default: torch's choice]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the data set's folder lies.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N pictures.")
@click.option("--json", "output", metavar="OUT", help="Write the results in CompressAI's JSON form (- for stdout).")
@click.option("-f", "--force", is_flag=True, help="Overwrite OUT.")
@click.option("--anchor", "anchors", multiple=True, metavar="CURVE.json", help="Print the BD-rate against this curve.")
@click.option("--metric", type=click.Choice(METRICS), default=METRICS[0], show_default=True, help="For --anchor.")
@click.option("--verify", is_flag=True, help="Check that files decode to exactly the encoder's own reconstruction.")
@click.option("--per-image", is_flag=True, help="Print a row for every picture.")
def command(
    dataset: str,
    kind: str,
    qualities: str | None,
    model: str | None,
    profile: str,
    device: str,
    threads: int | None,
    data_dir: Path | None,
    limit: int | None,
    output: str | None,
    force: bool,
    anchors: tuple[str, ...],
    metric: str,
    verify: bool,
    per_image: bool,
) -> None:
    """Encode and decode the pictures of a data set; print mean rate, quality and time.

    Rates count whole files. `--codec jpeg` (or webp, avif) measures an ordinary format through Pillow, at qualities of
    its own.
    """
    from hpcm_codec.evaluation import bjontegaard, runner
    from hpcm_codec.evaluation.codecs import PILLOW_QUALITIES
    from hpcm_codec.evaluation.datasets import find_dataset

    if kind != "hpcm" and model is not None:
        raise UsageError(f"--model is for --codec hpcm, not for {kind}")
    if kind != "hpcm" and verify:
        raise UsageError(
            f"--verify is for --codec hpcm: the encoder of {kind} does not say what a decoder must arrive at"
        )
    default_qualities = DEFAULT_QUALITIES if kind == "hpcm" else PILLOW_QUALITIES
    chosen = default_qualities if qualities is None else parse_qualities(qualities)
    if anchors and len(chosen) < bjontegaard.FEWEST_POINTS:
        raise UsageError(f"a BD-rate needs {bjontegaard.FEWEST_POINTS} qualities or more, not {len(chosen)}")
    options.refuse_existing(output, force)
    anchor_curves = [bjontegaard.read_curve(anchor, metric) for anchor in anchors]
    pictures = find_dataset(dataset, data_dir, lambda line: click.echo(line, err=True)).first(limit)
    codec, described = _load(kind, model, device, threads, chosen, profile)

    rows = _evaluate_with_progress(codec, pictures, chosen, verify)

    description = (
        f"{described.pop('description')}; {pictures.name}, {len(pictures.names)} pictures, whole files counted"
    )
    results = runner.summarise(described.pop("name"), description, rows, dataset=pictures.name, **described)
    comparisons, refusal = [], None
    for curve in anchor_curves:
        try:
            own = bjontegaard.Curve.from_results(results, metric)
            comparisons.append(bjontegaard.compare(curve, own))
        except UsageError as error:
            refusal = error  # told at the end: the measurements themselves are good
    if comparisons:
        results["comparisons"] = [{"metric": metric, **asdict(comparison)} for comparison in comparisons]
    _write_json(results, output, force)
    if output != "-":
        _print_tables(results, runner.means_of(rows), rows if per_image else ())
        for comparison in comparisons:
            click.echo(comparison.in_words())
    if refusal is not None:
        raise refusal


def _load(
    kind: str, model: str | None, device: str, threads: int | None, qualities: Sequence[float], profile: str
) -> tuple[PictureCodec, dict[str, Any]]:
    """The codec, and what the results file says about it: name, description, machine and, for ours, checkpoint."""
    from hpcm_codec.evaluation.codecs import PillowCodec
    from hpcm_codec.evaluation.machine import describe_machine

    if kind != "hpcm":
        ordinary = PillowCodec(kind)
        for quality in qualities:
            ordinary.check_quality(quality)
        name = ordinary.format.name
        return ordinary, {"name": name, "description": ordinary.description, "machine": describe_machine()}

    import torch

    from hpcm_codec.checkpoints import DEFAULT_MODEL
    from hpcm_codec.codec import load_codec

    if threads is not None:
        torch.set_num_threads(threads)
    model = model or DEFAULT_MODEL
    codec = load_codec(model, device, profile)
    name = Path(model).stem if model.endswith(".safetensors") else model
    return codec, {
        "name": f"hpcm {name}",
        "description": f"hpcm-codec, model {name}, checkpoint {codec.identity.hex()}, {codec.profile} profile",
        "machine": describe_machine(str(codec.device)),
        "checkpoint": {"model": name, "identity": codec.identity.hex(), "profile": codec.profile},
    }


def _evaluate_with_progress(
    codec: PictureCodec, pictures: DataSet, qualities: Sequence[float], verify: bool
) -> list[Row]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from hpcm_codec.evaluation.runner import evaluate

    console = Console(stderr=True)
    if not console.is_terminal:
        return evaluate(codec, pictures, qualities, verify=verify)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(pictures.names) * len(qualities))
        return evaluate(
            codec,
            pictures,
            qualities,
            verify=verify,
            on_row=lambda row: progress.update(task, advance=1, description=row.image),
        )


def _write_json(results: dict[str, Any], output: str | None, force: bool) -> None:
    from hpcm_codec.files import write_atomically

    if output is None:
        return
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if output == "-":
        click.echo(text, nl=False)
    else:
        write_atomically(output, text.encode(), overwrite=force)


def _print_tables(results: dict[str, Any], means: Sequence[Means], rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    from hpcm_codec.evaluation.machine import machine_in_words

    console = Console(highlight=False)
    measures = ("quality", "bpp", "PSNR dB", "MS-SSIM", "MS-SSIM dB", "encode s", "decode s")
    if rows:
        table = Table("picture", title=results["name"])
        for heading in (*measures[:4], *measures[5:]):
            table.add_column(heading, justify="right")
        for row in rows:
            of_row = (row.bpp, row.psnr, row.ms_ssim, row.encoding_time, row.decoding_time)
            table.add_row(row.image, f"{row.quality:g}", *map(_shown, of_row, (4, 2, 4, 3, 3)))
        console.print(table)
    table = Table(title=f"{results['name']}: means over {results['images']} pictures of {results['dataset']}")
    for heading in measures:
        table.add_column(heading, justify="right")
    for mean in means:
        figures = (mean.bpp, mean.psnr, mean.ms_ssim, mean.ms_ssim_db, mean.encoding_time, mean.decoding_time)
        table.add_row(f"{mean.quality:g}", *map(_shown, figures, (4, 2, 4, 2, 3, 3)))
    console.print(table)
    click.echo(machine_in_words(results["machine"]))


def _shown(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"
