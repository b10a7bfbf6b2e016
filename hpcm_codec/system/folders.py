"""Where a user's caches and data lie, on machines that may have no home for the user."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path | None:
    """The home folder; None for a user who has none, as in containers: HOME is not set and the system does not know the user."""
    try:
        found = Path.home()
    except (RuntimeError, KeyError):
        return None
    return found if found.is_absolute() else None


def user_folder(variable: str, below_home: str) -> Path | None:
    """The folder hpcm-codec in that of an XDG variable, or else in the one below home; None where there is neither."""
    if chosen := os.environ.get(variable):
        return Path(chosen) / "hpcm-codec"
    return None if (of_user := home()) is None else of_user / below_home / "hpcm-codec"


def is_foreign(path: Path) -> bool:
    """Whether somebody else than this user and the system's own can write what is there."""
    return hasattr(os, "geteuid") and path.stat().st_uid not in (0, os.geteuid())
