"""`hpcm train run`: makes a `Trainer` from the command line, and shows its progress."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcm_codec.cli import options
from hpcm_codec.cli.main import say
from hpcm_codec.errors import FileError, UnsupportedError, UsageError
from hpcm_codec.system.threads import set_threads

if TYPE_CHECKING:
    from hpcm_codec.model.config import ModelConfig
    from hpcm_codec.training.loop import Trainer
    from hpcm_codec.training.settings import CropPhase

DEFAULT_CROPS = "0:128x8,0.6:256x2"
PACK_NAME = "pictures.pack"
POSITIVE = click.FloatRange(min=0, min_open=True)
SHARE = click.FloatRange(0, 1)


@click.command("run")
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FOLDER|PACK", help="The pictures.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="The run's folder, resumed if it exists.",
)
@click.option(
    "--model",
    "preset_name",
    default="phase1-lite",
    show_default=True,
    metavar="PRESET|CONFIG.json",
    help="What to train.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Length of the run in steps…")
@click.option("--minutes", type=POSITIVE, help="…or in minutes, added up over resumes.")
@click.option("--learning-rate", type=POSITIVE, help="The peak.  [default: 0.0014]")
@click.option("--warmup-steps", type=click.IntRange(min=0), help="Steps in which the rate rises.  [default: 200]")
@click.option("--decay-start", type=SHARE, help="Share of the run after which the rate falls to 0.  [default: 0.4]")
@click.option("--decay-rate-factor", type=POSITIVE, help="Rate factor of the RWKV decay and boost.  [default: 1]")
@click.option("--patch-rate-factor", type=POSITIVE, help="Rate factor between pixels and patches.  [default: 1]")
@click.option("--transform-rate-factor", type=POSITIVE, help="Rate factor of the rest of the transforms.  [default: 1]")
@click.option(
    "--optimiser",
    type=click.Choice(["adamw", "muon", "soap"]),
    help="muon, soap: for matrices only.  [default: adamw]",
)
@click.option(
    "--basis-refresh", type=click.IntRange(min=1), help="Steps between changes of SOAP's bases.  [default: 10]"
)
@click.option("--clip-norm", type=POSITIVE, help="Largest norm of the gradient.  [default: 1]")
@click.option("--ema", type=click.FloatRange(0, 1, max_open=True), help="Decay of the average.  [default: 0.998]")
@click.option("--batch", type=click.IntRange(min=1), help="Crops in a step and process, in place of those in --crops.")
@click.option(
    "--crops", default=DEFAULT_CROPS, show_default=True, metavar="START:EDGExBATCH,…", help="Crops over the run."
)
@click.option(
    "--smallest-scale",
    type=click.FloatRange(0, 1, min_open=True),
    help="Shrink pictures at random, down to this factor, before cropping.  [default: 1, never]",
)
@click.option(
    "--from", "start", metavar="WEIGHTS", help="Begin with a checkpoint's weights (name, path, run, or pieces)."
)
@click.option(
    "--validation",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Pictures to score the weights on before each save.  [default: four crops of the training pictures]",
)
@click.option(
    "--condition", is_flag=True, help="Bring the transforms' channels to one size first; the function stays the same."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--log-every", type=click.IntRange(min=1), default=50, show_default=True, metavar="STEPS")
@click.option("--save-minutes", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Between two saves.")
@click.option("--tensorboard", is_flag=True, help="Metrics in RUN/tensorboard too.")
@click.option(
    "--loaders",
    type=click.IntRange(0, 256),
    help="Processes that draw crops ahead.  [default: 0, the trainer draws them]",
)
@click.option(
    "--bfloat16/--float32",
    default=None,
    help="What the network is computed in; float32 takes twice the time.  [default: bfloat16]",
)
@click.option("--activation-checkpointing", is_flag=True, help="Less memory, more time.")
@click.option(
    "--compile",
    is_flag=True,
    help="Compile the blocks with torch.compile: a minute for each size of crops, then faster steps.",
)
@click.option("--cuda-graph", is_flag=True, help="Replay a step's passes as a CUDA graph: faster with small batches.")
@click.option("--device", metavar="auto|cpu|cuda", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), help="Processor threads.  [default: torch's choice]")
def run(
    data: Path,
    out: Path,
    preset_name: str,
    start: str | None,
    condition: bool,
    validation: Path | None,
    crops: str,
    batch: int | None,
    device: str,
    threads: int | None,
    **values: Any,
) -> int:
    """Train in the folder RUN, or continue the run that is there.

    RUN gets state.pt (everything to resume), weights.safetensors (the checkpoint) and metrics.jsonl. Ctrl-C saves and ends the command; the
    same command continues the run, and with more --steps or --minutes it trains for longer. A run that diverges goes back to its last
    good state by itself; only good states are saved (docs/training.md).
    """
    if (values["steps"] is None) == (values["minutes"] is None):
        raise UsageError("a run needs a length: --steps or --minutes, one of the two")
    options.check_device(device)
    phases = parse_crops(crops, batch)
    options.refuse_missing(data)
    if validation is not None:
        options.refuse_missing(validation)

    from hpcm_codec.training.data import PackedPictures
    from hpcm_codec.training.loop import Trainer
    from hpcm_codec.training.processor import GAIN, tcmalloc_advice
    from hpcm_codec.training.scoring import middles
    from hpcm_codec.training.settings import TrainSettings

    config = _configuration(preset_name)
    set_threads(threads)
    # All options left are settings of the same name; those not given keep their defaults.
    settings = TrainSettings(crops=phases, **{name: value for name, value in values.items() if value is not None})
    first = int(os.environ.get("RANK", 0)) == 0
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FileError("is not a directory", file=out, advice="choose another place") from error
    pictures = PackedPictures(data if data.is_file() else _packed(data, out, first))
    held_out = None if validation is None else middles(validation)
    trainer = Trainer(config, pictures, out, settings, torch_device(device), held_out, say)
    if trainer.device.type == "cpu" and (advice := tcmalloc_advice()) is not None:
        _say_first(first, f"faster with tcmalloc ({GAIN}): {advice}")
    if trainer.step:
        _say_first(first, f"{out}: going on from step {trainer.step}")
        if condition:
            _say_first(first, "--condition is left out: it is for the beginning of a run")
    else:
        if start is not None:
            _start_from(trainer, start)
        if condition:
            _condition(trainer)
    with _stop_requests(first) as asked_to_stop, _display(first) as on_log:
        trainer.run(on_log, lambda: bool(asked_to_stop()))
    stopped = "; stopped, the same command continues" if asked_to_stop() else ""
    _say_first(
        first,
        f"{out / 'weights.safetensors'}: {trainer.states.step} steps, {trainer.seconds / 60:.1f} minutes, "
        f"{100 * trainer.waited_share:.1f}% of the time waiting for data{stopped}",
    )
    if asked_to_stop():
        return 128 + asked_to_stop()
    return 0 if trainer.states.step == trainer.step else 1


def parse_crops(text: str, batch: int | None = None) -> tuple[CropPhase, ...]:
    """Crop phases of "0:128x8,0.6:256x2" (from that share of the run on, that edge and batch); raises UsageError.

    batch: in place of every phase's own.
    """
    from hpcm_codec.training.settings import CropPhase

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


def _configuration(name: str) -> ModelConfig:
    """A preset's configuration, or one in a file of JSON, as `hpcm checkpoints show` prints it."""
    from hpcm_codec.constants import own_name
    from hpcm_codec.model.config import ModelConfig, preset

    path = Path(name)
    if path.suffix != ".json":
        return preset(own_name(name))
    options.refuse_missing(path)
    return ModelConfig.from_json(path.read_text())


