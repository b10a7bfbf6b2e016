"""The number of torch's threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def set_threads(threads: int | None) -> None:
    """Let torch use that many threads; None leaves it alone, and torch unloaded."""
    if threads is not None:
        import torch

        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """What is computed inside is computed on that many threads, whatever torch is set to."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
