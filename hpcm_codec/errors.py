"""Every error a user of hpcm_codec can meet.

An error is one line: the file (when known), the reason, what to do about it. The command line prints `str(error)` and leaves with
`error.exit_status`; code that calls the library catches `HpcmError`. Code that meets an error without knowing the file's name leaves
the name out, and whoever knows it adds it with `in_file`:

>>> try:
...     raise CorruptStreamError("not a .hpcm file", advice="check that it was made by `hpcm encode`")
... except HpcmError as error:
...     print(error.in_file("holiday.hpcm"), "->", error.exit_status)
holiday.hpcm: not a .hpcm file; check that it was made by `hpcm encode` -> 3
"""

from __future__ import annotations

import os


class HpcmError(Exception):
    """Base of every error that is meant for a user's eyes.

    reason: what went wrong, in a few words, without a full stop.
    file:   the file it went wrong with, or None when not known (yet).
    advice: what the user can do about it, or None.
    """

    exit_status: int = 1

    def __init__(self, reason: str, *, file: str | os.PathLike[str] | None = None, advice: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.file = None if file is None else os.fspath(file)
        self.advice = advice

    def __str__(self) -> str:
        text = self.reason if self.file is None else f"{self.file}: {self.reason}"
        if self.advice is not None:
            text = f"{text}; {self.advice}"
        return " ".join(text.split())  # one line, whatever a library's message brought along

    def in_file(self, file: str | os.PathLike[str]) -> HpcmError:
        """The same error naming `file`; an error that already names a file is returned unchanged."""
        if self.file is None:
            self.file = os.fspath(file)
        return self


class UsageError(HpcmError):
    """The command or function was asked for something that makes no sense."""

    exit_status = 2


class MemoryLimitError(HpcmError):
    """The work would take more memory than the limit allows; told before any work is done.

    needed, limit: bytes of the whole process, as estimated (see `memory`).
    """

    def __init__(self, what: str, needed: int, limit: int, *, advice: str) -> None:
        super().__init__(f"{what} takes about {needed} bytes of memory, above the limit of {limit}", advice=advice)
        self.needed = needed
        self.limit = limit


class CorruptStreamError(HpcmError):
    """The data is damaged, cut short, or not a .hpcm stream at all."""

    exit_status = 3


class CutShortError(CorruptStreamError):
    """The data ends before the stream does; more of it may help."""


class UnsupportedError(HpcmError):
    """The data is sound but needs a newer format version, another checkpoint or model, or a chunk this build does not know."""

    exit_status = 4


class FileError(HpcmError):
    """A file is missing, unreadable, not an image, exists already, or cannot be written."""

    exit_status = 5
