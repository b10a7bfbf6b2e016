"""Fresh processes, to measure the memory of some work and the time of the program's start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcm_codec.benchmark.timing import Action
from hpcm_codec.errors import HpcmError

# seconds; a large picture may take long on a slow machine
CHILD_TIMEOUT = 1800.0
SMALL = 64  # pixels, edge of the picture that a process warms up with


@dataclass(frozen=True)
class Run:
    """The work of a fresh process: load the model, warm up on a tiny picture, and encode or decode one file.

    source, target: a picture file and a .hpcm file, or the other way round; the rest as `load_codec` and `Codec.encode` take it.
    """

    action: Action
    source: str
    target: str
    quality: float
    model: str
    device: str = "auto"
    threads: int | None = None
    profile: str = "auto"


@dataclass(frozen=True)
class RunResult:
    """seconds: of the codec alone; file_to_file: with reading and writing; stages: seconds of each of STAGES, of the same run.

    peak_memory_bytes: at most resident in the process; device_memory_bytes: at most allocated on a GPU, None without one.
    """

    seconds: float
    file_to_file: float
    stages: dict[str, float]
    peak_memory_bytes: int
    device_memory_bytes: int | None
    profile: str
    identity: str


def run_module(module: str, argument: str) -> str:
    """What a module of ours prints when a fresh Python runs it with one argument; raises HpcmError when it fails."""
    return _run([sys.executable, "-m", module, argument], f"python -m {module}")


def run_fresh(job: Run) -> RunResult:
    """Do a run in a fresh process; raises HpcmError when that fails."""
    what = f"the process that measures {job.action}"
    child = _run([sys.executable, "-m", "hpcm_codec.benchmark.process", json.dumps(asdict(job))], what)
    return RunResult(**json.loads(child.splitlines()[-1]))


def seconds_from_the_shell(action: Action, source: Path, target: Path, model: str | None, device: str) -> float:
    """Wall-clock seconds of one `hpcm encode` or `hpcm decode`, Python's start included; raises HpcmError when it fails.

    model: None for the default.
    """
    command = [sys.executable, "-m", "hpcm_codec", action, str(source), "-o", str(target), "-f", "--quiet"]
    command += ["--device", device, *([] if model is None else ["--model", model])]
    start = time.perf_counter()
    _run(command, f"hpcm {action}")
    return time.perf_counter() - start


def fresh_environment(package: Path) -> dict[str, str]:
    """The environment of a process that imports the package in that folder, installed or not."""
    found = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": found, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    # Modules are compiled once and kept, as where the program is installed, or its start would take 0.1 s longer than there.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _run(command: list[str], what: str) -> str:
    environment = fresh_environment(Path(__file__).resolve().parents[2])
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT, env=environment)
    except subprocess.TimeoutExpired as error:
        raise HpcmError(f"{what} took longer than {CHILD_TIMEOUT:g} s") from error
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
        raise HpcmError(f"{what} failed: {last[0]}")
    return child.stdout


def _work(job: Run) -> RunResult:
    """The work of the fresh process."""
    import numpy as np
    import torch

    from hpcm_codec.benchmark.meter import Meter
    from hpcm_codec.benchmark.stages import STAGES
    from hpcm_codec.benchmark.timing import clock, go, waiter
    from hpcm_codec.codec import load_codec
    from hpcm_codec.evaluation.machine import peak_memory_of_this_process
    from hpcm_codec.images import Picture

    if job.threads:
        torch.set_num_threads(job.threads)
    codec = load_codec(job.model, job.device, job.profile).at(job.quality)
    tiny = codec.encode(Picture(np.zeros((SMALL, SMALL, 3), np.uint8)))
    if job.action == "decode":
        codec.decode(tiny)
    on_gpu = codec.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(codec.device)
    meter = Meter(clock(waiter(codec.device)))
    with codec.observed(meter):
        go(job.action, codec, Path(job.source), Path(job.target), job.quality, meter, "other")
    whole = sum(meter.charged.values())
    return RunResult(
        seconds=whole - meter.charged["read"] - meter.charged["write"],
        file_to_file=whole,
        stages={stage: meter.charged.get(stage, 0.0) for stage in STAGES},
        peak_memory_bytes=peak_memory_of_this_process(),
        device_memory_bytes=torch.cuda.max_memory_allocated(codec.device) if on_gpu else None,
        profile=codec.profile,
        identity=codec.identity.hex(),
    )


def _main(text: str) -> None:
    try:
        outcome: dict[str, Any] = asdict(_work(Run(**json.loads(text))))
    except HpcmError as error:
        sys.exit(str(error))
    print(json.dumps(outcome))


if __name__ == "__main__":
    _main(sys.argv[1])
