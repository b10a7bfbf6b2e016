"""One table of stages: a model on a picture of one size, both ways, with as many runs as the time allows.

A fresh process does each way first: its peak memory is the figure, and its time decides how many further runs follow. Where one run
takes long, its time is reliable enough and no other follows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hpcm_codec.benchmark.pictures import picture_of_size
from hpcm_codec.benchmark.process import Run, RunResult, run_fresh, seconds_from_the_shell
from hpcm_codec.benchmark.timing import ACTIONS, Action, Timing, go, time_way
from hpcm_codec.benchmark.weights import is_untrained, random_checkpoint
from hpcm_codec.benchmark.work import work_by_stage
from hpcm_codec.codec import Codec, load_codec
from hpcm_codec.images import write_picture

LONG_ENOUGH = 10.0  # seconds of one run from which on it is the only one
BUDGET = 20.0  # seconds that the runs of one way may take together
WORTH_STARTING = 1.0  # a program's start is measured where coding takes no longer than this many seconds
SHELL_RUNS = 3


@dataclass(frozen=True)
class Settings:
    """What is the same for all measurements of a command.

    image: the picture, None for a sample; runs: at most so many for a median; longest: combinations that would take more seconds than
    this for one way are left out.
    """

    image: Path | None = None
    quality: float = 50.0
    profile: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    runs: int = 5
    longest: float = float("inf")

    def job(self, action: Action, source: Path, target: Path, model: str) -> Run:
        """The run of a fresh process that encodes or decodes one picture."""
        files = (str(source), str(target))
        return Run(action, *files, self.quality, model, self.device, self.threads, self.profile)


def measure_models(
    models: tuple[str, ...], sizes: list[tuple[int, int]], settings: Settings
) -> Iterator[dict[str, Any]]:
    """A measurement of every model (a checkpoint's name or path, or a preset) at every size (width, height), the smallest size first.

    Measurements that would take longer than `settings.longest` are left out, with the reason. Raises HpcmError.
    """
    with tempfile.TemporaryDirectory(prefix="hpcm-bench-") as name:
        folder = Path(name)
        for model in models:
            exact = settings.profile == "exact"
            path = str(random_checkpoint(model, folder, exact=exact)) if is_untrained(model) else model
            codec = load_codec(path, settings.device, settings.profile).at(settings.quality)
            per_pixel = 0.0
            for width, height in sorted(sizes, key=lambda size: size[0] * size[1]):
                expected = per_pixel * width * height
                about = {"model": _name(model), "width": width, "height": height}
                if expected > settings.longest:
                    yield about | {"left_out": f"about {expected:.0f} s for one way"}
                    continue
                measured = _measure(codec, path, width, height, folder, settings)
                per_pixel = max(measured[action]["seconds"] for action in ACTIONS) / (width * height)
                yield about | {"weights": "random" if is_untrained(model) else "checkpoint"} | measured


def _name(model: str) -> str:
    return Path(model).stem if model.endswith(".safetensors") else model


def _measure(codec: Codec, model: str, width: int, height: int, folder: Path, settings: Settings) -> dict[str, Any]:
    picture, made_of = picture_of_size(width, height, settings.image)
    original, coded, decoded = (folder / name for name in ("picture.png", "picture.hpcm", "decoded.png"))
    write_picture(picture, original, overwrite=True)
    figures: dict[str, Any] = {"picture": made_of, "quality": settings.quality}
    ways: list[tuple[Action, Path, Path]] = [("encode", original, coded), ("decode", coded, decoded)]
    for action, source, target in ways:
        first = run_fresh(settings.job(action, source, target, model))
        timing = _timed(codec, action, source, target, settings, first)
        figures[action] = {
            "seconds": round(timing.seconds, 6),
            "file_to_file": round(timing.file_to_file, 6),
            "all_seconds": [round(value, 6) for value in timing.all_seconds],
            "stages": {stage: round(value, 6) for stage, value in timing.stages.items()},
            "peak_memory_bytes": first.peak_memory_bytes,
            "device_memory_bytes": first.device_memory_bytes,
            "shell_seconds": _shell_seconds(action, source, target, model, settings, first),
        }
    work = work_by_stage(codec.config, width, height, codec.profile, coded.stat().st_size, original.stat().st_size)
    about = {
        "identity": codec.identity.hex(),
        "profile": codec.profile,
        "integer_transforms": codec.exact_pixels,
        "bytes": coded.stat().st_size,
    }
    return about | figures | {"work": {stage: asdict(amount) for stage, amount in work.items()}}


def _timed(codec: Codec, action: Action, source: Path, target: Path, settings: Settings, first: RunResult) -> Timing:
    if first.seconds > LONG_ENOUGH:
        return Timing(first.seconds, first.file_to_file, (first.seconds,), first.stages)
    # a warm-up, and as many runs for the stages as for the total
    affordable = int((BUDGET / first.file_to_file - 1) / 2)
    way = partial(go, action, codec, source, target, settings.quality)
    return time_way(codec, way, max(1, min(settings.runs, affordable)))


def _shell_seconds(
    action: Action, source: Path, target: Path, model: str, settings: Settings, first: RunResult
) -> list[float] | None:
    """Sorted; None if the program's start is a small part, or the command line would work differently."""
    if first.seconds > WORTH_STARTING or settings.threads is not None or settings.profile == "float":
        return None
    taken = (seconds_from_the_shell(action, source, target, model, settings.device) for _ in range(SHELL_RUNS))
    return sorted(round(seconds, 3) for seconds in taken)
