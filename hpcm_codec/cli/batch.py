"""Several pictures in one call: which file goes where, progress, a line per file, and going on after a failure.

A command describes its inputs and outputs to `plan`, which finds every contradiction before anything is done, and then gives
`run` a function that does one job.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import click

from hpcm_codec.cli.main import as_hpcm_error, say, silence_stdout
from hpcm_codec.errors import FileError, HpcmError, UsageError
from hpcm_codec.files import file_error, write_atomically

STDIO = "-"


@dataclass(frozen=True)
class Job:
    """One input and its output; either may be "-". creates_folders: the output's directory is ours to make."""

    source: str
    target: str
    creates_folders: bool = False


@dataclass
class Outcome:
    """What became of a job. summary: the human line without the names; facts: the fields of the JSON line."""

    summary: str
    facts: dict[str, Any]
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class Reporting:
    """How much is said: json puts a line per file on stdout, quiet leaves only errors."""

    json: bool = False
    quiet: bool = False


class BatchStopped(Exception):
    """An error that is not one job's but everybody's."""

    def __init__(self, error: HpcmError) -> None:
        super().__init__(str(error))
        self.error = error


# ------------------------------------------------------------------------------------------------------------- the plan


def plan(
    inputs: Sequence[str], output: str | None, extension: str, wanted: Callable[[str], bool], what: str
) -> list[Job]:
    """The jobs that inputs (files, directories, "-") and an output (file, directory, "-", None: beside the input) ask for.

    extension: of output names made from input names. wanted: whether a file name found in a directory is meant.
    what:      what is looked for in directories, for the error when there is none.
    Raises UsageError where they contradict each other, two jobs have one output, or an output is an input; FileError for a directory
    that holds nothing wanted.
    """
    if STDIO in inputs:
        if len(inputs) > 1:
            raise UsageError("- (stdin) cannot be one of several inputs")
        if output is not None and _names_directory(output):
            raise UsageError("a picture from stdin has no name of its own", advice="name the output file with -o")
        return [Job(STDIO, output or STDIO)]
    several = len(inputs) > 1 or os.path.isdir(inputs[0])
    if several and output == STDIO:
        raise UsageError("several pictures cannot all go to stdout", advice="use -o DIR/")
    if several and output is not None and os.path.exists(output) and not os.path.isdir(output):
        raise UsageError(f"several pictures cannot all become {output}", advice="use -o DIR/")
    into = output if output is not None and (several or _names_directory(output)) else None
    jobs = []
    for given in inputs:
        for source, relative in _files_of(given, wanted, what):
            if into is not None:
                target = os.path.join(into, _renamed(relative, extension))
            else:
                target = output if output is not None else _renamed(source, extension)
            jobs.append(Job(source, target, creates_folders=into is not None))
    _refuse_collisions(jobs)
    return jobs


def _names_directory(path: str) -> bool:
    return path.endswith(("/", os.sep)) or os.path.isdir(path)


def _renamed(path: str, extension: str) -> str:
    return os.path.splitext(path)[0] + extension


def _files_of(given: str, wanted: Callable[[str], bool], what: str) -> Iterator[tuple[str, str]]:
    """(path, path relative to what was given) of a file, or of every wanted file below a directory, hidden ones left out."""
    if not os.path.isdir(given):
        yield given, os.path.basename(given)
        return
    found = False
    for folder, subfolders, names in os.walk(given, onerror=_raise_file_error):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and wanted(name):
                found = True
                path = os.path.join(folder, name)
                yield path, os.path.relpath(path, given)
    if not found:
        raise FileError(f"no {what} in this directory", file=given, advice="check the path")


def _raise_file_error(error: OSError) -> None:
    raise file_error(error.filename, error) from error


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    sources = {os.path.realpath(job.source): job.source for job in jobs}
    targets: dict[str, str] = {}
    for job in jobs:
        if job.target == STDIO:
            continue
        key = os.path.realpath(job.target)
        if key in sources:
            raise UsageError(
                f"{job.target} is an input, and would be overwritten", advice="name another output with -o"
            )
        if key in targets:
            raise UsageError(
                f"{targets[key]} and {job.source} would both become {job.target}", advice="rename one of them"
            )
        targets[key] = job.source


