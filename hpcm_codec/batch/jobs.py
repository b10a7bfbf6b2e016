"""The list of jobs (input and output) for the user's arguments, or one machine's share of it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hpcm_codec.batch.streams import STDIO
from hpcm_codec.errors import FileError, UsageError, printable
from hpcm_codec.system.files import file_error


@dataclass(frozen=True)
class Job:
    """One input and its output; either may be "-".

    creates_folders: whether the output's directory may be created.
    relative:        the input's path below the directory that was given, with / between its parts; for a named file its last part.
    unreadable:      why a folder could not be read; such a folder is a job that fails. Empty for a file.
    """

    source: str
    target: str
    creates_folders: bool = False
    relative: str = ""
    unreadable: str = ""


def plan(
    inputs: Sequence[str],
    output: str | None,
    extension: str,
    wanted: Callable[[str], bool],
    what: str,
    follow_links: bool = False,
    notice: Callable[[str], object] = lambda _: None,
) -> list[Job]:
    """The jobs for inputs (files, directories, "-") and an output (file, directory, "-", None: beside the input).

    extension: of output names made from input names. wanted: returns whether a file in a directory is an input, by its name.
    what:      a word for the files searched in directories, for the error message if there are none.
    follow_links: whether directories behind symbolic links are included, each of them once; else they are reported to `notice`.
    Inputs that differ in their extension only (x.png, x.jpg) keep it in their outputs' names: x.png.hpcm, x.jpg.hpcm; but an output that
    was made of one of them when it was alone stays that one's.
    Raises UsageError where inputs and output contradict each other, two jobs have one output, or an output is an input; FileError for a
    directory without inputs.
    """
    if STDIO in inputs:
        if len(inputs) > 1:
            raise UsageError("- (stdin) cannot be one of several inputs")
        if output is not None and _names_directory(output):
            raise UsageError("a picture from stdin has no name of its own", advice="name the output file with -o")
        return [Job(STDIO, output or STDIO, relative=STDIO)]
    several = len(inputs) > 1 or os.path.isdir(inputs[0])
    if several and output == STDIO:
        raise UsageError("several pictures cannot all go to stdout", advice="use -o DIR/")
    if several and output is not None and os.path.exists(output) and not os.path.isdir(output):
        raise UsageError(f"several pictures cannot all become {printable(output)}", advice="use -o DIR/")
    into = output if output is not None and (several or _names_directory(output)) else None
    jobs = []
    for given in inputs:
        for source, relative, unreadable in _files_of(given, wanted, what, follow_links, notice):
            named_after = source if into is None else os.path.join(into, relative)
            target = output if output is not None and into is None else _renamed(named_after, extension)
            jobs.append(Job(source, target, into is not None, relative.replace(os.sep, "/"), unreadable))
    if several:
        jobs = _with_distinct_names(jobs, extension)
    _refuse_collisions(jobs)
    return jobs


def _with_distinct_names(jobs: Sequence[Job], extension: str) -> list[Job]:
    """The jobs. Those with equal outputs are renamed to keep their inputs' extensions, and so are jobs that have such an output name."""
    targets = [job.target for job in jobs]
    renamed = True
    while renamed:
        renamed = False
        claimants: dict[str, list[int]] = {}
        for place, target in enumerate(targets):
            claimants.setdefault(target, []).append(place)
        for target, places in claimants.items():
            if len(places) == 1:
                continue
            plain = {
                place: _with_own_extension(jobs[place], extension) for place in places if jobs[place].target == target
            }
            owner = _owner(target, {place: (jobs[place].source, name) for place, name in plain.items()})
            for place, name in plain.items():
                if place != owner or len(plain) < len(places):
                    renamed |= targets[place] != name
                    targets[place] = name
    return [replace(job, target=target) for job, target in zip(jobs, targets, strict=True)]


def _with_own_extension(job: Job, extension: str) -> str:
    return job.target.removesuffix(extension) + os.path.splitext(job.source)[1] + extension


