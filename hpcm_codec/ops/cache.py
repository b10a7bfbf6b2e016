"""Compiled libraries on disk: where they are kept, and which of them may be loaded.

A file with its SHA-256 lies beside each library and is written before the library gets its name. Loading a library that a full disk or
the system has damaged would end the process with a signal, so the hash is checked first.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hpcm_codec.errors import HpcmError
from hpcm_codec.system.folders import is_foreign, user_folder

ADVICE = "set HPCM_CACHE to a writable folder"


class BuildError(HpcmError):
    """A compiled backend is required and cannot be built or loaded."""


def cache_directory() -> Path:
    """Where libraries are kept: $HPCM_CACHE/ops, $XDG_CACHE_HOME/hpcm-codec/ops or ~/.cache/hpcm-codec/ops.

    Raises BuildError where there is no home, or where the folder is another user's, whose libraries may not be loaded.
    """
    if chosen := os.environ.get("HPCM_CACHE"):
        return Path(chosen) / "ops"
    folder = user_folder("XDG_CACHE_HOME", ".cache")
    if folder is None:
        raise BuildError("this user has no home folder to keep it in", advice=ADVICE)
    folder /= "ops"
    try:
        foreign = folder.exists() and is_foreign(folder)
    except OSError as error:
        raise BuildError(f"the cache in {folder} cannot be used ({error})", advice=ADVICE) from error
    if foreign:
        raise BuildError(
            f"the cache in {folder} belongs to another user", advice="set HPCM_CACHE to a folder of your own"
        )
    return folder


def is_sound(library: Path) -> bool:
    """Whether the library exists and is unchanged since it was built."""
    try:
        return _sum_of(library).read_text(encoding="ascii") == _sha256(library)
    except (OSError, ValueError):
        return False


def publish(built: Path, library: Path) -> None:
    """Give a library that was built its name in the cache, whole or not at all. Raises OSError."""
    _sum_of(library).write_text(_sha256(built), encoding="ascii")
    os.replace(built, library)


def _sum_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
