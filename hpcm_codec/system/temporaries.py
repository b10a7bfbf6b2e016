"""Temporary files beside their targets, and the removal of those whose process was killed.

A temporary file is called `.hpcm-HOST-RANDOM.tmp` and is locked (flock) while a process writes it. The system releases the lock
when the process ends, for any reason. So a file of this machine that can be locked has no writer any more. Locks of other
machines may not be visible on a network file system: their files are removed only after a day without a change.
"""

from __future__ import annotations

import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, which refuses to delete a file that is open
    fcntl = None  # type: ignore[assignment]

NAME = re.compile(r"\.hpcm-([0-9a-f]{8})-[0-9a-f]{16}\.tmp")
DAY_SECONDS = 86400.0

_mine: set[Path] = set()


def _this_host() -> str:
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return f"{zlib.crc32(name.encode(errors='surrogateescape')):08x}"


@contextmanager
def temporary_in(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new, locked, empty file in a folder; at the end it is removed, unless it was moved. Raises OSError."""
    path, file = _create(folder)
    try:
        with file:
            yield path, file
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        _mine.discard(path)


def _create(folder: Path) -> tuple[Path, BinaryIO]:
    while True:
        # not derived from the target's name, which may already have the maximum length
        path = folder / f".hpcm-{_this_host()}-{secrets.token_hex(8)}.tmp"
        _mine.add(path)
        try:
            file = open(path, "xb")  # noqa: SIM115 - closed by `temporary_in`; a plain open, so that the umask decides the permissions
        except BaseException:
            _mine.discard(path)
            raise
        _lock(file, wait=True)
        # between opening and locking, `remove_left_behind` may have taken it for one without a writer
        if path.exists():
            return path, file
        file.close()
        _mine.discard(path)


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Whether the file is now locked by us; always False where the system or the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def remove_mine() -> None:
    """Remove the temporary files that this process is writing: for a process that is about to end without running `finally` blocks."""
    for path in list(_mine):
        with suppress(OSError):
            os.unlink(path)


def remove_left_behind(folder: str | os.PathLike[str]) -> int:
    """Remove the temporary files in a folder (not below it) that no process writes any more; returns how many.

    Other processes and machines may write there at the same time (see above). Files that cannot be examined or removed stay.
    """
    removed = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = NAME.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(OSError):
                removed += _remove_if_abandoned(Path(entry.path), here=match[1] == _this_host())
    return removed


def _remove_if_abandoned(path: Path, here: bool) -> bool:
    if not here and time.time() - path.stat().st_mtime < DAY_SECONDS:
        return False
    with open(path, "rb") as file:
        if not _lock(file, wait=False):
            return False
        os.unlink(path)
    return True
