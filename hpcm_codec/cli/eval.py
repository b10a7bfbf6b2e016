"""`hpcm eval`: rate, quality, time and memory of codecs on a data set, really encoded and really decoded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcm_codec.bitstream.quality import quality_code, quality_of
from hpcm_codec.cli import options
from hpcm_codec.constants import LARGEST_QUALITY_CODE
from hpcm_codec.errors import UsageError
from hpcm_codec.system.threads import set_threads

if TYPE_CHECKING:
    from hpcm_codec.evaluation.datasets import DataSet
    from hpcm_codec.evaluation.runner import Row
    from hpcm_codec.evaluation.subjects import Subject

# Eight positions spread evenly over 0 to 100, on the half steps a file can name.
DEFAULT_QUALITIES = (0.0, 14.5, 28.5, 43.0, 57.0, 71.5, 85.5, 100.0)
METRICS = ("psnr-rgb", "ms-ssim-rgb-db", "ssimulacra2")
REPORT_IMAGES = 3  # pictures with a slider, where none are named


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
        if quality_of(quality_code(quality)) != quality:
            raise UsageError(f"quality {quality:g} is not a whole or half number")
    return tuple(qualities)


def _list_anchors(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from hpcm_codec.evaluation.reference import shipped_references
    from hpcm_codec.evaluation.tables import references_table

    for line in references_table(list(shipped_references())):
        click.echo(line)
    context.exit()


@click.command("eval")
@click.option("--dataset", required=True, metavar="kodak|clic2020|tecnick|DIR", help="What to measure on.")
@click.option(
    "--codec",
    "kinds",
    multiple=True,
    default=("hpcm",),
    metavar="NAME,NAME…",
    help="What to measure: hpcm, jpeg, webp, avif, jpeg2000, jxl, heic.  [default: hpcm]",
)
@click.option(
    "-q",
    "--qualities",
    metavar="Q,Q,…",
    help="Qualities, 0 to 100.  [default: 8 over the whole range, all of a family]",
)
@click.option(
    "--own-qualities", is_flag=True, help="With several codecs: each at qualities of its own, not at the first's sizes."
)
@options.model("The checkpoint.  [default: phase1-lite]")
@options.profile
@click.option("--device", metavar="auto|cpu|cuda", default="auto", show_default=True, help="Where the model runs.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.  [default: torch's choice]")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Measure in N processes.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the data set's folder lies.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N pictures.")
@click.option("--json", "output", metavar="OUT", help="Write the results in CompressAI's JSON form (- for stdout).")
@click.option("-f", "--force", is_flag=True, help="Overwrite outputs.")
@click.option(
    "--work", metavar="FILE", help="Keep each measurement here, and reuse those that are.  [default: OUT.partial]"
)
@click.option("--memory", is_flag=True, help="Write peaks of memory into OUT too.")
@click.option(
    "--anchor", "anchors", multiple=True, metavar="NAME|CURVE.json", help="Print the BD-rate against this curve."
)
@click.option(
    "--list-anchors",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_anchors,
    help="List the curves that come with the program, and end.",
)
@click.option("--metric", type=click.Choice(METRICS), default=METRICS[0], show_default=True, help="For --anchor.")
@options.perceptual
@click.option("--verify", is_flag=True, help="Check that files decode to exactly the encoder's own reconstruction.")
@click.option("--per-image", is_flag=True, help="Print a row for every picture.")
@click.option("--plot", metavar="CURVE.png", help="Draw the curves, anchors included (also .svg, .pdf).")
@click.option("--report", metavar="OUT.html", help="Write a page with curves, table and picture sliders.")
@click.option("--report-images", metavar="NAME,…", help="Pictures with a slider.  [default: the first 3]")
@click.option("--report-quality", type=float, metavar="Q", help="Quality of those pictures.  [default: the middle one]")
def command(
    dataset: str,
    kinds: tuple[str, ...],
    qualities: str | None,
    own_qualities: bool,
    model: str | None,
    profile: str,
    device: str,
    threads: int | None,
    jobs: int,
    data_dir: Path | None,
    limit: int | None,
    output: str | None,
    force: bool,
    work: str | None,
    memory: bool,
    anchors: tuple[str, ...],
    metric: str,
    perceptual: str | None,
    verify: bool,
    per_image: bool,
    plot: str | None,
    report: str | None,
    report_images: str | None,
    report_quality: float | None,
) -> None:
    """Encode and decode the pictures of a data set; print mean rate, quality, time and memory.

    Rates count whole files. Ordinary formats go through Pillow; with several codecs, the others are given the file
    sizes of the first, picture by picture. The same command continues an interrupted run.
    """
    from hpcm_codec.evaluation import campaign
    from hpcm_codec.evaluation.codecs import PILLOW_QUALITIES, PillowCodec
    from hpcm_codec.evaluation.datasets import find_dataset, picture_digests
    from hpcm_codec.evaluation.perceptual import SSIMULACRA2, parse_perceptual
    from hpcm_codec.evaluation.reference import dataset_of, load_anchor
    from hpcm_codec.evaluation.subjects import find_subjects, parse_kinds
    from hpcm_codec.evaluation.survey import Survey, compare_all
    from hpcm_codec.evaluation.worklog import WorkLog

    wanted = parse_kinds(kinds)
    measures = parse_perceptual(perceptual)
    if metric == SSIMULACRA2 and SSIMULACRA2 not in measures:
        raise UsageError("--metric ssimulacra2 needs that measure", advice="give --perceptual ssimulacra2")
    _check_hpcm_options(wanted, model, verify)
    for name in (output, plot, report):
        options.refuse_existing(name, force)
    chosen = None if qualities is None else parse_qualities(qualities)
    if anchors and chosen is not None:
        _check_points(chosen)
    options.check_device(device)
    set_threads(threads)
    anchor_curves = [load_anchor(anchor, dataset, metric) for anchor in anchors]
    for anchor in anchors:
        if (of := dataset_of(anchor, dataset)) not in (None, dataset):
            _report_line(f"the curve {anchor} is of {of}, the measurements are of {dataset}: a comparison says little")
    pictures = find_dataset(dataset, data_dir, _report_line).first(limit)
    subjects = find_subjects(wanted, model, device, profile, _report_line)
    matched = len(subjects) > 1 and not own_qualities
    plans: list[Sequence[float]] = []
    for place, subject in enumerate(subjects):
        ordinary = isinstance(subject.codec, PillowCodec)
        plans.append(chosen or PILLOW_QUALITIES if ordinary else _own_qualities(subject, chosen))
        if isinstance(subject.codec, PillowCodec) and not (matched and place > 0):
            for quality in plans[-1]:
                subject.codec.check_quality(quality)
    slider_names = _slider_names(pictures, report, report_images, report_quality)
    if anchors:
        _check_points(plans[0])
    if plot is not None:
        from hpcm_codec.evaluation.plot import check_plot

        check_plot(plot)

    log = WorkLog(work or (None if output in (None, "-") else f"{output}.partial"))
    digests = picture_digests(pictures)
    with campaign.crew(jobs, _torch_threads()) as crew:
        survey = Survey(subjects, plans, pictures, digests, matched, verify, measures)
        if len(log):
            _report_line(f"{len(log)} measurements are in {log.path} already")
        with _progress(survey.size) as advance:
            all_rows = survey.measure(crew, log, advance)

    results = survey.results(all_rows, memory, jobs)
    comparisons, refusal = compare_all(results, anchor_curves, metric, _report_line)
    if comparisons:
        results["comparisons"] = [{"metric": metric, **asdict(comparison)} for comparison in comparisons]
    _write_json(results, output, force)
    if work is None:
        log.remove()
    if output != "-":
        _print_tables(results, subjects, all_rows, per_image)
        for comparison in comparisons:
            click.echo(comparison.in_words("points" if metric == SSIMULACRA2 else "dB"))
    _draw(
        results,
        anchors,
        dataset,
        metric,
        plot,
        report,
        force,
        subjects,
        pictures,
        slider_names,
        report_quality,
        measures,
    )
    if refusal is not None:
        raise refusal


def _own_qualities(subject: Subject, chosen: tuple[float, ...] | None) -> tuple[float, ...]:
    """The qualities to measure ours at: each that gives files of its own once, of a family's or a fixed rate's all by default."""
    from hpcm_codec.codec import Codec

    codec = subject.codec
    assert isinstance(codec, Codec)
    few = len(codec.qualities) <= LARGEST_QUALITY_CODE
    wanted = chosen or (codec.qualities if few else DEFAULT_QUALITIES)
    own = tuple(sorted({codec.nearest_quality(quality) for quality in wanted}))
    if own != wanted:
        _report_line(f"{subject.name} is measured at the qualities that it has: {', '.join(map('{:g}'.format, own))}")
    return own


def _check_points(qualities: Sequence[float]) -> None:
    from hpcm_codec.evaluation.bjontegaard import FEWEST_POINTS

    if len(qualities) < FEWEST_POINTS:
        raise UsageError(f"a BD-rate needs {FEWEST_POINTS} qualities or more, not {len(qualities)}")


def _check_hpcm_options(kinds: Sequence[str], model: str | None, verify: bool) -> None:
    if "hpcm" in kinds:
        return
    named = ",".join(kinds)
    if model is not None:
        raise UsageError(f"--model is for --codec hpcm, not for {named}")
    if verify:
        raise UsageError(
            f"--verify is for --codec hpcm: the encoder of {named} does not say what a decoder must arrive at"
        )


def _slider_names(pictures: DataSet, report: str | None, named: str | None, quality: float | None) -> Sequence[str]:
    """The pictures that get a slider; UsageError for a name that is not in the set."""
    if report is None:
        if named is not None or quality is not None:
            raise UsageError("--report-images and --report-quality are for --report")
        return ()
    if quality is not None:
        quality_code(quality)
    if named is None:
        return pictures.names[:REPORT_IMAGES]
    names = []
    for part in (part.strip() for part in named.split(",")):
        fitting = [name for name in pictures.names if part in (name, Path(name).stem)]
        if not fitting:
            raise UsageError(f"no picture of {pictures.name} is called {part!r}")
        names.append(fitting[0])
    return names


def _report_line(line: str) -> None:
    click.echo(line, err=True)


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Row], None] | None]:
    """The function that is called with every row: it advances a bar on a terminal, and does nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=total)
        yield lambda row: progress.update(task, advance=1, description=row.image)