def torch_device(name: str) -> str:
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
        pack_pictures(folder, packed, leaving_out=options.LeftOut())
    while not packed.exists():
        time.sleep(0.5)
    return packed


def _start_from(trainer: Trainer, name: str) -> None:
    """The weights of a checkpoint, grown where the run's model is a larger one of its kind."""
    from hpcm_codec.training.growing import grow
    from hpcm_codec.training.light import load_weights

    checkpoint = load_weights(name)
    if checkpoint.config == trainer.config:
        trainer.start_from(checkpoint.weights)
        return
    try:
        pictures = trainer.pictures.sample(edge=256, batch=16)
        trainer.start_from(grow(checkpoint.build_model(), trainer.config, pictures).state_dict())
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{name} holds the weights of another model", advice="name its preset with --model"
        ) from error


def _condition(trainer: Trainer) -> None:
    """Rescale the channels inside the transforms; see `training.conditioning`."""
    from hpcm_codec.model.hpcm import HPCM
    from hpcm_codec.training.conditioning import condition

    model = HPCM(trainer.config, initialise=False).eval()
    model.load_state_dict(trainer.model.state_dict())
    condition(model, trainer.pictures.sample(edge=256, batch=12))
    trainer.start_from(model.state_dict())


def _say_first(first: bool, line: str) -> None:
    if first:
        say(line)


@contextmanager
def _stop_requests(first: bool) -> Iterator[Callable[[], int]]:
    """Ctrl-C and SIGTERM end the run after the current step; a second one at once. Gives a function: the signal received (0: none)."""
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
        except ValueError:  # not in the main thread, which alone receives signals
            break
    try:
        yield lambda: requests[0] if requests else 0
    finally:
        for ending, handler in previous.items():
            signal.signal(ending, handler)


@contextmanager
def _display(first: bool) -> Iterator[Callable[[dict[str, float]], None]]:
    """A progress line on a terminal, plain lines elsewhere; gives the function that is called with every row of metrics."""

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
