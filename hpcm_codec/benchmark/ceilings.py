"""What this machine can at most do, measured: the figures that a stage's speed is compared with.

A ceiling is the best of several runs of something that does nothing else: a large matrix product, in float32 and with the integer
operator of the exact profile, and a sum of two large arrays (the triad of the STREAM benchmark) and a copy for the memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from hpcm_codec.benchmark.timing import clock, waiter
from hpcm_codec.ops import build, integer
from hpcm_codec.ops.integer import LinearWeights

EDGE = {"cpu": 1536, "cuda": 8192}  # of the float32 matrices
TOKENS, CHANNELS = 4096, 512  # of the integer product
NUMBERS = {"cpu": 2**25, "cuda": 2**28}  # in each array: 128 MiB and 1 GiB, beyond every cache
RUNS, SECONDS = 5, 3.0  # at least so many runs, unless they take longer


@dataclass(frozen=True)
class Ceilings:
    """Operations (two for each multiply-add) and bytes in a second; None where there is no compiled integer operator for the device."""

    float32_operations: float
    integer_operations: float | None
    triad_bytes: float
    copy_bytes: float

    def to_json(self) -> dict[str, float | None]:
        return {name: None if value is None else round(value) for name, value in asdict(self).items()}


def measure_ceilings(device: str) -> Ceilings:
    """Measure all of them on a device ("cpu" or "cuda…") with torch's present number of threads; takes a few seconds."""
    kind = device.partition(":")[0]
    wait = waiter(device)
    edge, count = EDGE[kind], NUMBERS[kind]
    with torch.inference_mode():
        a, b = (torch.rand(edge, edge, device=device) for _ in range(2))
        product = torch.empty_like(a)
        float32 = 2 * edge**3 / _shortest(lambda: torch.mm(a, b, out=product), wait)
        x, y, z = (torch.rand(count, device=device) for _ in range(3))
        size = x.element_size() * count
        triad = 3 * size / _shortest(lambda: torch.add(x, y, alpha=3.0, out=z), wait)
        copy = 2 * size / _shortest(lambda: z.copy_(x), wait)
        return Ceilings(float32, _integer_product() if kind == "cpu" else None, triad, copy)


def _integer_product() -> float | None:
    if not build.use_compiled("integer"):
        return None
    x = torch.randint(-100, 100, (TOKENS, 1, CHANNELS), dtype=torch.int16)
    weight = torch.randint(-100, 100, (CHANNELS, CHANNELS), dtype=torch.int16)
    zeros = torch.zeros(CHANNELS, dtype=torch.int32)
    weights = LinearWeights(weight, zeros, zeros)
    seconds = _shortest(lambda: integer.linear(x, weights), lambda: None)
    return 2 * TOKENS * CHANNELS**2 / seconds


def _shortest(work: Callable[[], object], wait: Callable[[], None]) -> float:
    """The shortest of several runs' seconds, after one to warm up."""
    read = clock(wait)
    work()
    best, began = float("inf"), time.perf_counter()
    for _ in range(RUNS):
        start = read()
        work()
        best = min(best, read() - start)
        if time.perf_counter() - began > SECONDS:
            break
    return best
