"""How many crops a second training processes, compared with the machine's speed of bfloat16 matrix products.

The real command (`hpcm train run`) trains in fresh processes, one alone and two under torchrun, and its metrics.jsonl says when steps
were done: whole steps, with gradients exchanged, the optimiser and the averages, without the first steps and without saving.
Another version of the program can be measured in turns with this one, so that both meet the same load.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcm_codec.benchmark.pictures import picture_of_size
from hpcm_codec.benchmark.process import CHILD_TIMEOUT, fresh_environment
from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.evaluation.machine import usable_cores
from hpcm_codec.images import write_picture
from hpcm_codec.model.complexity import complexity_by_part, total
from hpcm_codec.model.config import preset
from hpcm_codec.ops import training as operators
from hpcm_codec.training.data import pack_pictures
from hpcm_codec.training.processor import matrix_products, preloaded_allocator

PROCESSES = (1, 2)
EDGE = 256  # pixels, of a crop
ROWS = 8  # of metrics.jsonl, at least, that the measured steps are spread over
LEARNING_RATE = 1e-4  # low: a step that is skipped as an outlier would be a faster one
FORWARDS = 3  # what a step computes in passes forward: one, and the gradients of activations and of weights
NEVER = 1e6  # minutes
STOPPING = 40.0  # seconds that a run which is asked to stop may take; torchrun gives its processes 30

Row = Mapping[str, float]


@dataclass(frozen=True)
class TrainingSettings:
    """What is measured.

    model:         a preset.
    crops:         of each process in a step; against_crops: those of the other version.
    steps:         that count in each run, after warm_up_steps that do not.
    turns:         how often all runs are repeated.
    threads:       of each process.
    image:         the picture that crops are taken of, None for a sample.
    against:       a checkout of another version, or None.
    """

    model: str
    crops: int = 4
    steps: int = 40
    turns: int = 3
    threads: int = 1
    image: Path | None = None
    against: Path | None = None
    against_crops: int = 2
    edge: int = EDGE
    warm_up_steps: int = 10

    @property
    def log_every(self) -> int:
        return max(1, self.steps // ROWS)

    @property
    def first_row(self) -> int:
        """The step from which on time counts; a multiple of log_every, as rows of metrics are."""
        return -(-self.warm_up_steps // self.log_every) * self.log_every

    @property
    def last_row(self) -> int:
        return self.first_row + self.steps // self.log_every * self.log_every


@dataclass(frozen=True)
class Version:
    """A version of the program: the folder of its package, its commit if known, and its crops."""

    name: str
    folder: Path
    commit: str | None
    crops: int

    def environment(self, threads: int) -> dict[str, str]:
        """That of a process which imports this version; all else, LD_PRELOAD among it, is as it is here."""
        return {**fresh_environment(self.folder), "OMP_NUM_THREADS": str(threads)}


def versions(settings: TrainingSettings) -> list[Version]:
    """This version, and the other one where one is given; raises FileError when there is none."""
    here = Path(__file__).resolve().parents[2]
    found = [Version("this", here, commit_of(here), settings.crops)]
    if settings.against is not None:
        folder = settings.against.resolve()
        if not (folder / "hpcm_codec" / "__main__.py").is_file():
            raise FileError(
                "is not a checkout of hpcm-codec", file=settings.against, advice="make one: git worktree add"
            )
        found.append(Version("other", folder, commit_of(folder), settings.against_crops))
    return found


def commit_of(folder: Path) -> str | None:
    """The commit that a checkout is at, with "-dirty" for changes since; None for what is no checkout."""
    if not (folder / ".git").exists():  # an installed program may lie inside another project's checkout
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def measure_training(settings: TrainingSettings) -> dict[str, Any]:
    """Crops a second of every version with every number of processes; raises HpcmError when a run fails."""
    config = preset(settings.model)
    compared = versions(settings)
    counts = [count for count in PROCESSES if count == 1 or count * settings.threads <= usable_cores()]
    per_pixel = total(complexity_by_part(config)).kmac_per_pixel
    with tempfile.TemporaryDirectory(prefix="hpcm-bench-") as name:
        folder = Path(name)
        pack, picture = _packed(folder, settings)
        rates = {count: bfloat16_rate(count, settings.threads) for count in counts}
        all_runs: dict[tuple[int, str], list[float]] = {}
        for turn, count, version in itertools.product(range(settings.turns), counts, compared):
            out = folder / f"{version.name}-{count}-{turn}"
            rows = train(version, count, pack, out, settings)
            speed = count * version.crops / seconds_per_step(rows, settings.first_row)
            all_runs.setdefault((count, version.name), []).append(speed)
        rates = {count: max(rate, bfloat16_rate(count, settings.threads)) for count, rate in rates.items()}
    runs = []
    for count, version in itertools.product(counts, compared):
        speeds = all_runs[count, version.name]
        speed = statistics.median(speeds)
        runs.append(
            {
                "processes": count,
                "version": version.name,
                "commit": version.commit,
                "crops_per_process": version.crops,
                "crops_per_second": round(speed, 3),
                "all_crops_per_second": [round(value, 3) for value in speeds],
                "operations_per_second": round(2 * FORWARDS * 1000 * per_pixel * settings.edge**2 * speed),
            }
        )
    return {
        "model": settings.model,
        "edge": settings.edge,
        "picture": picture,
        "steps": settings.last_row - settings.first_row,
        "warm_up_steps": settings.first_row,
        "threads": settings.threads,
        "kmac_per_pixel": round(per_pixel, 2),
        "matrix_products": matrix_products() if operators.ready() else "by torch",
        "allocator": preloaded_allocator(),
        "bfloat16_operations": {str(count): round(rate) for count, rate in rates.items()},
        "runs": runs,
    }


def _packed(folder: Path, settings: TrainingSettings) -> tuple[Path, str]:
    """A packed file of one picture, large enough for crops at many places, and the picture's name."""
    picture, name = picture_of_size(2 * settings.edge, 2 * settings.edge, settings.image)
    pictures, pack = folder / "pictures", folder / "pictures.pack"
    pictures.mkdir()
    write_picture(picture, pictures / "picture.png")
    pack_pictures(pictures, pack)
    return pack, name