def _write_json(results: dict[str, Any], output: str | None, force: bool) -> None:
    from hpcm_codec.system.files import write_atomically

    if output is None:
        return
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if output == "-":
        click.echo(text, nl=False)
    else:
        write_atomically(output, text.encode(), overwrite=force)


def _print_tables(
    results: dict[str, Any], subjects: Sequence[Subject], all_rows: Sequence[Sequence[Row]], per_image: bool
) -> None:
    from rich.console import Console

    from hpcm_codec.evaluation.machine import machine_in_words
    from hpcm_codec.evaluation.runner import means_of
    from hpcm_codec.evaluation.tables import in_words_where_falling, means_table, perceptual_table, rows_table

    console = Console(highlight=False)
    for subject, rows in zip(subjects, all_rows, strict=True):
        if per_image:
            console.print(rows_table(subject.name, rows))
            if (table := perceptual_table(subject.name, rows)) is not None:
                console.print(table)
        title = f"{subject.name}: means over {results['images']} pictures of {results['dataset']}"
        means = means_of(rows)
        console.print(means_table(title, means))
        if (table := perceptual_table(title, means)) is not None:
            console.print(table)
        for line in in_words_where_falling(means):
            _report_line(f"{subject.name}: {line}")
    click.echo(machine_in_words(results["machine"]))


