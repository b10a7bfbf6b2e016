"""Launches: a count that says whether the codec costs more than before, the same on every machine, busy or not.

A launch is one operator that computes: one of torch's (views and empty allocations are none), or one of the exact profile's. On a GPU
each would be a kernel or more; on a processor each costs a call and a pass over memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpcm_codec.benchmark.meter import Meter
from hpcm_codec.benchmark.stages import STEPS, ObservedMeanPort
from hpcm_codec.codec import Codec
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.ops import integer
from hpcm_codec.tiles.grid import LATENTS_PER_UNIT, PIXELS_PER_LATENT

INTEGER_OPERATORS = (
    "bi_wkv",
    "branch",
    "depthwise",
    "gate",
    "layer_norm",
    "linear",
    "scale",
    "squared_relu",
    "window_attention",
)
_ALLOCATING = ("empty", "new_empty", "empty_like", "detach", "lift_fresh", "resize_")


class _Launches(TorchDispatchMode):
    """Counts the operators that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        a_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.count += not (a_view or name.startswith(_ALLOCATING))
        return func(*args, **(kwargs or {}))


@contextmanager
def _launches_counted() -> Iterator[Meter]:
    """A meter of launches; counts while it lasts."""
    mode = _Launches()

    def counted(operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            mode.count += 1
            return operator(*arguments, **options)

        return call

    with ExitStack() as stack:
        for name in INTEGER_OPERATORS:
            stack.enter_context(patch.object(integer, name, counted(getattr(integer, name))))
        stack.enter_context(mode)
        yield Meter(lambda: mode.count)


def launches_of_decoding(codec: Codec, data: bytes) -> dict[str, int]:
    """Launches of every stage of decoding a file; raises as `Codec.decode`."""
    codec.decode(data)  # what is made once, such as packed weights, does not count
    with _launches_counted() as meter, codec.observed(meter), meter.stage("other"):
        codec.decode(data)
    return {stage: int(count) for stage, count in meter.charged.items()}


def launches_of_steps(config: ModelConfig, edge: int = 256) -> dict[str, int]:
    """Launches of every context step in floating point, by the shapes alone. edge: of the square picture, a multiple of 64."""
    side = edge // PIXELS_PER_LATENT // LATENTS_PER_UNIT
    with torch.device("meta"):
        model = HPCM(config).eval().requires_grad_(False)
        rate = torch.ones(1, config.rate_levels)
        hyper = torch.empty(1, config.hyper_channels, side, side)
    with torch.inference_mode(), _launches_counted() as meter, meter.stage("hyper synthesis"):
        model.code_latents(hyper, rate, ObservedMeanPort(meter))
    return {step: int(meter.charged[step]) for step in STEPS}
