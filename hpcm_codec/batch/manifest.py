"""The record of a batch: a JSON object per line and input, on disk as soon as the input is done.

After a crash only the lines of unfinished jobs are missing, and at most one line is truncated and ignored (`system.lines`). A resumed batch
writes a new line for each job that it repeats. The last line of an input counts, and at the end the file is rewritten with one line per
input. A lock lets one process at a time write a manifest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from hpcm_codec.batch.tasks import Result
from hpcm_codec.errors import FileError
from hpcm_codec.system.files import file_error, write_atomically
from hpcm_codec.system.lines import append_line, read_lines

Row = Mapping[str, Any]


class Manifest:
    """The manifest at `path`, to be used as a context.

    resume: keep the rows of an existing file; otherwise the file may only exist with `force`, and is replaced.
    Raises FileError when it exists and must not, is in use, is not a manifest, or cannot be read or written.
    """

    def __init__(self, path: str, *, resume: bool = False, force: bool = False) -> None:
        self.path = path
        self._resume, self._force = resume, force
        self._lock = FileLock(f"{path}.lock")
        self._rows: dict[tuple[str, str], Row] = {}
        self._superseded = False

    def __enter__(self) -> Manifest:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            advice = "give every process, and every shard, a manifest of its own"
            raise FileError("another hpcm is writing it", file=self.path, advice=advice) from error
        except OSError as error:
            raise file_error(self.path, error) from error
        try:
            self._open()
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._superseded:
                self._write_anew()
        finally:
            self._unlock()

    def find(self, source: str, target: str) -> Row | None:
        """The last row of a job in an earlier run."""
        return self._rows.get((source, target))

    def add(self, result: Result) -> None:
        """Write a result's row, if it has one: on disk when this returns. Raises FileError."""
        if result.row is None:
            return
        # ASCII: any name can be written, and every program can read it
        append_line(self.path, json.dumps(result.row, allow_nan=False), durable=True)
        if self._resume:
            key = result.job.source, result.job.target
            self._superseded |= key in self._rows
            self._rows[key] = result.row

    def _open(self) -> None:
        if self._resume:
            self._read()
        elif os.path.lexists(self.path) and not self._force:
            advice = "go on with --resume, choose another name, or start it anew with -f"
            raise FileError("exists already", file=self.path, advice=advice)
        else:
            write_atomically(self.path, b"", overwrite=True)

    def _read(self) -> None:
        if not os.path.lexists(self.path):
            write_atomically(self.path, b"")
            return
        lines, cut = read_lines(self.path)
        for number, line in enumerate(lines, start=1):
            self._keep(number, line)
        if cut:
            try:
                self._keep(len(lines) + 1, cut)
            except FileError:
                if not lines and not b'{"path": '.startswith(cut[:9]):
                    raise  # the file is no manifest
            self._superseded = True
        if self._superseded:
            self._write_anew()

    def _keep(self, number: int, line: bytes) -> None:
        try:
            row = json.loads(line)
            key = row["path"], row["output"]
        except (ValueError, TypeError, KeyError) as error:
            raise FileError(
                f"line {number} is not of a manifest", file=self.path, advice="name another file, or remove this one"
            ) from error
        self._superseded |= key in self._rows
        self._rows[key] = row

    def _write_anew(self) -> None:
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in self._rows.values())
        write_atomically(self.path, text.encode("ascii"), overwrite=True)
        self._superseded = False

    def _unlock(self) -> None:
        with suppress(OSError):  # Windows does not unlink what is open
            # before the lock is released: a process that opened it meanwhile then finds that it was removed
            os.unlink(self._lock.lock_file)
        self._lock.release()
