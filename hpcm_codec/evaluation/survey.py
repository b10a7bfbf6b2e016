"""A run of `hpcm eval`: several codecs on one data set, from the list of measurements to the results object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpcm_codec.errors import UsageError
from hpcm_codec.evaluation import bjontegaard
from hpcm_codec.evaluation.bjontegaard import Comparison, Curve
from hpcm_codec.evaluation.campaign import Crew, OnRow, Trial
from hpcm_codec.evaluation.codecs import HPCM
from hpcm_codec.evaluation.datasets import DataSet
from hpcm_codec.evaluation.runner import Row, summarise
from hpcm_codec.evaluation.subjects import Subject
from hpcm_codec.evaluation.worklog import WorkLog


@dataclass(frozen=True)
class Survey:
    """What is measured.

    qualities: of each subject. digests: SHA-256 of each picture's file.
    matched:   the others code to the file sizes of the first, picture by picture; their qualities are ignored.
    verify:    check our own files against the encoder's reconstruction.
    perceptual: what else is measured (see `perceptual`).
    """

    subjects: Sequence[Subject]
    qualities: Sequence[Sequence[float]]
    pictures: DataSet
    digests: dict[str, str]
    matched: bool
    verify: bool
    perceptual: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many measurements there are."""
        points = sum(len(self._qualities_of(place)) for place in range(len(self.subjects)))
        return points * len(self.pictures.names)

    def measure(self, crew: Crew, log: WorkLog, on_row: OnRow | None = None) -> list[list[Row]]:
        """The rows of every subject, by picture and quality. Raises what `Crew.measure` raises."""
        first = self._by_picture(crew.measure(self._trials(0, {}), log, on_row))
        sizes = {(row.image, row.quality): row.bytes for row in first} if self.matched else {}
        # the others together, so that all processes are busy until the end
        trials = [self._trials(place, sizes) for place in range(1, len(self.subjects))]
        rows = iter(crew.measure([trial for part in trials for trial in part], log, on_row))
        return [first, *(self._by_picture([next(rows) for _ in part]) for part in trials)]

    def _by_picture(self, rows: list[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: (self.pictures.names.index(row.image), row.quality))

    def results(self, all_rows: Sequence[Sequence[Row]], memory: bool, jobs: int) -> dict[str, Any]:
        """The first subject's results object, with those of the others as its "other_codecs"."""
        all_results = []
        for place, (subject, rows) in enumerate(zip(self.subjects, all_rows, strict=True)):
            pictures = f"{self.pictures.name}, {len(self.pictures.names)} pictures"
            description = f"{subject.description}; {pictures}, whole files counted"
            if self.matched and place > 0:
                description += f"; each picture at the file size of {self.subjects[0].name} or the least above it"
            facts = dict(subject.facts)
            if jobs > 1:
                facts["machine"] = {**facts["machine"], "jobs": jobs}
            dataset = self.pictures.name
            all_results.append(summarise(subject.name, description, rows, memory=memory, dataset=dataset, **facts))
        first, *others = all_results
        first["pictures_sha256"] = self.digests
        if others:
            first["other_codecs"] = others
        return first

    def _qualities_of(self, place: int) -> Sequence[float]:
        return self.qualities[0 if self.matched else place]

    def _trials(self, place: int, sizes: dict[tuple[str, float], int]) -> list[Trial]:
        subject = self.subjects[place]
        pairs = [(name, quality) for name in self.pictures.names for quality in self._qualities_of(place)]
        if subject.by_quality:  # each model is then loaded once
            pairs.sort(key=lambda pair: pair[1])
        return [
            Trial(
                codec=subject.choice,
                about=subject.about,
                path=self.pictures.path(name),
                name=name,
                sha256=self.digests[name],
                quality=quality,
                size=sizes.get((name, quality)),
                verify=self.verify and subject.choice.kind == HPCM,
                perceptual=self.perceptual,
            )
            for name, quality in pairs
        ]


def compare_all(
    results: dict[str, Any], anchors: Sequence[Curve], metric: str, report: Callable[[str], None]
) -> tuple[list[Comparison], UsageError | None]:
    """Deltas of the first codec against the anchors and the other codecs of the run.

    Also returns the last error of an anchor, to be raised at the end: the measurements themselves are
    valid. That another codec's curve cannot be compared is only reported.
    """
    comparisons: list[Comparison] = []
    refusal: UsageError | None = None
    for anchor in anchors:
        try:
            comparisons.append(bjontegaard.compare(anchor, Curve.from_results(results, metric)))
        except UsageError as error:
            refusal = error
    for other in results.get("other_codecs", ()):
        if len(results["qualities"]) < bjontegaard.FEWEST_POINTS:
            continue  # no curve was asked for
        try:
            curve = replace(Curve.from_results(other, metric), name=f"{other['name']} (this run)")
            comparisons.append(bjontegaard.compare(curve, Curve.from_results(results, metric)))
        except UsageError as error:
            report(f"no BD-rate against {other['name']}: {error}")
    return comparisons, refusal
