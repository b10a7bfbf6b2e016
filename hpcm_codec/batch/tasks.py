"""One job in a batch: existing outputs, errors that concern only this job, times and digests.

How `--resume` decides that an output is finished: files are only moved into place whole, so an existing one must only have been made
of this input with these settings.

- Where the manifest has a row for the job, the row decides: the SHA-256 of the input and of the output and all settings, the model's
  identity among them, must be the same.
- Without a row (no manifest was kept, or the process was killed between moving the file into place and writing the row) the output
  itself is examined: an encoded file must be whole in every checksum, of the model, profile and quality that are asked for and of the
  input's width and height; a decoded picture must be of the right size and format; and neither may be older than its input. That the
  pixels are the input's is then taken from its name.

An output of which this is not certain is not replaced without `-f`: the job fails and says why.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hpcm_codec.batch.jobs import Job
from hpcm_codec.batch.machine import Machine
from hpcm_codec.batch.stopping import BatchStopped
from hpcm_codec.batch.streams import STDIO, shown
from hpcm_codec.errors import FileError, HpcmError, bug, debugging
from hpcm_codec.system.files import as_hpcm_error, file_error

DONE, KEPT, FAILED, COPIED = "done", "kept", "failed", "copied"
OVERWRITE_ADVICE = "overwrite it with -f, or choose another name"
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """The result of a job. summary: one line for people, without the names; facts: the fields of the JSON line; written: the file that was
    written instead of the job's output, if it was another."""

    summary: str
    facts: dict[str, Any]
    notices: Sequence[str] = ()
    written: str | None = None


class Work(Protocol):
    """The work on one job: encoding or decoding. It can be pickled for other processes; each loads its own model when it first needs one.

    machine:   its device and limits.
    measures:  requested facts besides the usual ones, for which a finished output may have to be measured.
    lookahead: how many jobs are given to `prepare` at once; 1: no preparation.
    """

    @property
    def machine(self) -> Machine: ...

    @property
    def measures(self) -> tuple[str, ...]: ...

    @property
    def lookahead(self) -> int: ...

    def settings(self) -> dict[str, Any]:
        """All that the output depends on besides the input, for JSON. Raises BatchStopped when the model cannot be loaded."""

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Do work for several jobs together where that takes less time. Raises nothing: errors are reported when a job is done."""

    def __call__(self, job: Job, overwrite: bool) -> Outcome:
        """Do the job. Raises HpcmError, and BatchStopped for errors that every job would have."""

    def inspect(self, job: Job) -> Outcome:
        """The outcome of an output that exists already; raises HpcmError unless it fits the job."""


@dataclass(frozen=True)
class Rules:
    """force: outputs may exist and are replaced; resume: those that are finished are kept; digests: SHA-256 of inputs and outputs;
    keep_time: outputs get the time of the last change of their inputs."""

    force: bool = False
    resume: bool = False
    digests: bool = False
    keep_time: bool = False


@dataclass(frozen=True)
class Task:
    """A job and its history. row: the manifest's, from an earlier run; existed: whether the output existed before the batch."""

    job: Job
    row: Mapping[str, Any] | None = None
    existed: bool = False


@dataclass(frozen=True)
class Result:
    """The result of a task: an outcome or an error, and its row for the manifest (None if the manifest has it already)."""

    job: Job
    seconds: float
    outcome: Outcome | None = None
    error: HpcmError | None = None
    kept: bool = False
    row: dict[str, Any] | None = None


def task_of(job: Job, row: Mapping[str, Any] | None = None) -> Task:
    """The task of a job that has not begun."""
    return Task(job, row, _is_file(job.target))


