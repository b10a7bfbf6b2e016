"""Several pictures in one call, on the terminal: options, progress, a line per file, and a list of failures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from hpcm_codec.batch.jobs import Job, parse_shard
from hpcm_codec.batch.streams import STDIO, refuse_closed, shown
from hpcm_codec.cli.main import say
from hpcm_codec.errors import HpcmError, UsageError, printable
from hpcm_codec.system.temporaries import remove_left_behind

if TYPE_CHECKING:
    from hpcm_codec.batch.engines import Engine
    from hpcm_codec.batch.tasks import Result, Work

Command = Callable[..., Any]


def many_files(command: Command) -> Command:
    """--jobs, --resume, --shard, --manifest, --keep-time and --follow-links."""
    for option in (
        click.option("--follow-links", is_flag=True, help="Look into folders behind symbolic links too, once each."),
        click.option("--keep-time", is_flag=True, help="Outputs get the time of the last change of their inputs."),
        click.option(
            "--manifest",
            metavar="FILE.jsonl",
            help="A line of JSON per input: SHA-256, bytes, bpp, seconds, status … With --resume it is continued.",
        ),
        click.option("--shard", metavar="I/N", help="Only part I of N, chosen by the inputs' names: for N machines."),
        click.option("--resume", is_flag=True, help="Keep outputs that are finished, and do the rest."),
        click.option("--jobs", type=click.IntRange(1, 256), metavar="N", help="Work in N processes.  [default: 1]"),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class Reporting:
    """json: print a line of JSON per file on stdout; quiet: print errors only."""

    json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Batch:
    """The values of the options of `many_files` and `options.running`. memory: bytes for all processes together, None: the default."""

    jobs: int | None = None
    resume: bool = False
    shard: str | None = None
    manifest: str | None = None
    force: bool = False
    threads: int | None = None
    engine: str = "processes"
    keep_time: bool = False

    def share_of(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of this machine. Raises UsageError for options that do not fit them."""
        pipes = any(STDIO in (job.source, job.target) for job in jobs)
        for option, given in (("--resume", self.resume), ("--manifest", self.manifest is not None)):
            if given and pipes:
                raise UsageError(f"{option} is for files, not for stdin and stdout")
        if self.engine == "ray" and pipes:
            raise UsageError("--engine ray is for files, not for stdin and stdout")
        if self.manifest is not None and (self.manifest == STDIO or os.path.isdir(self.manifest)):
            raise UsageError(f"--manifest takes a file, not {self.manifest}", advice="for stdout there is --json")
        if self.manifest is not None:
            path = os.path.realpath(self.manifest)
            if any(path in (os.path.realpath(job.source), os.path.realpath(job.target)) for job in jobs):
                raise UsageError(f"{printable(self.manifest)} is an input or an output", advice="name another manifest")
        shard = None if self.shard is None else parse_shard(self.shard)
        return [job for job in jobs if shard is None or shard.takes(job)]

    def memory_of_each(self, memory: int | None) -> int | None:
        """The part of a limit in bytes (None: the default one) that each process may use."""
        from hpcm_codec.tiles.memory import SMALLEST_DEFAULT, default_limit

        if self.engine == "ray" or self.jobs in (None, 1):
            return memory  # workers of a cluster have machines of their own
        assert self.jobs is not None
        return memory // self.jobs if memory is not None else max(SMALLEST_DEFAULT, default_limit() // self.jobs)

    def engine_for(self, jobs: Sequence[Job]) -> Engine:
        """The engine for so many jobs. Raises UnsupportedError for an engine that is not installed."""
        from hpcm_codec.batch.engines import InProcesses, in_this_process

        if self.engine == "ray":
            from hpcm_codec.batch.ray_engine import OnRay

            return OnRay(self.jobs, self.threads)
        processes = min(self.jobs or 1, len(jobs))
        return in_this_process if processes < 2 else InProcesses(processes, self.threads)


