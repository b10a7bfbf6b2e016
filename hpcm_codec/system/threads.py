"""The number of torch's threads."""

from __future__ import annotations


def set_threads(threads: int | None) -> None:
    """Let torch use that many threads; None leaves it alone, and torch unloaded."""
    if threads is not None:
        import torch

        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
