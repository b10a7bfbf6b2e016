"""Which calls make up which stage of encoding and decoding.

A context step is everything from one exchange of symbols to the next: the step's parameters, its latents taken and placed, and the cell
that carries the context on. What leads from one scale to the next counts to the first step of the finer one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hpcm_codec.benchmark.meter import Meter
from hpcm_codec.model import context, schedule
from hpcm_codec.model.context import Arithmetic, Planes
from hpcm_codec.model.schedule import Scale

if TYPE_CHECKING:
    from hpcm_codec.codec import Codec


def step_name(scale: str, number: int) -> str:
    """What the stage of a scale's step is called; numbers count from 1."""
    return f"{scale} step {number}"


_SCHEDULE = schedule.scales(schedule.GROUPS)
SCALES = tuple(scale.name for scale in _SCHEDULE)
STEPS = tuple(step_name(scale.name, number + 1) for scale in _SCHEDULE for number in range(len(scale.steps)))
# In the order of encoding. "other": padding, alpha, metadata and whatever else is between the stages.
STAGES = (
    *("read", "analysis", "hyper analysis", "hyper synthesis", *STEPS, "symbols", "range coding"),
    *("synthesis", "container", "write", "other"),
)


class _Steps:
    """An arithmetic for `walk` that tells a meter where every step begins."""

    def __init__(self, inner: Arithmetic, meter: Meter) -> None:
        self._inner, self._meter = inner, meter
        self.no_latents, self.enter = inner.no_latents, inner.enter
        self.code, self.carry = inner.code, inner.carry

    def parameters(self, scale: int, step: int, context: Tensor, latents: Tensor) -> Tensor:
        number = step + (2 if scale == 0 else 1)  # the first step of s1 has its parameters from the hyperprior
        self._meter.switch(step_name(SCALES[scale], number))
        return self._inner.parameters(scale, step, context, latents)


@contextmanager
def steps_watched(meter: Meter) -> Iterator[None]:
    """While it lasts, `meter` switches from step to step in every walk over the coding steps, which some stage must be around."""
    from hpcm_codec.engines.exact import network

    plain = context.walk

    def walk(arithmetic: Arithmetic, planes: Planes, begin: Callable[[Scale], None]) -> Tensor:
        def both(scale: Scale) -> None:
            meter.switch(step_name(scale.name, 1))
            begin(scale)

        return plain(_Steps(arithmetic, meter), planes, both)

    with replaced(context, "walk", walk), replaced(network, "walk", walk):
        yield


@contextmanager
def stages_watched(codec: Codec, meter: Meter) -> Iterator[None]:
    """While it lasts, everything this codec does is charged to `meter`, by STAGES, where the caller has opened a stage for the rest.

    Not for several threads: it wraps functions that all codecs share.
    """
    from hpcm_codec.bitstream import container
    from hpcm_codec.entropy import ports
    from hpcm_codec.entropy.ports import DecoderPort, EncoderPort
    from hpcm_codec.entropy.range_coder import RangeEncoder
    from hpcm_codec.entropy.range_decoder import RangeDecoder

    decider: Any = codec.model if codec.profile == "float" else codec.exact
    places: list[tuple[Any, str, str]] = [
        (codec.model, "analyse", "analysis"),
        (codec.model, "hyper_latents", "hyper analysis"),
        (decider, "hyper_distribution", "hyper synthesis"),
        (decider, "code_latents", "hyper synthesis"),
        (codec.model, "synthesise", "synthesis"),
        (EncoderPort, "__init__", "symbols"),
        *((port, name, "symbols") for port in (EncoderPort, DecoderPort) for name in ("code_hyper", "exchange_levels")),
        *((coder, "__init__", "range coding") for coder in (RangeEncoder, RangeDecoder)),
        (RangeEncoder, "encode", "range coding"),
        (RangeEncoder, "finish", "range coding"),
        (RangeDecoder, "decode", "range coding"),
        (container, "write_stream", "container"),
        (container, "parse_stream", "container"),
    ]
    with ExitStack() as undo:
        undo.enter_context(steps_watched(meter))
        # one after the other and as plain code, or nothing could be told apart
        undo.enter_context(replaced(ports, "in_background", lambda device: False))
        if codec.coder.graphs is not None:
            undo.enter_context(replaced(codec.coder.graphs, "enabled", False))
        for owner, attribute, stage in places:
            undo.enter_context(replaced(owner, attribute, meter.wrap(getattr(owner, attribute), stage)))
        yield


@contextmanager
def replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    """While it lasts, the attribute of an object, class or module is `value`."""
    before = vars(owner).get(attribute)  # None: inherited, so taking ours away brings the owner's back
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, attribute)
        else:
            setattr(owner, attribute, before)
