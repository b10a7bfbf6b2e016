"""Bytes in and out of files and of the standard streams, which are called "-"."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

from hpcm_codec.errors import FileError
from hpcm_codec.system.files import file_error, write_atomically

STDIO = "-"
_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}  # in the order of their descriptors
_closed: set[str] = set()


def shown(path: str, standard: str) -> str:
    """A path as it is shown to users; `standard` for "-"."""
    return standard if path == STDIO else path


def replace_closed() -> None:
    """Open the null device for standard streams that were closed before the program began, for this process and its children.

    Else the next file that is opened gets their descriptor, and printed text is written into that file.
    """
    for number, (name, mode) in enumerate(_MODES.items()):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # gets the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            _closed.add(name)
            stream = open(number, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - for good
            setattr(sys, name, stream)


def refuse_closed(name: str) -> None:
    """Raise FileError for "stdin" or "stdout" where it was closed before the program began."""
    if name in _closed:
        raise FileError("is closed", file=name, advice="redirect it, or name a file")


def read_input(path: str, begins: Callable[[bytes], None] | None = None) -> bytes:
    """All bytes of a file or of stdin. begins: called with the first bytes; it raises if the rest need not be read."""
    try:
        if path == STDIO:
            refuse_closed("stdin")
            return _read(sys.stdin.buffer, begins)
        with open(path, "rb") as file:
            return _read(file, begins)
    except OSError as error:
        raise file_error(shown(path, "stdin"), error) from error
    except ValueError as error:
        raise FileError("not a possible file name", file=repr(path), advice="check the path") from error


def _read(file: BinaryIO, begins: Callable[[bytes], None] | None) -> bytes:
    first = file.read(64)
    if begins is not None:
        begins(first)
    return first + file.read()


def write_output(target: str, data: bytes, force: bool) -> None:
    """Write the output: completely or not at all, unless it is stdout."""
    if target != STDIO:
        write_atomically(target, data, overwrite=force)
        return
    refuse_closed("stdout")
    try:
        stdout = sys.stdout.buffer
        stdout.write(data)
        stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_stdout()  # writing the rest of the buffer at the end would fail again
        raise file_error("stdout", error) from error


def silence_stdout() -> None:
    """Discard the rest of stdout's buffer, so that Python reports no error about it at the end."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
