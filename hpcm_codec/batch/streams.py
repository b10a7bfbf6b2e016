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


def shown(path: str, standard: str) -> str:
    """A path for the user's eyes; `standard` for "-"."""
    return standard if path == STDIO else path


def read_input(path: str, begins: Callable[[bytes], None] | None = None) -> bytes:
    """All bytes of a file or of stdin. begins: given the first bytes, raises when reading on makes no sense."""
    try:
        if path == STDIO:
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
    """The bytes as the output: whole or not at all, unless it is stdout."""
    if target != STDIO:
        write_atomically(target, data, overwrite=force)
        return
    try:
        stdout = sys.stdout.buffer
        stdout.write(data)
        stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_stdout()  # what is left in the buffer would fail again at the end
        raise file_error("stdout", error) from error


def silence_stdout() -> None:
    """Let what is left in stdout's buffer go nowhere, so that Python does not complain about it at its end."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
