"""The time of one picture, taken apart by stage, and the memory it takes.

Totals are medians over runs that nothing disturbs. The stages come from further runs in which the calls that make up
a stage are wrapped by a clock (and the device is waited for at each end): a stage's time is its own, without that of
the stages inside it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcm_codec.errors import HpcmError
from hpcm_codec.images import Picture, Samples, write_picture

if TYPE_CHECKING:
    from hpcm_codec.codec import Codec

STAGES = ("analysis", "context", "range coding", "synthesis", "container", "other")
# The sample may take long on a slow machine, but not for ever.
CHILD_TIMEOUT = 600.0


@dataclass(frozen=True)
class Timing:
    """seconds: the median; all_seconds: every run; stages: median seconds of each stage, of other runs than these."""

    seconds: float
    all_seconds: tuple[float, ...]
    stages: dict[str, float]


class StageClock:
    """Charges every moment to one stage: the innermost one that is open."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._wait = wait
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`, one of STAGES."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`function`, charged to a stage."""

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **options)

        return timed

    def _charge(self) -> None:
        self._wait()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def waiter(device: str) -> Callable[[], None]:
    """A function that returns when the device has done everything it was given."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)


@contextmanager
def stages_wrapped(codec: Codec, clock: StageClock) -> Iterator[None]:
    """While it lasts, everything this codec does is charged to `clock`.

    Not for several threads: it wraps functions that all codecs share.
    """
    from hpcm_codec import container
    from hpcm_codec.entropy.range_coder import RangeEncoder
    from hpcm_codec.entropy.range_decoder import RangeDecoder

    context = codec.model if codec.profile == "float" else codec.exact
    places: list[tuple[Any, str, str]] = [
        (codec.model, "analyse", "analysis"),
        (codec.model, "hyper_latents", "context"),
        (context, "hyper_distribution", "context"),
        (context, "code_latents", "context"),
        (codec.model, "synthesise", "synthesis"),
        (RangeEncoder, "encode", "range coding"),
        (RangeEncoder, "finish", "range coding"),
        (RangeDecoder, "__init__", "range coding"),
        (RangeDecoder, "decode", "range coding"),
        (container, "write_stream", "container"),
        (container, "parse_stream", "container"),
    ]
    with ExitStack() as undo:
        for owner, attribute, stage in places:
            undo.enter_context(_replaced(owner, attribute, clock.wrap(getattr(owner, attribute), stage)))
        yield


@contextmanager
def _replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    before = vars(owner).get(attribute)  # None: inherited, so taking ours away brings the owner's back
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, attribute)
        else:
            setattr(owner, attribute, before)


def time_work(codec: Codec, work: Callable[[], object], runs: int) -> Timing:
    """Time `work`, something that `codec` does.

    It is done once to warm up, `runs` times for the total, and as often again for the stages.
    """
    wait = waiter(str(codec.device))
    work()
    seconds = []
    for _ in range(runs):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    samples: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for _ in range(runs):
        clock = StageClock(wait)
        with stages_wrapped(codec, clock), clock.stage("other"):
            work()
        for stage, value in clock.seconds.items():
            samples[stage].append(value)
    stages = {stage: statistics.median(values) for stage, values in samples.items()}
    return Timing(statistics.median(seconds), tuple(seconds), stages)


# -------------------------------------------------------------------------------------------------------------- memory


def peak_memory(
    action: str,
    data: bytes | Picture,
    quality: float,
    model: str,
    device: str,
    threads: int | None,
    profile: str = "auto",
) -> int:
    """Bytes at most resident in a fresh process that starts, loads the model and codes one picture.

    action: "encode" (data: the picture) or "decode" (data: the .hpcm file's bytes).
    Raises HpcmError when the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="hpcm-bench-") as folder:
        source = Path(folder) / ("picture.png" if isinstance(data, Picture) else "picture.hpcm")
        if isinstance(data, Picture):
            write_picture(data, source)
        else:
            source.write_bytes(data)
        job = {"action": action, "source": str(source), "quality": quality, "model": model, "device": device}
        job |= {"profile": profile}
        command = [sys.executable, "-m", "hpcm_codec.evaluation.speed", json.dumps(job | {"threads": threads})]
        # The child must find this very package, installed or not.
        package = str(Path(__file__).resolve().parents[2])
        found = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": found}
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT, env=environment)
        except subprocess.TimeoutExpired as error:
            raise HpcmError(f"measuring the memory of {action} took longer than {CHILD_TIMEOUT:g} s") from error
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
        raise HpcmError(f"the process that measures the memory of {action} failed: {last[0]}")
    return int(child.stdout)


def _child(job: dict[str, Any]) -> None:
    """What the fresh process does: `peak_memory`'s job, then the figure on stdout."""
    from hpcm_codec.codec import load_codec
    from hpcm_codec.evaluation.machine import peak_memory_of_this_process
    from hpcm_codec.images import read_picture

    if job["threads"]:
        import torch

        torch.set_num_threads(job["threads"])
    codec = load_codec(job["model"], job["device"], job["profile"])
    if job["action"] == "encode":
        codec.encode(read_picture(job["source"]), job["quality"])
    else:
        codec.decode(Path(job["source"]).read_bytes())
    print(peak_memory_of_this_process())


# ------------------------------------------------------------------------------------------------------------- picture


def fitted(pixels: Samples, width: int, height: int) -> Samples:
    """A picture of that size out of another: its middle where it is larger, mirrored over and over where it is smaller.

    pixels: uint8 H×W×C; returns uint8 height×width×C.
    """
    for axis, wanted in ((0, height), (1, width)):
        have = pixels.shape[axis]
        places = np.arange(wanted) + max(0, (have - wanted) // 2)
        places %= 2 * have
        pixels = np.take(pixels, np.minimum(places, 2 * have - 1 - places), axis=axis)
    return np.ascontiguousarray(pixels)


def synthetic_photograph(width: int, height: int) -> Samples:
    """A picture with a photograph's spectrum (amplitude ∝ 1/frequency), always the same: uint8 height×width×3."""
    random = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0

    def plane() -> np.ndarray[Any, np.dtype[np.float64]]:
        spectrum = np.fft.rfft2(random.standard_normal((height, width))) / frequency
        spectrum[0, 0] = 0.0
        values = np.fft.irfft2(spectrum, (height, width))
        return np.asarray(values / max(float(values.std()), 1e-9), np.float64)

    brightness = plane()
    # Colours vary less than brightness, as they do in photographs.
    planes = [128 + 48 * brightness + 12 * plane() for _ in range(3)]
    return np.stack(planes, axis=-1).round().clip(0, 255).astype(np.uint8)


def sample_photograph() -> Path | None:
    """The largest photograph in the source checkout's examples/; None where there is none, as in an installed package."""
    folder = Path(__file__).resolve().parents[2] / "examples"
    kinds = {".png", ".jpg", ".jpeg", ".webp"}
    found = [path for path in folder.glob("*") if path.suffix.lower() in kinds]
    return max(found, key=lambda path: (path.stat().st_size, path.name), default=None)


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
