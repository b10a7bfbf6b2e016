"""`hpcm train`: pack pictures, and train a model on them; thin over hpcm_codec.training."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcm_codec.cli import options
from hpcm_codec.cli.main import say
from hpcm_codec.errors import FileError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from hpcm_codec.training.loop import CropPhase, Trainer

DEFAULT_CROPS = "0:128x8,0.6:256x2"
PACK_NAME = "pictures.pack"


@click.group("train")
def command() -> None:
    """Train a model on your own pictures.

    `hpcm train run --data photos/ --out run --minutes 240` trains phase1-lite; run/weights.safetensors is then a checkpoint for
    `hpcm encode --model`. In several processes: `torchrun --nproc-per-node 2 -m hpcm_codec train run …`.
    """


@command.command("pack")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The packed file.")
@click.option(
    "--smallest-side", type=click.IntRange(min=1), default=128, show_default=True, help="Leave out smaller ones."
)
@click.option("-f", "--force", is_flag=True, help="Overwrite FILE.")
def pack(folder: Path, output: Path, smallest_side: int, force: bool) -> None:
    """Decode all pictures below FOLDER into one FILE, from which training reads fast."""
    from hpcm_codec.training.data import pack_pictures

    _refuse_missing(folder)
    options.refuse_existing(output, force)
    count = pack_pictures(folder, output, smallest_side)
    click.echo(f"{output}: {count} pictures, {output.stat().st_size / 1e6:.0f} MB")


@command.command("run")
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FOLDER|PACK", help="The pictures.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="The run's folder, resumed if it exists.",
)
@click.option(
    "--model", "preset_name", default="phase1-lite", show_default=True, metavar="PRESET", help="What to train."
)
@click.option("--steps", type=click.IntRange(min=1), help="Length of the run in steps…")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="…or in minutes, added up over resumes.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="The peak.  [default: 0.0014]")
@click.option("--batch", type=click.IntRange(min=1), help="Crops in a step and process, in place of those in --crops.")
@click.option(
    "--crops", default=DEFAULT_CROPS, show_default=True, metavar="START:EDGExBATCH,…", help="Crops over the run."
)
@click.option("--from", "start", metavar="WEIGHTS", help="Begin with a checkpoint's weights (name or path).")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--log-every", type=click.IntRange(min=1), default=50, show_default=True, metavar="STEPS")
@click.option("--save-minutes", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Between two saves.")
@click.option("--device", metavar="auto|cpu|cuda", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), help="Processor threads.  [default: torch's choice]")
def run(
    data: Path,
    out: Path,
    preset_name: str,
    steps: int | None,
    minutes: float | None,
    learning_rate: float | None,
    batch: int | None,
    crops: str,
    start: str | None,
    seed: int,
    log_every: int,
    save_minutes: float,
    device: str,
    threads: int | None,
) -> int:
    """Train in the folder RUN, or go on with the training there.

    RUN gets state.pt (everything to resume), weights.safetensors (the checkpoint) and metrics.jsonl. Ctrl-C saves and leaves; the same
    command goes on from there.
    """
    if (steps is None) == (minutes is None):
        raise UsageError("a run needs a length: --steps or --minutes, one of the two")
    options.check_device(device)
    phases = parse_crops(crops, batch)
    _refuse_missing(data)

    from hpcm_codec.model.config import preset
    from hpcm_codec.training.data import PackedPictures
    from hpcm_codec.training.loop import Trainer, TrainSettings

    config = preset(preset_name)
    options.set_threads(threads)
    settings = TrainSettings(
        steps=steps,
        minutes=minutes,
        crops=phases,
        seed=seed,
        log_every=log_every,
        save_minutes=save_minutes,
    )
    if learning_rate is not None:
        settings = replace(settings, learning_rate=learning_rate)
    first = int(os.environ.get("RANK", 0)) == 0
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FileError("is not a directory", file=out, advice="choose another place") from error
    pictures = PackedPictures(data if data.is_file() else _packed(data, out, first))
    trainer = Trainer(config, pictures, out, settings, _device(device))
    if trainer.step:
        _say_first(first, f"{out}: going on from step {trainer.step}")
    elif start is not None:
        _start_from(trainer, start)
    with _stop_requests(first) as asked_to_stop, _display(first) as on_log:
        trainer.run(on_log, lambda: bool(asked_to_stop()))
    stopped = "; stopped, the same command goes on" if asked_to_stop() else ""
    _say_first(
        first, f"{out / 'weights.safetensors'}: {trainer.step} steps, {trainer.seconds / 60:.1f} minutes{stopped}"
    )
    return 128 + asked_to_stop() if asked_to_stop() else 0


@command.command("validate")
@click.argument("weights", metavar="RUN|WEIGHTS")
@click.option("--data", required=True, metavar="DIR", help="The validation pictures.")
@click.option("-q", "--qualities", default="10,40,70,100", show_default=True, metavar="Q,Q,…")
@click.option("--against", multiple=True, metavar="CURVE.json", help="Print the BD-rate against earlier results.")
@click.option("--json", "output", metavar="OUT", help="Write the results, for a later --against.")
@click.option("-f", "--force", is_flag=True, help="Overwrite OUT.")
@options.running
@click.pass_context
def validate(
    context: click.Context,
    weights: str,
    data: str,
    qualities: str,
    against: tuple[str, ...],
    output: str | None,
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Code the validation pictures with a run's weights: real files, really decoded, as `hpcm eval` does."""
    from hpcm_codec.cli.eval import command as evaluate

    model = Path(weights) / "weights.safetensors" if Path(weights).is_dir() else weights
    context.invoke(
        evaluate,
        dataset=data,
        model=str(model),
        qualities=qualities,
        anchors=against,
        output=output,
        force=force,
        device=device,
        threads=threads,
    )