# -------------------------------------------------------------------------------------------------------------- the work


def run(jobs: Sequence[Job], work: Callable[[Job], Outcome], reporting: Reporting, force: bool) -> int:
    """Do every job, going on after failures; returns the exit status, that of the first failure.

    work:  does one job; a HpcmError is that job's failure, a BatchStopped ends the batch with the error inside it.
    force: outputs may exist.
    """
    failures: list[tuple[Job, HpcmError]] = []
    with _progress(len(jobs), reporting) as advance:
        for job in jobs:
            started = time.perf_counter()
            try:
                _prepare(job, force)
                outcome = work(job)
                _tell(job, outcome, time.perf_counter() - started, reporting)
            except BatchStopped as stopped:
                raise stopped.error from stopped
            except Exception as error:
                if isinstance(error, BrokenPipeError) or (failure := as_hpcm_error(error)) is None:
                    raise
                failure = failure.in_file(shown(job.source, "stdin"))
                failures.append((job, failure))
                _tell_failure(job, failure, reporting)
            advance()
    if failures and len(jobs) > 1:
        say(f"hpcm: {len(failures)} of {len(jobs)} failed: {', '.join(job.source for job, _ in failures)}")
    return failures[0][1].exit_status if failures else 0


@contextmanager
def for_all_jobs() -> Iterator[None]:
    """What fails in here (loading the model) would fail for every job: it ends the batch."""
    try:
        yield
    except HpcmError as error:
        raise BatchStopped(error) from error


def _prepare(job: Job, force: bool) -> None:
    """Find out that the output cannot be written before the work is done, not after."""
    if job.target == STDIO:
        if sys.stdout.isatty():
            raise UsageError("a terminal is no place for binary data", advice="name the output file with -o")
        return
    folder = os.path.dirname(job.target) or "."
    try:
        if job.creates_folders:
            os.makedirs(folder, exist_ok=True)
        os.stat(folder)
    except OSError as error:
        raise file_error(folder, error) from error
    if not force and os.path.lexists(job.target) and (os.path.isfile(job.target) or os.path.islink(job.target)):
        raise FileError("exists already", file=job.target, advice="choose another name, or overwrite it with -f")


def _tell(job: Job, outcome: Outcome, seconds: float, reporting: Reporting) -> None:
    if reporting.json:
        notices = {"notices": list(outcome.notices)} if outcome.notices else {}
        facts = {"input": job.source, "output": job.target, **outcome.facts, "seconds": round(seconds, 4), **notices}
        click.echo(json.dumps(facts))
    elif not reporting.quiet:
        for notice in outcome.notices:
            say(f"hpcm: {shown(job.source, 'stdin')}: {notice}")
        names = f"{shown(job.source, 'stdin')} → {shown(job.target, 'stdout')}"
        say(f"{names}: {outcome.summary}, {seconds:.2f} s")


def _tell_failure(job: Job, failure: HpcmError, reporting: Reporting) -> None:
    say(f"hpcm: {failure}")
    if reporting.json:
        told = {"input": job.source, "output": job.target, "error": str(failure), "status": failure.exit_status}
        click.echo(json.dumps(told))


@contextmanager
def _progress(count: int, reporting: Reporting) -> Iterator[Callable[[], object]]:
    """A progress bar on stderr while several jobs run and somebody watches; gives the function that moves it."""
    if count < 2 or reporting.quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # lines on stderr appear above the bar; stdout is left alone, it may be a pipe
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("pictures", total=count)
        yield lambda: progress.advance(task)


# ------------------------------------------------------------------------------------------------------- bytes in and out


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


def write_output(job: Job, data: bytes, force: bool) -> None:
    """The bytes as the job's output: whole or not at all, unless it is stdout."""
    if job.target != STDIO:
        write_atomically(job.target, data, overwrite=force)
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
