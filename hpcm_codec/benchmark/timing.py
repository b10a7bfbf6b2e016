"""The time of encoding or decoding one picture, from file to file, in all and by stage.

Totals are medians over runs without an observer. The stages come from further runs with a clock as the codec's observer (the device is
waited for at each end of a stage): a stage's time is its own, without that of the stages inside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpcm_codec.benchmark.meter import Meter
from hpcm_codec.benchmark.stages import STAGES
from hpcm_codec.images import open_picture, write_picture
from hpcm_codec.system.files import write_atomically

if TYPE_CHECKING:
    from hpcm_codec.codec import Codec

Action = Literal["encode", "decode"]
ACTIONS: tuple[Action, ...] = ("encode", "decode")


@dataclass(frozen=True)
class Timing:
    """Seconds: the medians, of the codec alone (pixels to a file's bytes or back) and from file to file; every run of the codec; and the
    median of each stage, of other runs than these."""

    seconds: float
    file_to_file: float
    all_seconds: tuple[float, ...]
    stages: dict[str, float]


def go(action: Action, codec: Codec, source: Path, target: Path, quality: float, meter: Meter, rest: str) -> None:
    """Encode or decode a file as the command line does, in strips where formats allow it; `target` is overwritten.

    Reading and writing are charged to "read" and "write", what the codec does to `rest`. Raises HpcmError as the codec does.
    """
    with ExitStack() as files:
        if action == "encode":
            with meter.stage("read"):
                picture: Any = files.enter_context(open_picture(source))
            picture.rows = meter.wrap(picture.rows, "read")
            with meter.stage(rest):
                data = codec.encode(picture, quality)
            with meter.stage("write"):
                write_atomically(target, data, overwrite=True)
        else:
            with meter.stage("read"):
                data = source.read_bytes()
            with meter.stage(rest):
                decoded = codec.decode_strips(data)
            decoded.strips = _charged(decoded.strips, meter, rest)
            with meter.stage("write"):
                write_picture(decoded, target, overwrite=True)


def _charged(items: Iterator[Any], meter: Meter, name: str) -> Iterator[Any]:
    """The same items; the time of making them is charged to a stage."""
    end = object()
    while True:
        with meter.stage(name):
            item = next(items, end)
        if item is end:
            return
        yield item


def waiter(device: str) -> Callable[[], None]:
    """A function that waits until the device has finished all its work."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)


def clock(wait: Callable[[], None]) -> Callable[[], float]:
    """The clock in seconds, read when the device has finished all its work."""

    def read() -> float:
        wait()
        return time.perf_counter()

    return read


def time_undisturbed(way: Callable[[Meter, str], None], wait: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the codec alone and from file to file, of one run of `go`. way: the rest of its arguments."""
    meter = Meter(clock(wait))
    way(meter, "codec")
    return meter.charged["codec"], sum(meter.charged.values())


def time_stages(codec: Codec, way: Callable[[Meter, str], None], wait: Callable[[], None]) -> dict[str, float]:
    """Seconds of every stage, of one run; 0 for those that this way does not have."""
    meter = Meter(clock(wait))
    with codec.observed(meter):
        way(meter, "other")
    return {stage: meter.charged.get(stage, 0.0) for stage in STAGES}


def time_way(codec: Codec, way: Callable[[Meter, str], None], runs: int) -> Timing:
    """Time a way: to warm up once, or until graphs are replayed; `runs` times for the totals, and as often again for the stages."""
    wait = waiter(codec.device)
    for _ in range(codec.engine.warm_up_uses):
        time_undisturbed(way, wait)
    alone, whole = zip(*(time_undisturbed(way, wait) for _ in range(runs)), strict=True)
    samples = [time_stages(codec, way, wait) for _ in range(runs)]
    stages = {stage: statistics.median(sample[stage] for sample in samples) for stage in STAGES}
    return Timing(statistics.median(alone), statistics.median(whole), alone, stages)
