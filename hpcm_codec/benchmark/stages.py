"""The stages of encoding and decoding, as the codec and its engines report them to an observer (`Codec.observed`).

A context step is everything from one exchange of symbols to the next: the step's parameters, its latents taken and placed, and the cell
that carries the context on. What leads from one scale to the next counts to the first step of the finer one.
"""

from __future__ import annotations

from hpcm_codec.model import schedule
from hpcm_codec.model.complexity import MeanPort
from hpcm_codec.model.schedule import Scale
from hpcm_codec.observing import Observer, step_name

_SCHEDULE = schedule.scales(schedule.GROUPS)
SCALES = tuple(scale.name for scale in _SCHEDULE)
STEPS = tuple(step_name(scale.name, number + 1) for scale in _SCHEDULE for number in range(len(scale.steps)))
# In the order of encoding. "other": padding, alpha, metadata and whatever else is between the stages.
STAGES = (
    *("read", "analysis", "hyper analysis", "hyper synthesis", *STEPS, "symbols", "rANS coding"),
    *("synthesis", "container", "write", "other"),
)


class ObservedMeanPort(MeanPort):
    """A symbol port that costs nothing and reports where every step of the walk begins. Some stage must be open around the walk."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def begin(self, scale: Scale, number: int) -> None:
        self._observer.switch(step_name(scale.name, number))
