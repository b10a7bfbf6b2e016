"""The folders of a user's caches and data, also for users who have no home folder."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path | None:
    """The home folder; None for a user without one, as in containers: HOME is not set, and the system has no entry for the user."""
    try:
        found = Path.home()
    except (RuntimeError, KeyError):
        return None
    return found if found.is_absolute() else None


def user_folder(variable: str, below_home: str) -> Path | None:
    """The folder hpcm-codec below that of an XDG variable, or else below the one in the home folder; None without either."""
    if chosen := os.environ.get(variable):
        return Path(chosen) / "hpcm-codec"
    return None if (of_user := home()) is None else of_user / below_home / "hpcm-codec"


def is_foreign(path: Path) -> bool:
    """Whether the path belongs to a user other than this one and root."""
    return hasattr(os, "geteuid") and path.stat().st_uid not in (0, os.geteuid())
