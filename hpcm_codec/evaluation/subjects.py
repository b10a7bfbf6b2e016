"""The codecs of one run: those that are installed, their names, and their description in results files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcm_codec.constants import HIGHEST_QUALITY, LOWEST_QUALITY
from hpcm_codec.errors import UsageError
from hpcm_codec.evaluation.codecs import (
    HPCM,
    PILLOW_FORMATS,
    CodecChoice,
    MissingCodecError,
    PillowCodec,
    QualityCodec,
)
from hpcm_codec.evaluation.machine import describe_machine
from hpcm_codec.version import __version__

KINDS = (HPCM, *PILLOW_FORMATS)


@dataclass(frozen=True)
class Subject:
    """A codec that is measured.

    name:        in tables and curves; description: settings, versions and weights in one line.
    codec:       loaded in this process.
    by_quality:  each quality has a model of its own, of which one at a time is loaded.
    facts:       further entries of its results: "machine" and, for ours, "checkpoint".
    """

    choice: CodecChoice
    name: str
    description: str
    codec: QualityCodec
    facts: dict[str, Any] = field(default_factory=dict)
    by_quality: bool = False

    @property
    def about(self) -> str:
        """Everything that a measurement's figures depend on besides picture and quality."""
        machine = self.facts.get("machine", {})
        running = f", {machine['device']}, {machine['threads']} threads" if "threads" in machine else ""
        return f"{self.description}, hpcm-codec {__version__}{running}"


def parse_kinds(texts: Sequence[str]) -> list[str]:
    """Codecs by name, with commas between or several times, each kept once; raises UsageError for an unknown one.

    >>> parse_kinds(["hpcm,jpeg", "webp", "jpeg"])
    ['hpcm', 'jpeg', 'webp']
    """
    kinds = list(dict.fromkeys(part.strip() for text in texts for part in text.split(",")))
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"no codec is called {kind!r}", advice=f"use one or more of {','.join(KINDS)}")
    return kinds


def find_subjects(
    kinds: Sequence[str],
    model: str | None = None,
    device: str = "auto",
    profile: str = "auto",
    report: Callable[[str], None] | None = None,
) -> list[Subject]:
    """The codecs that are installed, in the order asked for; `report` is called with a line for each that is not.

    model, device, profile: for "hpcm".
    Raises MissingCodecError when none is left, or what loading a model raises.
    """
    found, missing = [], []
    for kind in kinds:
        try:
            found.append(_hpcm(model, device, profile) if kind == HPCM else _ordinary(kind))
        except MissingCodecError as error:
            missing.append(error)
            if report is not None and len(kinds) > 1:
                report(f"{kind} is left out: {error}")
    if not found and missing:
        raise missing[0]
    return found


def _ordinary(kind: str) -> Subject:
    codec = PillowCodec(kind)
    return Subject(CodecChoice(kind), codec.format.title, codec.description, codec, {"machine": describe_machine()})


def _hpcm(model: str | None, device: str, profile: str) -> Subject:
    from hpcm_codec.codec import load_codec
    from hpcm_codec.constants import DEFAULT_MODEL

    model = model or DEFAULT_MODEL
    codec = load_codec(model, device, profile)
    name = Path(model).stem if model.endswith(".safetensors") else model
    identity = codec.identity.hex()
    return Subject(
        CodecChoice(HPCM, model, codec.device, profile),
        f"hpcm {name}",
        f"hpcm-codec, model {name}, checkpoint {identity}, {codec.profile} profile",
        codec,
        {
            "machine": describe_machine(codec.device),
            "checkpoint": {"model": name, "identity": identity, "profile": codec.profile},
        },
        by_quality=codec.identity_at(LOWEST_QUALITY) != codec.identity_at(HIGHEST_QUALITY),
    )
