"""The number of threads that compute a picture: of the compiled operators, and of torch where it is loaded; and what forks make of it.

The threads among which torch and our operators share their work (OpenMP's, and those of csrc/threads.h) do not survive a fork, and OpenMP
in the child waits for them for ever. With one thread there is nothing to wait for: a child of a process that has used the codec works on
one, whatever else is asked for.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hpcm_codec.errors import HpcmError

ADVICE = "start processes by spawn: multiprocessing.get_context('spawn')"

_chosen: int | None = None
_heeded = False
_forked = False


def set_threads(threads: int | None) -> None:
    """Compute with that many threads; None leaves it alone, and torch unloaded. In a forked child it stays at one."""
    global _chosen
    if threads is None or _forked:
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
    if _forked:
        _work_alone()
    else:
        set_threads(_chosen)


def thread_count() -> int:
    """How many threads the compiled operators use: as many as torch, where it is loaded, else as asked for, or one for each core."""
    if _forked:
        return 1
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
    """What torch computes inside is computed on that many threads, whatever it is set to. Raises HpcmError in a forked child."""
    import torch

    if threads > 1 and after_fork("cpu"):
        raise HpcmError(f"the float profile needs {threads} threads, and a forked process has one", advice=ADVICE)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ----------------------------------------------------------------------------------------------------------------- forks


def heed_forks() -> None:
    """From now on children that this process forks work on one thread; called where its threads are about to be used."""
    global _heeded
    if not _heeded and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_work_alone)
    _heeded = True


def after_fork(device: str) -> bool:
    """Whether this process is such a child; it is then set to one thread once more, in case the program has changed that.

    device: the one that is about to be used. Raises HpcmError for "cuda" and "cuda:N", which no child can use.
    """
    if not _forked:
        return False
    if device.startswith("cuda"):
        raise HpcmError("CUDA cannot be used in a forked process", advice=ADVICE)
    _work_alone()
    return True


def _work_alone() -> None:
    global _forked
    _forked = True
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
