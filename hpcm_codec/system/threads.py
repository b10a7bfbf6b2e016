"""The number of torch's threads, and what becomes of them when the process forks.

The threads of OpenMP, which torch and our operators share their work among, do not survive a fork, but OpenMP in the child waits for them
for ever. One thread is not waited for: a child of a process that has used the codec works on one, whatever else is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hpcm_codec.errors import HpcmError

ADVICE = "start processes by spawn: multiprocessing.get_context('spawn')"

_heeded = False
_forked = False


def set_threads(threads: int | None) -> None:
    """Let torch use that many threads; None changes nothing and does not import torch. In a forked child it stays at one."""
    if threads is not None:
        import torch

        if torch.get_num_threads() != threads and not _forked:
            torch.set_num_threads(threads)


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Inside, torch computes on that many threads; afterwards on as many as before. Raises HpcmError in a forked child."""
    import torch

    if threads > 1 and after_fork("cpu"):
        raise HpcmError(f"the float profile needs {threads} threads, and a forked process has one", advice=ADVICE)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def heed_forks() -> None:
    """From now on children that this process forks work on one thread; called where its threads are about to be used."""
    global _heeded
    if not _heeded and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_work_alone)
    _heeded = True


def after_fork(device: str) -> bool:
    """Whether this process is such a child; it is then set to one thread once more, should somebody have changed that.

    device: the kind of device that is about to be used. Raises HpcmError for "cuda", which no child can use.
    """
    if not _forked:
        return False
    if device == "cuda":
        raise HpcmError("CUDA cannot be used in a forked process", advice=ADVICE)
    _work_alone()
    return True


def _work_alone() -> None:
    global _forked
    import torch

    _forked = True
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