def parse_crops(text: str, batch: int | None = None) -> tuple[CropPhase, ...]:
    """Crop phases of "0:128x8,0.6:256x2" (from that share of the run on, that edge and batch); raises UsageError.

    batch: in place of every phase's own.
    """
    from hpcm_codec.training.loop import CropPhase

    phases = []
    try:
        for part in text.split(","):
            share, _, size = part.partition(":")
            edge, _, count = size.partition("x")
            phases.append(CropPhase(float(share), int(edge), int(count) if batch is None else batch))
    except ValueError:
        raise UsageError(f"--crops takes START:EDGExBATCH with commas between them, not {text!r}") from None
    starts = [phase.start for phase in phases]
    if starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
        raise UsageError("--crops starts at 0, then rises and stays below 1")
    if any(phase.edge < 64 or phase.edge % 64 or phase.batch < 1 for phase in phases):
        raise UsageError("--crops takes edges that are multiples of 64, and one crop or more")
    return tuple(phases)


def _refuse_missing(path: Path) -> None:
    if not path.exists():
        raise FileError("no such file or directory", file=path, advice="check the path")


def _device(name: str) -> str:
    """auto → CUDA where there is one; in several processes each takes the GPU of its local rank."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA device that torch can use", advice="use --device cpu")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(name)
    return name


def _packed(folder: Path, out: Path, first: bool) -> Path:
    """The run's own packed file of a folder of pictures; process 0 makes it, the others wait."""
    from hpcm_codec.training.data import pack_pictures

    packed = out / PACK_NAME
    if first and not packed.exists():
        say(f"packing the pictures below {folder} into {packed}")
        pack_pictures(folder, packed)
    while not packed.exists():
        time.sleep(0.5)
    return packed


def _start_from(trainer: Trainer, name: str) -> None:
    """The weights of a checkpoint, widened where the run's model has more latent channels."""
    from hpcm_codec.checkpoints import load_checkpoint
    from hpcm_codec.training.widening import widen

    checkpoint = load_checkpoint(name)
    if checkpoint.config == trainer.config:
        trainer.start_from(checkpoint.weights)
        return
    try:
        pictures = trainer.pictures.sample(edge=256, batch=16)
        trainer.start_from(widen(checkpoint.build_model(), trainer.config, pictures).state_dict())
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{name} holds the weights of another model", advice="name its preset with --model"
        ) from error


def _say_first(first: bool, line: str) -> None:
    if first:
        say(line)


@contextmanager
def _stop_requests(first: bool) -> Iterator[Callable[[], int]]:
    """Ctrl-C and SIGTERM ask for an end after the current step; a second one ends at once. Gives the question which came (0: none)."""
    requests: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def request(number: int, frame: object) -> None:
        if requests:
            signal.signal(number, previous[signal.Signals(number)])
        requests.append(number)
        _say_first(first, "stopping after this step; again to leave without saving")

    for ending in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[ending] = signal.signal(ending, request)
        except ValueError:  # not in the main thread: nobody can ask
            break
    try:
        yield lambda: requests[0] if requests else 0
    finally:
        for ending, handler in previous.items():
            signal.signal(ending, handler)


@contextmanager
def _display(first: bool) -> Iterator[Callable[[dict[str, float]], None]]:
    """A progress line on a terminal, plain lines elsewhere; gives the function that is told every row of metrics."""

    def in_words(row: dict[str, float]) -> str:
        return f"step {row['step']:.0f}  loss {row['loss']:.3f}  {row['bpp']:.3f} bpp  {row['psnr']:.2f} dB"

    if not first or not sys.stderr.isatty():
        yield lambda row: say(f"{100 * row['progress']:5.1f}%  {in_words(row)}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as progress:
        task = progress.add_task("training", total=1.0)
        yield lambda row: progress.update(task, completed=row["progress"], description=in_words(row))