# -- a run ------------------------------------------------------------------------------------------------------------


def train(version: Version, processes: int, pack: Path, out: Path, settings: TrainingSettings) -> list[Row]:
    """Train in fresh processes; returns the rows of metrics.jsonl. Raises HpcmError when the run fails."""
    launch = [] if processes == 1 else ["torch.distributed.run", "--standalone", "--nproc-per-node", processes, "-m"]
    # options that every version has which can train
    options: dict[str, Any] = {
        "--data": pack,
        "--out": out,
        "--model": settings.model,
        "--crops": f"0:{settings.edge}x{version.crops}",
        "--steps": settings.last_row,
        "--log-every": settings.log_every,
        "--learning-rate": LEARNING_RATE,
        "--save-minutes": NEVER,
        "--device": "cpu",
        "--threads": settings.threads,
    }
    command = ["-m", *launch, "hpcm_codec", "train", "run", *itertools.chain.from_iterable(options.items())]
    what = f"training with {version.folder}, processes: {processes},"
    # not from a checkout: Python would import what lies in the current folder
    with _started([command], pack.parent, version.environment(settings.threads)) as [child]:
        _outcome(child, what)
    try:
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise HpcmError(f"{what} wrote no metrics") from error
    return [json.loads(line) for line in lines]


def seconds_per_step(rows: Sequence[Row], first_step: int) -> float:
    """The median of the slopes between any two rows from a step on; raises HpcmError when the steps took no time that can be seen.

    metrics.jsonl has tenths of a second: a median over neighbouring rows would have as few values. A pause in a few of them does not count.

    >>> seconds_per_step([{"step": step, "seconds": 2 * step + (step > 8)} for step in range(10)], 1)
    2.0
    """
    counted = [(row["step"], row["seconds"]) for row in rows if row["step"] >= first_step]
    slopes = [(end[1] - begin[1]) / (end[0] - begin[0]) for begin, end in itertools.combinations(counted, 2)]
    seconds = statistics.median(slopes) if slopes else 0.0
    if not seconds > 0:
        raise HpcmError("the steps were too few or too short to be timed", advice="measure more of them with --steps")
    return seconds


@contextmanager
def _started(
    commands: Sequence[Sequence[object]], folder: Path, environment: Mapping[str, str]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of this Python; the end of the block stops those that still run."""
    children: list[subprocess.Popen[str]] = []
    try:
        for arguments in commands:
            children.append(
                subprocess.Popen(
                    [sys.executable, *map(str, arguments)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=folder,
                    env=dict(environment),
                )
            )
        yield children
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            with child:
                try:
                    child.wait(STOPPING)
                except subprocess.TimeoutExpired:
                    child.kill()


def _outcome(child: subprocess.Popen[str], what: str) -> str:
    """What a process printed by its end; raises HpcmError when it failed or takes too long."""
    try:
        printed, errors = child.communicate(timeout=CHILD_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise HpcmError(f"{what} took longer than {CHILD_TIMEOUT:g} s") from error
    if child.returncode:
        lines = errors.strip().splitlines()
        # torchrun prints much after the error
        reasons = [line for line in lines if line.startswith("hpcm: ") and "warning" not in line] or lines[-1:]
        raise HpcmError(f"{what} failed: {reasons[0] if reasons else f'exit status {child.returncode}'}")
    return printed


# -- the machine's rate -----------------------------------------------------------------------------------------------


def bfloat16_rate(processes: int, threads: int) -> float:
    """Operations a second of torch's bfloat16 matrix products, in so many processes at the same time, all together."""
    here = Path(__file__).resolve().parents[2]
    environment = {**fresh_environment(here), "OMP_NUM_THREADS": str(threads)}
    command = ["-m", "hpcm_codec.benchmark.training", threads]
    with tempfile.TemporaryDirectory() as name, _started([command] * processes, Path(name), environment) as children:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()  # it is ready
        for child in children:
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # its output says why
                child.stdin.write("\n")
                child.stdin.flush()
        return sum(float(_outcome(child, "measuring matrix products")) for child in children)


def _measure_rate(threads: int) -> None:
    """The work of each of those processes: it reports that it is ready, waits for a line, and prints its rate."""
    import torch

    from hpcm_codec.benchmark.ceilings import bfloat16_operations

    torch.set_num_threads(threads)
    print("ready", flush=True)
    sys.stdin.readline()
    print(bfloat16_operations())


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _measure_rate(int(sys.argv[1]))
