"""The models that a codec chooses among: one, or a family's, of which one at a time is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

from hpcm_codec.bitstream.quality import quality_code
from hpcm_codec.constants import DEFAULT_QUALITY, LARGEST_QUALITY_CODE
from hpcm_codec.engines.loading import Engines, load_engines
from hpcm_codec.errors import UsageError
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.system.devices import device_of
from hpcm_codec.system.threads import import_torch
from hpcm_codec.weights.families import Family
from hpcm_codec.weights.identity import FRACTION_PREFIX
from hpcm_codec.weights.stored import StoredCheckpoint, read_member


@dataclass(frozen=True)
class Model:
    """A loaded model. codes: the quality codes at which it gives different files, rising; one for a model of a fixed rate."""

    identity: bytes
    config: ModelConfig
    engines: Engines
    codes: tuple[int, ...]


class Models:
    """What a checkpoint or a family holds. Methods may be called by several threads at a time.

    identity:   8 bytes, of the model or of the family. identities: of the models, the lowest rate first.
    codes:      the quality codes (0 .. 200) at which they give different files, rising.
    device:     "cpu", "cuda", "cuda:1" …
    """

    def __init__(self, source: StoredCheckpoint | Family, device: str) -> None:
        """device: also "auto". Raises UsageError for a device that does not exist, UnsupportedError and FileError for damaged weights."""
        self.device = device_of(device)
        self.identity = source.identity
        self._lock = Lock()
        self._loaded: tuple[int, Model] | None = None
        if isinstance(source, Family):
            self._family: Family | None = source
            self.identities = tuple(member.identity for member in source.members)
            self.codes = source.codes
            self._exact = all(_is_exact(source, number) for number in range(len(source.members)))
            if not self._exact or self.device != "cpu":
                # Before there is a model: the import leaves frames of its callers behind, which would hold one for ever.
                import_torch()
        else:
            self._hold(_load(source, self.device))

    @classmethod
    def of(cls, model: Model, device: str) -> Models:
        """Of a model that is loaded already."""
        models = cls.__new__(cls)
        models.device, models.identity = device, model.identity
        models._lock = Lock()
        models._hold(model)
        return models

    def _hold(self, model: Model) -> None:
        self._family, self._loaded = None, (0, model)
        self.identities, self.codes = (model.identity,), model.codes
        self._exact = "exact" in model.engines

    @property
    def several(self) -> bool:
        """Whether they are a family."""
        return self._family is not None

    @property
    def exact(self) -> bool:
        """Whether all have an exact profile."""
        return self._exact

    @property
    def one(self) -> Model:
        """The only model; raises UsageError for a family."""
        if self._family is not None or self._loaded is None:
            raise UsageError("a family has several models", advice="choose one: codec.at(quality)")
        return self._loaded[1]

    def number_at(self, code: int) -> int:
        """Which of `identities` encodes at a quality code."""
        return 0 if self._family is None else self._family.number_at(code)

    def nearest_code(self, code: int) -> int:
        """The one of `codes` that stands for a quality code."""
        if self._family is not None:
            return self.codes[self._family.number_at(code)]
        return code if code in self.codes else self.codes[0]

    def load(self, number: int) -> Model:
        """One of them; of a family, the one that was loaded before is let go. Raises FileError for damaged weights."""
        if self._family is None:
            return self.one
        with self._lock:
            if self._loaded is None or self._loaded[0] != number:
                self._loaded = None  # its memory is free before the next one takes some
                stored = read_member(self._family, number)
                self._loaded = number, _load(stored, self.device, (self.codes[number],))
            return self._loaded[1]


def _load(stored: StoredCheckpoint, device: str, codes: tuple[int, ...] | None = None) -> Model:
    if codes is None:
        fixed = stored.config.rate_levels == 1
        codes = (quality_code(DEFAULT_QUALITY),) if fixed else tuple(range(LARGEST_QUALITY_CODE + 1))
    return Model(stored.identity, stored.config, load_engines(stored, device), codes)


def _is_exact(family: Family, number: int) -> bool:
    return any(name.startswith(FRACTION_PREFIX) for name in family.header(number))
