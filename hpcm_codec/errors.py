"""All errors that users of hpcm_codec can meet.

An error is one line: the file (if known), the reason, and what to do. The command line prints `str(error)` and ends with
`error.exit_status`; code that calls the library catches `HpcmError`. Code that meets an error without knowing the file's name leaves
the name out; callers that know it add it with `in_file`:

>>> from hpcm_codec.errors import CorruptStreamError, HpcmError
>>> try:
...     raise CorruptStreamError("not a .hpcm file", advice="check that it was made by `hpcm encode`")
... except HpcmError as error:
...     print(error.in_file("holiday.hpcm"), "->", error.exit_status)
holiday.hpcm: not a .hpcm file; check that it was made by `hpcm encode` -> 3
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from typing import Any

DEBUG_VARIABLE = "HPCM_DEBUG"
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, half surrogates, line and paragraph separators
# of lists of names in a message
_NAMES = 4
_NAME_CHARACTERS = 60


class HpcmError(Exception):
    """Base class of all errors that are shown to users.

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
        text = self.reason if self.file is None else f"{printable(self.file)}: {self.reason}"
        if self.advice is not None:
            text = f"{text}; {self.advice}"
        return " ".join(text.split())  # one line, even if a library's message has several

    def in_file(self, file: str | os.PathLike[str]) -> HpcmError:
        """The same error naming `file`; an error that already names a file is returned unchanged."""
        if self.file is None:
            self.file = os.fspath(file)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickling between processes: an exception's default calls the constructor without the keywords."""
        return _rebuilt, (type(self), self.args, vars(self))


def _rebuilt(kind: type[HpcmError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> HpcmError:
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update(fields)
    return error


class UsageError(HpcmError):
    """The options or arguments are invalid."""

    exit_status = 2


class MemoryLimitError(HpcmError):
    """The work would take more memory than the limit allows; raised before any work is done.

    needed, limit: bytes of the whole process, as estimated (see `tiles.memory`).
    """

    def __init__(self, what: str, needed: int, limit: int, *, advice: str) -> None:
        super().__init__(f"{what} takes about {needed} bytes of memory, above the limit of {limit}", advice=advice)
        self.needed = needed
        self.limit = limit


class CorruptStreamError(HpcmError):
    """The data is damaged, cut short, or not a .hpcm stream at all."""

    exit_status = 3


class CutShortError(CorruptStreamError):
    """The data ends before the stream does; the rest of it may help."""


class UnsupportedError(HpcmError):
    """The data is sound but needs a newer format version, another checkpoint or model, or a chunk this build does not know."""

    exit_status = 4


class FileError(HpcmError):
    """A file is missing, unreadable, not an image, exists already, or cannot be written."""

    exit_status = 5


def printable(path: str) -> str:
    """A path as it goes into one line of text: line breaks, other control characters and what is no Unicode are escaped.

    >>> print(printable("a" + chr(10) + "b.png"))
    a\\nb.png
    """
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _UNPRINTABLE else c for c in path)


def listed(names: Sequence[str]) -> str:
    """The first names of a list, as they go into one line of text; what is long is shortened.

    >>> listed(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    >>> listed(["encoder." * 10])
    'encoder.encoder.encoder.encoder.encoder.encoder.encoder.enco…'
    """
    shown = [name if len(name) <= _NAME_CHARACTERS else f"{name[:_NAME_CHARACTERS]}…" for name in names[:_NAMES]]
    more = len(names) - len(shown)
    return printable(", ".join(shown)) + (f" and {more} more" if more > 0 else "")


def bug(error: BaseException) -> HpcmError:
    """The error that reports an unexpected exception to a user."""
    text = " ".join(str(error).split())[:300]
    advice = f"please report it, with what {DEBUG_VARIABLE}=1 shows"
    return HpcmError(f"a bug: {type(error).__name__}: {text}", advice=advice)


def debugging() -> bool:
    """Whether errors are to be raised with their traceback instead of reported in one line."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
