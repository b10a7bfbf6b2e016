"""The number of threads that compute a picture: of the compiled operators, and of torch where it is loaded; and their number after forks.

Torch and our operators share their work among threads (OpenMP's, and those of csrc/threads.h). A forked child does not have these threads,
and OpenMP in the child waits for them forever. With one thread it does not wait. So a child of a process that has used the codec always
uses one thread, even if more are requested.
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
    """Compute with that many threads. None changes nothing and does not load torch. A forked child stays at one thread."""
    global _chosen
    if threads is None or _forked:
        return
    _chosen = threads
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def import_torch() -> None:
    """Import torch and set the requested number of threads. Garbage collection is off meanwhile, and later skips torch's objects: this
    saves 0.2 s in which it would find nothing."""
    if sys.modules.get("torch") is not None:
        return
    looking = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401 - loads it
    finally:
        if looking:
            gc.enable()
    gc.freeze()
    if _forked:
        _work_alone()
    else:
        set_threads(_chosen)


def thread_count() -> int:
    """The number of threads of the compiled operators: torch's, where it is loaded, else the requested one, or one for each core."""
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
    """Inside, torch computes on that many threads, independent of its setting. Raises HpcmError in a forked child."""
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
    """From now on, forked children of this process use one thread; called before its threads are used."""
    global _heeded
    if not _heeded and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_work_alone)
    _heeded = True


def after_fork(device: str) -> bool:
    """Whether this process is such a child. If so, sets it to one thread again, as the program may have changed that.

    device: the one to be used next. Raises HpcmError for "cuda" and "cuda:N", which no child can use.
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