@dataclass(frozen=True)
class Performer:
    """Does tasks, in any process."""

    work: Work
    rules: Rules = field(default_factory=Rules)

    def __call__(self, task: Task) -> Result:
        """Do a task. Raises BatchStopped, BrokenPipeError, and bugs if HPCM_DEBUG asks for tracebacks; any other error is in the result."""
        job, digests = task.job, dict[str, Any]()
        started = time.perf_counter()
        try:
            if job.unreadable:
                raise FileError(job.unreadable, file=job.source, advice="make the folder readable, or leave it out")
            if self.rules.digests:
                digests["sha256"] = sha256_of(job.source)
            _make_folder(job)
            kept = self._kept(task, digests)
            outcome = kept or self.work(job, self.rules.force)
            written = outcome.written or job.target
            if self.rules.keep_time and kept is None:
                _keep_time(job.source, written)
            if self.rules.digests and "output_sha256" not in digests:
                digests["output_sha256"] = sha256_of(written)
        except (BatchStopped, BrokenPipeError):
            raise
        except Exception as error:
            failure = as_hpcm_error(error)
            if failure is None:
                if debugging():
                    raise
                failure = bug(error)
            return failed(job, failure, time.perf_counter() - started, digests)
        seconds = time.perf_counter() - started
        row = None
        if self.rules.digests and not (kept and kept.facts == _facts_of(task.row)):
            status = COPIED if outcome.written else KEPT if kept and task.existed else DONE
            facts = {"bytes": os.path.getsize(written), **outcome.facts, **digests, "settings": self.work.settings()}
            row = row_of(job, status, seconds, facts)
        return Result(job, seconds, outcome, kept=kept is not None and (task.existed or bool(kept.written)), row=row)

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Prepare those of the next tasks that are certain to be done."""
        self.work.prepare(
            [task.job for task in tasks if not task.existed or (self.rules.force and not self.rules.resume)]
        )

    def _kept(self, task: Task, digests: dict[str, Any]) -> Outcome | None:
        """The outcome of an output that exists and is kept; None if there is work to do. Raises FileError for one that must not exist."""
        target, resume = task.job.target, self.rules.resume
        if resume and (copied := self._proven_copy(task, digests)) is not None:
            return copied
        if not _is_file(target):
            return None
        # one that did not exist then was written by a process that ended afterwards
        if not resume and task.existed:
            if self.rules.force:
                return None
            raise FileError("exists already", file=target, advice="choose another name, or overwrite it with -f")
        try:
            return self._proven(task, digests)
        except HpcmError as error:
            if self.rules.force:
                digests.pop("output_sha256", None)
                return None
            reason = f"exists already, and is not known to be finished: {error.reason}"
            raise FileError(reason, file=target, advice=OVERWRITE_ADVICE) from error

    def _proven_copy(self, task: Task, digests: dict[str, Any]) -> Outcome | None:
        """The outcome of an input that was copied instead of encoded, where the copy is there, and input and settings are the same."""
        row = task.row or {}
        copy = row.get("copied")
        same = row.get("status") == COPIED and row.get("sha256") == digests.get("sha256")
        if (
            not same
            or row.get("settings") != self.work.settings()
            or not isinstance(copy, str)
            or not os.path.isfile(copy)
        ):
            return None
        if sha256_of(copy) != row.get("output_sha256"):
            return None
        digests["output_sha256"] = row["output_sha256"]
        return Outcome("finished before", _facts_of(row), written=copy)

    def _proven(self, task: Task, digests: dict[str, Any]) -> Outcome:
        row = task.row
        if row is not None and row.get("status") in (DONE, KEPT):
            if row.get("sha256") != digests.get("sha256"):
                raise HpcmError("its input has changed since")
            if row.get("settings") != self.work.settings():
                raise HpcmError("it was made with other settings or another model")
            digests["output_sha256"] = sha256_of(task.job.target)
            if row.get("output_sha256") != digests["output_sha256"]:
                raise HpcmError("it is not the file that was written then")
            if all(row.get(name) is not None for name in self.work.measures):
                return Outcome("finished before", _facts_of(row))
        elif os.stat(task.job.target).st_mtime_ns < os.stat(task.job.source).st_mtime_ns:
            raise HpcmError("it is older than its input")
        return self.work.inspect(task.job)


def _keep_time(source: str, written: str) -> None:
    if _is_file(written) and os.path.isfile(source):
        try:
            found = os.stat(source)
            os.utime(written, ns=(found.st_atime_ns, found.st_mtime_ns))
        except OSError as error:
            raise file_error(written, error) from error


def failed(job: Job, error: HpcmError, seconds: float, digests: Mapping[str, Any] | None = None) -> Result:
    """The result of a job that did not succeed."""
    error = error.in_file(shown(job.source, "stdin"))
    facts = {**(digests or {}), "error": str(error), "exit_status": error.exit_status}
    return Result(job, seconds, error=error, row=row_of(job, FAILED, seconds, facts))


_COMMON = ("sha256", "output_sha256", "bytes", "bpp", "psnr")
_ABOUT_THE_RUN = ("path", "output", "status", "seconds", "error", "exit_status", "settings", "sha256", "output_sha256")


def row_of(job: Job, status: str, seconds: float, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's row: every row has the common fields, null where nothing is known. An infinite PSNR is "infinite", JSON has no other."""
    row = {"path": job.source, "output": job.target, "status": status, **dict.fromkeys(_COMMON), "error": None, **facts}
    row["seconds"] = round(seconds, 4)
    return {
        name: "infinite" if isinstance(value, float) and math.isinf(value) else value for name, value in row.items()
    }


def _facts_of(row: Mapping[str, Any] | None) -> dict[str, Any]:
    """The facts about the picture in a row, as its outcome had them."""
    facts = {name: value for name, value in (row or {}).items() if name not in _ABOUT_THE_RUN and value is not None}
    return {name: math.inf if value == "infinite" else value for name, value in facts.items()}


def sha256_of(path: str) -> str:
    """SHA-256 of a file, hexadecimal. Raises FileError."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
    except OSError as error:
        raise file_error(path, error) from error
    return digest.hexdigest()


def _is_file(path: str) -> bool:
    """Whether there is a file whose content would be overwritten; False for directories and devices."""
    return path != STDIO and (os.path.isfile(path) or os.path.islink(path))


def _make_folder(job: Job) -> None:
    """Make the output's folder; raises before the work begins if the folder cannot be written."""
    if job.target == STDIO:
        return
    folder = os.path.dirname(job.target) or "."
    try:
        if job.creates_folders:
            os.makedirs(folder, exist_ok=True)
        os.stat(folder)
    except OSError as error:
        raise file_error(folder, error) from error