def _draw(
    results: dict[str, Any],
    anchors: Sequence[str],
    dataset: str,
    metric: str,
    plot: str | None,
    report: str | None,
    force: bool,
    subjects: Sequence[Subject],
    pictures: DataSet,
    slider_names: Sequence[str],
    report_quality: float | None,
    perceptual: Sequence[str],
) -> None:
    """Write the plot and the report, where requested."""
    if plot is None and report is None:
        return
    from hpcm_codec.evaluation.reference import anchor_results
    from hpcm_codec.system.files import write_atomically

    curves = [results, *results.get("other_codecs", ()), *(anchor_results(anchor, dataset) for anchor in anchors)]
    if plot is not None:
        from hpcm_codec.evaluation.plot import draw_curves

        write_atomically(plot, draw_curves(curves, Path(plot).suffix, metric, results["dataset"]), overwrite=force)
    if report is not None:
        from hpcm_codec.evaluation.report import report_page
        from hpcm_codec.evaluation.versions import versions_of
        from hpcm_codec.images import Picture, read_picture
        from hpcm_codec.targets import Target

        qualities = results["qualities"]
        target = Target("quality", qualities[len(qualities) // 2] if report_quality is None else report_quality)
        sliders = []
        for name in slider_names:
            picture = Picture(read_picture(pictures.path(name)).pixels)
            sliders.append(versions_of(name, picture, subjects, target, perceptual))
        write_atomically(report, report_page(results, curves, sliders).encode(), overwrite=force)
