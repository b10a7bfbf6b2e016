"""Warnings in a program of ours are printed, never raised as errors."""

from __future__ import annotations

import warnings


def print_warnings() -> None:
    """Print warnings as usual where PYTHONWARNINGS or -W turns them into errors: advice to programmers must not end the work."""
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.resetwarnings()
        for unseen in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", unseen, append=True)