def run(jobs: Sequence[Job], work: Work, batch: Batch, reporting: Reporting) -> int:
    """Do this machine's share of the jobs and continue after failures; returns the exit status of the first input that failed."""
    from hpcm_codec.batch.manifest import Manifest
    from hpcm_codec.batch.stopping import BatchStopped
    from hpcm_codec.batch.tasks import Performer, Rules, task_of

    if any(job.target == STDIO for job in jobs):
        refuse_closed("stdout")
        if sys.stdout.isatty():
            raise UsageError("a terminal is no place for binary data", advice="name the output file with -o")
    engine = batch.engine_for(jobs)
    perform = Performer(
        work, Rules(batch.force, batch.resume, digests=batch.manifest is not None, keep_time=batch.keep_time)
    )
    failures: list[tuple[int, Job, HpcmError]] = []
    places = {job: place for place, job in enumerate(jobs)}
    kept = 0
    recording = (
        nullcontext(None)
        if batch.manifest is None
        else Manifest(batch.manifest, resume=batch.resume, force=batch.force)
    )
    with recording as manifest:
        if batch.resume:
            _clear(jobs, batch.manifest, reporting)
        tasks = (task_of(job, manifest.find(job.source, job.target) if manifest else None) for job in jobs)
        with _progress(len(jobs), reporting) as advance, closing(engine(perform, tasks)) as results:
            try:
                for result in results:
                    if manifest is not None:
                        manifest.add(result)
                    if result.error is not None:
                        failures.append((places[result.job], result.job, result.error))
                        _report_failure(result.job, result.error, reporting)
                    else:
                        kept += result.kept
                        _report(result, reporting)
                    advance()
            except BatchStopped as stopped:
                raise stopped.error from stopped
    if kept and not reporting.quiet:
        say(f"hpcm: {kept} of {len(jobs)} were finished before")
    if not jobs and not reporting.quiet:
        say("hpcm: nothing to do in this shard")
    if failures and len(jobs) > 1:
        failures.sort(key=lambda failure: failure[0])
        names = ", ".join(printable(job.source) for _, job, _ in failures)
        say(f"hpcm: {len(failures)} of {len(jobs)} failed: {names}")
    return failures[0][2].exit_status if failures else 0


def _clear(jobs: Sequence[Job], manifest: str | None, reporting: Reporting) -> None:
    """Remove the temporary files that an interrupted run has left where this one writes."""
    folders = {os.path.dirname(job.target) or "." for job in jobs}
    if manifest is not None:
        folders.add(os.path.dirname(manifest) or ".")
    removed = sum(remove_left_behind(folder) for folder in folders)
    if removed and not reporting.quiet:
        say(f"hpcm: removed {removed} temporary file{'s' * (removed > 1)} of a run that was interrupted")


def _report(result: Result, reporting: Reporting) -> None:
    job, outcome = result.job, result.outcome
    assert outcome is not None
    if reporting.json:
        facts = {"input": job.source, "output": job.target, **outcome.facts, "seconds": round(result.seconds, 4)}
        if result.kept:
            facts["kept"] = True
        if outcome.notices:
            facts["notices"] = list(outcome.notices)
        click.echo(json.dumps(facts))
    elif not reporting.quiet and not result.kept:
        source = printable(shown(job.source, "stdin"))
        for notice in outcome.notices:
            say(f"hpcm: {source}: {notice}")
        say(f"{source} → {printable(shown(job.target, 'stdout'))}: {outcome.summary}, {result.seconds:.2f} s")


def _report_failure(job: Job, failure: HpcmError, reporting: Reporting) -> None:
    say(f"hpcm: {failure}")
    if reporting.json:
        line = {"input": job.source, "output": job.target, "error": str(failure), "status": failure.exit_status}
        click.echo(json.dumps(line))


@contextmanager
def _progress(count: int, reporting: Reporting) -> Iterator[Callable[[], object]]:
    """A progress bar on stderr while several jobs run on a terminal; gives the function that advances it."""
    if count < 2 or reporting.quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # lines on stderr appear above the bar; stdout is not redirected: it may be a pipe
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("pictures", total=count)
        yield lambda: progress.advance(task)
