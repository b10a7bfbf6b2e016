"""The reference curves that ship with the package: other codecs on Kodak, CLIC 2020 and Tecnick, each with its source.

They are facts to compare with, not measurements of this program; anchors/README.md says where they come from. A curve
is named like its file ("jpeg", "vtm91-lalic"), or with its data set before it ("tecnick/lalic").

>>> curve = load_anchor("jpeg", "kodak")
>>> curve.name, len(curve.bpp)
('JPEG', 9)
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from hpcm_codec.errors import UsageError
from hpcm_codec.evaluation.bjontegaard import PSNR, Curve, read_curve, read_results
from hpcm_codec.evaluation.codecs import HPCM, PILLOW_FORMATS

# The data sets that there are curves for; a plain name is looked for in the first one last.
DATA_SETS = ("kodak", "clic2020", "tecnick")
LIST_ADVICE = "see `hpcm eval --list-anchors`"


@dataclass(frozen=True)
class Reference:
    """A shipped curve: data is its whole file, with "name", "description", "source" and "results"."""

    dataset: str
    key: str
    data: dict[str, Any]

    @property
    def full_key(self) -> str:
        """The unique name of this curve."""
        return f"{self.dataset}/{self.key}"

    def curve(self, metric: str = PSNR) -> Curve:
        """The rate-distortion curve; UsageError, with what to do, when this metric was not measured."""
        try:
            return Curve.from_results(self.data, metric)
        except UsageError as error:
            measured = f"measure it in the same run instead: --codec {HPCM},{self.key}"
            advice = measured if self.key in PILLOW_FORMATS else "compare by another --metric"
            raise UsageError(error.reason, advice=advice) from None

    def bpp_range(self) -> tuple[float, float]:
        """Lowest and highest rate, in bits per pixel."""
        return min(self.data["results"]["bpp"]), max(self.data["results"]["bpp"])


def shipped_references() -> Iterator[Reference]:
    """All shipped curves, by data set and name."""
    for dataset in DATA_SETS:
        for file in sorted(_folder(dataset).iterdir(), key=lambda entry: entry.name):
            if file.name.endswith(".json"):
                yield _read(dataset, file)


def find_reference(name: str, dataset: str | None = None) -> Reference:
    """The shipped curve of that name.

    dataset: where a name without a data set is looked for; None or one without curves means Kodak.
    Raises UsageError, with names that look alike, when there is none.
    """
    home, _, key = name.rpartition("/")
    home = home or (dataset if dataset in DATA_SETS else DATA_SETS[0])
    if home not in DATA_SETS:
        raise UsageError(f"no reference curves are of {home!r}", advice=f"there are some of {', '.join(DATA_SETS)}")
    files = {file.name.removesuffix(".json"): file for file in _folder(home).iterdir() if file.name.endswith(".json")}
    if key not in files:
        alike = difflib.get_close_matches(key, files, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(alike)}? " if alike else ""
        raise UsageError(f"no reference curve of {home} is called {key!r}", advice=hint + LIST_ADVICE)
    return _read(home, files[key])


def is_path(anchor: str) -> bool:
    """Whether an anchor is a file rather than a shipped curve's name."""
    return anchor.endswith(".json") or os.path.exists(anchor)


def load_anchor(anchor: str, dataset: str | None = None, metric: str = PSNR) -> Curve:
    """The curve that `--anchor` names: a results file, or a shipped curve.

    Raises FileError when a file cannot be read, UsageError when there is no such curve or it lacks the metric.
    """
    return read_curve(anchor, metric) if is_path(anchor) else find_reference(anchor, dataset).curve(metric)


def anchor_results(anchor: str, dataset: str | None = None) -> dict[str, Any]:
    """The whole results object that `--anchor` names; raises what `load_anchor` raises."""
    return read_results(anchor) if is_path(anchor) else find_reference(anchor, dataset).data


def dataset_of(anchor: str, dataset: str | None = None) -> str | None:
    """The data set of a shipped curve; None for a file, which need not say."""
    return None if is_path(anchor) else find_reference(anchor, dataset).dataset


def _folder(dataset: str) -> Traversable:
    return resources.files("hpcm_codec.evaluation") / "anchors" / dataset


def _read(dataset: str, file: Traversable) -> Reference:
    return Reference(dataset, file.name.removesuffix(".json"), json.loads(file.read_text(encoding="utf-8")))
