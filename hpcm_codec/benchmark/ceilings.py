"""The highest speeds that this machine reaches, with which a stage's speed is compared.

A ceiling is the best of several runs of something that does nothing else: a large matrix product, in float32 and with the integer
operator of the exact profile, and a sum of two large arrays (the triad of the STREAM benchmark) and a copy for the memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

from hpcm_codec.benchmark.timing import clock, waiter
from hpcm_codec.ops import build, integer, integer_weights
from hpcm_codec.ops.integer import LinearWeights

EDGE = {"cpu": 1536, "cuda": 8192}  # of the float32 matrices
TOKENS, CHANNELS = 4096, 512  # of the integer product
NUMBERS = {"cpu": 2**25, "cuda": 2**28}  # in each array: 128 MiB and 1 GiB, beyond every cache
# tokens, inputs and outputs of bfloat16 products: layers of phase1-lite, and a large one
BFLOAT16_SHAPES = ((4096, 384, 192), (4096, 192, 768), (4096, 1024, 1024))
LEAST_RUNS, LEAST_SECONDS = 3, 1.0  # of each work: on a shared machine slow periods can be longer than a run


@dataclass(frozen=True)
class Ceilings:
    """Operations (two for each multiply-add) and bytes in a second; None where there is no compiled integer operator for the device."""

    float32_operations: float
    integer_operations: float | None
    triad_bytes: float
    copy_bytes: float

    def highest(self, other: Ceilings) -> Ceilings:
        """The higher figure of two measurements, for each figure."""
        integers = [figure for figure in (self.integer_operations, other.integer_operations) if figure is not None]
        return Ceilings(
            max(self.float32_operations, other.float32_operations),
            max(integers, default=None),
            max(self.triad_bytes, other.triad_bytes),
            max(self.copy_bytes, other.copy_bytes),
        )

    def to_json(self) -> dict[str, float | None]:
        return {name: None if value is None else round(value) for name, value in asdict(self).items()}


def measure_ceilings(device: str) -> Ceilings:
    """Measure all of them on a device ("cpu" or "cuda…") with torch's present number of threads; takes five seconds."""
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
    random = np.random.default_rng(0)
    x = random.integers(-100, 100, (TOKENS, 1, CHANNELS), np.int16)
    zeros = np.zeros(CHANNELS, np.int32)
    weight = random.integers(-100, 100, (CHANNELS, CHANNELS), np.int16)
    weights = integer_weights.packed_linear(LinearWeights(weight, zeros, zeros))
    seconds = _shortest(lambda: integer.linear(x, weights=weights), lambda: None)
    return 2 * TOKENS * CHANNELS**2 / seconds


def bfloat16_operations() -> float:
    """Operations a second of torch's bfloat16 matrix product on the processor, of the shape that it is fastest at; takes three seconds.

    Where torch has no fast one, that of training may be above it.
    """
    rates = []
    with torch.inference_mode():
        for tokens, inputs, outputs in BFLOAT16_SHAPES:
            x, weight = (torch.rand(rows, inputs).to(torch.bfloat16) for rows in (tokens, outputs))
            y = torch.empty(tokens, outputs, dtype=torch.bfloat16)
            seconds = _shortest(partial(torch.mm, x, weight.t(), out=y), lambda: None)
            rates.append(2 * tokens * inputs * outputs / seconds)
    return max(rates)


def _shortest(work: Callable[[], object], wait: Callable[[], None]) -> float:
    """The shortest of several runs' seconds, after one to warm up."""
    read = clock(wait)
    work()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < LEAST_RUNS or time.perf_counter() - began < LEAST_SECONDS:
        start = read()
        work()
        times.append(read() - start)
    return min(times)
