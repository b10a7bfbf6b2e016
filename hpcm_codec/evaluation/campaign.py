"""Many measurements, in this process or in several, resuming an interrupted run.

A `Trial` is one picture at one quality with one codec. Its row does not depend on the process it is measured in, nor on
what was measured before, so any number of processes gives the same figures; only times are longer when several run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from hpcm_codec.errors import HpcmError
from hpcm_codec.evaluation.codecs import CodecChoice, PictureCodec, QualityCodec, encode_to_size
from hpcm_codec.evaluation.runner import MismatchError, Row, measure
from hpcm_codec.evaluation.worklog import WorkLog
from hpcm_codec.images import Picture, read_picture
from hpcm_codec.system.workers import Workers

OnRow = Callable[[Row], None]


@dataclass(frozen=True)
class Trial:
    """One measurement.

    codec:   what to measure; about: its settings, versions and weights in words, part of the measurement's identity.
    name:    of the picture; sha256: of the file `path`.
    quality: of the codec; or, where `size` is not None, only the row's label: the codec then takes the quality that
             gives a file of about `size` bytes.
    verify:  check that the file decodes to the encoder's own reconstruction.
    perceptual: what else is measured (see `perceptual`).
    """

    codec: CodecChoice
    about: str
    path: Path
    name: str
    sha256: str
    quality: float
    size: int | None = None
    verify: bool = False
    perceptual: tuple[str, ...] = ()

    def key(self) -> dict[str, str | float | bool | None]:
        """All that the figures depend on. Without perceptual measures it equals that of earlier versions, so that their logs stay valid."""
        return {
            **({"perceptual": ",".join(self.perceptual)} if self.perceptual else {}),
            "codec": self.codec.kind,
            "about": self.about,
            "sha256": self.sha256,
            "quality": float(self.quality),
            "size": self.size,
            "verify": self.verify,
        }


class Crew:
    """The processes that measure: this one alone, or `jobs` others that are started when first needed.

    threads: of torch in each of the others, so that their sums are in the same order as here.
    """

    def __init__(self, jobs: int = 1, threads: int | None = None) -> None:
        self.jobs = jobs
        self._threads = threads
        self._workers: Workers[Trial, Row] | None = None

    def measure(self, trials: Sequence[Trial], log: WorkLog, on_row: OnRow | None = None) -> list[Row]:
        """The trials' rows, in their order; those in the log are taken from there, the others added to it.

        on_row: called with each row as it comes, in any order.
        Raises what the first failing measurement raises, WorkerDiedError if it ends its process; rows made before are in the log.
        """
        rows: dict[int, Row] = {}

        def keep(number: int, row: Row, known: bool = False) -> None:
            if not known:
                log.add(trials[number].key(), row)
            rows[number] = row
            if on_row is not None:
                on_row(row)

        for number, trial in enumerate(trials):
            if (row := log.find(trial.key(), trial.name)) is not None:
                keep(number, row, known=True)
        missing = [number for number in range(len(trials)) if number not in rows]
        for number, row in self._made(trials, missing):
            keep(number, row)
        return [rows[number] for number in range(len(trials))]

    def close(self) -> None:
        """End the other processes at once."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _made(self, trials: Sequence[Trial], missing: Sequence[int]) -> Iterator[tuple[int, Row]]:
        if self.jobs == 1 or len(missing) < 2:
            for number in missing:
                yield number, perform(trials[number])
            return
        if self._workers is None:
            self._workers = Workers(perform, self.jobs, self._threads)
        for place, future in self._workers.results(trials[number] for number in missing):
            yield missing[place], future.result()


@contextmanager
def crew(jobs: int = 1, threads: int | None = None) -> Iterator[Crew]:
    """A Crew whose processes are ended at the end of the block, also after an error."""
    team = Crew(jobs, threads)
    try:
        yield team
    finally:
        team.close()


def perform(trial: Trial) -> Row:
    """Make one measurement, in this process. Raises FileError for a picture that cannot be read; see `measure`."""
    picture = _picture(trial.path)
    try:
        whole = _codec(trial.codec)
        quality = trial.quality if trial.size is None else encode_to_size(whole, picture, trial.size).quality
        codec = whole.at(quality)
        _warm_up(codec, (trial.codec, quality if codec is not whole else None), picture, quality)
        row = measure(codec, picture, quality, trial.name, trial.verify, trial.perceptual)
        return row if trial.size is None else replace(row, quality=trial.quality, setting=quality)
    except MismatchError:
        raise
    except HpcmError as error:
        raise error.in_file(trial.path) from error.__cause__


@lru_cache(maxsize=1)
def _picture(path: Path) -> Picture:
    return Picture(read_picture(path).pixels)


@cache
def _codec(choice: CodecChoice) -> QualityCodec:
    return choice.load()


_warm: set[tuple[CodecChoice, float | None]] = set()


def _warm_up(codec: PictureCodec, name: tuple[CodecChoice, float | None], picture: Picture, quality: float) -> None:
    """Code a picture once beforehand, so that a process's first times are comparable with its later ones.

    name: of the codec, and the quality where each has a model of its own.
    """
    if name not in _warm:
        codec.decode(codec.encode(picture, quality))
        _warm.add(name)
