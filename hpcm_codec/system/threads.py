"""The number of threads that compute a picture: of the compiled operators, and of torch where it is loaded."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_chosen: int | None = None


def set_threads(threads: int | None) -> None:
    """Compute with that many threads; None leaves it alone, and torch unloaded."""
    global _chosen
    if threads is None:
        return
    _chosen = threads
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def import_torch() -> None:
    """Import torch, with the threads that were asked for; without looking for garbage meanwhile, nor ever after among its objects: 0.2 s
    in which nothing would be found."""
    if sys.modules.get("torch") is not None:
        return
    looking = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401 - so that it is there
    finally:
        if looking:
            gc.enable()
    gc.freeze()
    set_threads(_chosen)


def thread_count() -> int:
    """How many threads the compiled operators use: as many as torch, where it is loaded, else as asked for, or one for each core."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    return _chosen or _cores()


def _cores() -> int:
    with suppress(ValueError):
        if (asked := int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0] or 0)) > 0:
            return asked
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """What torch computes inside is computed on that many threads, whatever it is set to."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
