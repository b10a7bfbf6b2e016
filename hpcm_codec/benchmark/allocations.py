"""Bytes that torch allocates on the processor during some work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

_MEMORY_EVENT = "[memory]"


@dataclass(frozen=True)
class Allocations:
    """Bytes allocated by torch: in all, and at most at once, beyond what was allocated before."""

    total: int
    peak: int


def allocations_of(work: Callable[[], object]) -> Allocations:
    """What some work on the processor allocates; memory that libraries allocate themselves is not counted."""
    with _stderr_silenced(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == _MEMORY_EVENT]
    total = held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += max(0, event.nbytes())
        held += event.nbytes()
        peak = max(peak, held)
    return Allocations(total, peak)


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Torch's profiler writes a line at every start and end, directly to the file descriptor; errors are exceptions nevertheless."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
