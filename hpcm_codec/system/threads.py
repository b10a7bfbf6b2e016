"""The number of torch's threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def set_threads(threads: int | None) -> None:
    """Let torch use that many threads; None changes nothing and does not import torch."""
    if threads is not None:
        import torch

        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Inside, torch computes on that many threads; afterwards on as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
