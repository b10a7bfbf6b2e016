"""Warnings in a program of ours: told, never errors."""

from __future__ import annotations

import warnings


def tell_warnings() -> None:
    """Let warnings be told as usual where PYTHONWARNINGS or -W makes errors of them: a library's advice to programmers ends no work."""
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.resetwarnings()
        for unseen in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", unseen, append=True)
