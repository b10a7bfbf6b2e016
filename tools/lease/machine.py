"""The machine with the GPU: what it keeps between two calls, how `hpcm` is run on it, and how much of a call's time is left.

A machine that was released is replaced by an empty one without notice. So every call checks that the results of earlier calls are in
`home()`, outside the copy of the checkout. If something is missing, the error names the calls to repeat.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcm_codec.errors import HpcmError, UsageError
from lease.plan import Choice, Plan

ROOT = Path(__file__).absolute().parents[2]
ENDING = 15.0  # seconds that a process gets from SIGTERM to SIGKILL

Row = dict[str, float]


class BareMachineError(HpcmError):
    """Results of earlier calls are missing, because this is another machine."""


class Clock:
    """The time of a command: seconds since it began, and seconds that are left."""

    def __init__(self, seconds: float) -> None:
        self._began, self._seconds = time.monotonic(), seconds

    @property
    def left(self) -> float:
        return self._seconds - (time.monotonic() - self._began)


def home() -> Path:
    """The folder that is kept between calls: $HPCM_LEASE_HOME or /tmp/lease."""
    folder = Path(os.environ.get("HPCM_LEASE_HOME", "/tmp/lease"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def out() -> Path:
    """The folder whose files are downloaded after the call; raises UsageError where it is not named."""
    if not (name := os.environ.get("OUT")):
        raise UsageError("the variable OUT names no folder", advice="run this through the device tool, or set OUT")
    Path(name).mkdir(parents=True, exist_ok=True)
    return Path(name)


def require_pictures(plan: Plan) -> None:
    """Raise BareMachineError unless all parts of the pictures are staged."""
    missing = [name for name in plan.parts if not (home() / f"{name}.staged").exists()]
    if missing:
        calls = ", ".join(f"stage {name.rpartition('-')[2]}" for name in missing)
        raise BareMachineError(
            f"this machine lacks {', '.join(missing)} of the pictures: it is new, or a call was left out",
            advice=f"at once, before it goes back, make the calls {calls}, then go on as .lease/CALLS.md says under 'a lost machine'",
        )


def environment(plan: Plan) -> dict[str, str]:
    """The environment of `hpcm` on the machine: our wheels and this copy can be imported; compiled code is kept for the next call."""
    paths = [str(home() / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    added = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    if plan.device == "cuda":
        added |= {"HPCM_CACHE": str(home() / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(home() / "inductor")}
    return {**os.environ, **added}


def use_here(plan: Plan) -> None:
    """The same for this process, before it imports what the wheels hold."""
    os.environ.update(environment(plan))
    sys.path.insert(0, str(home() / "site"))


def hpcm(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hpcm_codec", *map(str, arguments)]


def run_for(command: Sequence[str], plan: Plan, seconds: float, clock: Clock) -> bool:
    """Run a command for at most so many seconds (fewer where less is left). Returns whether it succeeded, and prints a line if not."""
    seconds = min(seconds, clock.left)
    title = " ".join(command[1:6])
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment(plan), cwd=ROOT)
    try:
        status = process.wait(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        end(process)
        print(f"CUT after {seconds:.0f} s: {title} …", flush=True)
        return False
    print(
        f"{'done' if status == 0 else f'FAILED ({status})'} in {time.monotonic() - began:.1f} s: {title} …", flush=True
    )
    return status == 0


def end(process: subprocess.Popen[Any]) -> None:
    """Send SIGTERM to a process, and SIGKILL if it does not end."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def pack_command() -> list[str] | None:
    """The command that packs the staged pictures for training; None if they are packed."""
    if (home() / "train.pack").exists():
        return None
    return hpcm("train", "pack", home() / "pictures", "-o", home() / "train.pack", "-f")


def train_command(
    plan: Plan, choice: Choice, folder: Path, start: Path, minutes: float, decay_start: float, rate_factor: float = 1.0
) -> list[str]:
    """`hpcm train run` with a lease's settings; minutes: length of the whole run, earlier stretches included."""
    options: dict[str, object] = {
        "data": home() / "train.pack",
        "out": folder,
        "model": plan.model,
        "from": start,
        "minutes": f"{minutes:.4f}",
        "decay-start": f"{decay_start:.4f}",
        "crops": f"0:{plan.edge}x{choice.batch}",
        "learning-rate": f"{plan.learning_rate * rate_factor:.6g}",
        "warmup-steps": plan.warmup_steps,
        "patch-rate-factor": plan.patch_rate_factor,
        "transform-rate-factor": plan.transform_rate_factor,
        "smallest-scale": plan.smallest_scale,
        "optimiser": choice.optimiser,
        "basis-refresh": plan.basis_refresh,
        "ema": plan.ema,
        "loaders": plan.loaders,
        "log-every": plan.log_every,
        "save-minutes": plan.save_minutes,
        "device": plan.device,
    }
    flat = [part for name, value in options.items() for part in (f"--{name}", value)]
    flags = [*(["--compile"] if choice.compile else []), *(["--cuda-graph"] if choice.cuda_graph else [])]
    return hpcm("train", "run", *flat, *flags)


def rows_of(folder: Path) -> list[Row]:
    """The rows of a run's metrics.jsonl so far."""
    rows = []
    try:
        text = (folder / "metrics.jsonl").read_text()
    except OSError:
        return []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # being written
            break
    return rows
