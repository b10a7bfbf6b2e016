"""Files to which lines are appended. They stay readable if the process ends in the middle of a line.

A line is appended as a whole and, if `durable`, flushed to the disk. So a crash leaves whole lines and at most the beginning of one
more, which `read_lines` returns separately.
"""

from __future__ import annotations

import os
from pathlib import Path

from hpcm_codec.system.files import file_error


def read_lines(path: str | Path) -> tuple[list[bytes], bytes]:
    """The complete lines without their line ends, and the text after the last line end (empty unless a line was truncated).

    A missing file has no lines. Raises FileError when it cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return [], b""
    except OSError as error:
        raise file_error(path, error) from error
    *lines, torn = content.split(b"\n")
    return lines, torn


def append_line(path: str | Path, line: str, *, durable: bool = False) -> None:
    """Add a line; the file is created if it is missing. durable: it is on the disk when this returns. Raises FileError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            data = f"{line}\n".encode()
            while data:
                data = data[os.write(descriptor, data) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise file_error(path, error) from error