def _owner(target: str, claimants: Mapping[int, tuple[str, str]]) -> int | None:
    """Of which input an output was made that is there already: the only one that was there before it and has no other output.

    claimants: the inputs' sources, and the names of the outputs that keep their extensions. None where that is not certain.
    """
    try:
        made = os.stat(target).st_ctime_ns  # not when it was changed last, which --keep-time sets
        earlier = [
            place
            for place, (source, own) in claimants.items()
            if os.stat(source).st_ctime_ns <= made and not os.path.lexists(own)
        ]
    except OSError:
        return None
    return earlier[0] if len(earlier) == 1 else None


def _names_directory(path: str) -> bool:
    return path.endswith(("/", os.sep)) or os.path.isdir(path)


def _renamed(path: str, extension: str) -> str:
    return os.path.splitext(path)[0] + extension


def _files_of(
    given: str, wanted: Callable[[str], bool], what: str, follow_links: bool, notice: Callable[[str], object]
) -> Iterator[tuple[str, str, str]]:
    """(path, path relative to what was given, "") of a file, or of every wanted file below a directory, except hidden ones.

    For a directory that cannot be read, the last item is the reason.
    """
    if not os.path.isdir(given):
        yield given, os.path.basename(given), ""
        return
    found = False
    unreadable: list[OSError] = []
    seen = {_identity(folder) for folder, _, _ in os.walk(given)} if follow_links else set()
    for folder, subfolders, names in os.walk(given, onerror=unreadable.append, followlinks=follow_links):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in list(subfolders):
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                seen.add(_identity(path))
            elif not follow_links:
                notice(f"{printable(path)}: a link to a folder, not looked into; --follow-links does")
            elif _identity(path) in seen:
                subfolders.remove(name)
            else:
                seen.add(_identity(path))
        for name in sorted(names):
            if not name.startswith(".") and wanted(name):
                found = True
                path = os.path.join(folder, name)
                yield path, os.path.relpath(path, given), ""
    for error in unreadable:
        yield error.filename, os.path.relpath(error.filename, given), file_error(error.filename, error).reason
    if not found and not unreadable:
        raise FileError(f"no {what} in this directory", file=given, advice="check the path")


def _identity(path: str) -> tuple[int, int] | str:
    """A key that is equal for all paths of one file or folder, whatever links lead to it."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def refuse_inputs(outputs: Iterable[str], inputs: Iterable[str]) -> None:
    """Raise UsageError for an output that is one of the inputs, under whatever name: it would be overwritten."""
    sources = {_identity(source) for source in inputs}
    for output in outputs:
        if output != STDIO and _identity(output) in sources:
            raise UsageError(
                f"{printable(output)} is an input, and would be overwritten", advice="name another output with -o"
            )


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    refuse_inputs((job.target for job in jobs), (job.source for job in jobs))
    targets: dict[str, str] = {}
    for job in jobs:
        if job.target == STDIO:
            continue
        key = os.path.realpath(job.target)
        if key in targets:
            raise UsageError(
                " ".join(
                    (printable(targets[key]), "and", printable(job.source), "would both become", printable(job.target))
                ),
                advice="rename one of them",
            )
        targets[key] = job.source


# ---------------------------------------------------------------------------------------------------------------- shards


@dataclass(frozen=True)
class Shard:
    """Part `number` (1 .. `count`) of a batch."""

    number: int
    count: int

    def takes(self, job: Job) -> bool:
        """Whether a job belongs to this part. Only the input's relative path decides, so that all machines agree, whatever the
        directory's own path and its other files are."""
        digest = hashlib.sha256(job.relative.encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1


def parse_shard(text: str) -> Shard:
    """The shard of "2/3"; raises UsageError.

    >>> parse_shard("2/3")
    Shard(number=2, count=3)
    """
    match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard takes i/n with i from 1 to n, such as 2/3, not {text!r}")
    return Shard(int(match[1]), int(match[2]))
