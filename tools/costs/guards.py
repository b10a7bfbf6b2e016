"""The counts that the tests hold the codec to (tests/test_costs.py, with the figures in tests/costs.json)."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from costs import callgrind
from costs.launches import launches_of_decoding, launches_of_steps
from hpcm_codec.benchmark.allocations import allocations_of
from hpcm_codec.benchmark.pictures import synthetic_photograph
from hpcm_codec.codec import load_codec
from hpcm_codec.images import Picture
from hpcm_codec.model.complexity import complexity_by_part
from hpcm_codec.model.config import PRESETS
from hpcm_codec.system.threads import on_threads

WIDTH, HEIGHT = 256, 128  # of the picture that is decoded
PROFILES = ("exact", "float")


def kmac_per_pixel() -> dict[str, dict[str, float]]:
    """Thousands of multiply-adds a pixel, for each part of each preset."""
    return {
        name: {part: round(found.kmac_per_pixel, 3) for part, found in complexity_by_part(config).items()}
        for name, config in PRESETS.items()
    }


def launches_per_step() -> dict[str, dict[str, int]]:
    """Launches of every context step in floating point, for each preset (see `counting`)."""
    return {name: launches_of_steps(config) for name, config in PRESETS.items()}


def decoding() -> dict[str, dict[str, Any]]:
    """Launches by stage, and bytes allocated, of decoding a small picture on the processor with the default model, in each profile."""
    found: dict[str, dict[str, Any]] = {}
    picture = Picture(synthetic_photograph(WIDTH, HEIGHT))
    for profile in PROFILES:
        codec = load_codec(device="cpu", profile=profile)
        data = codec.encode(picture)
        with on_threads(1):  # some convolutions take a buffer for each thread
            launches = launches_of_decoding(codec, data)
            allocated = allocations_of(partial(codec.decode, data))
        found[profile] = {"launches": launches, "allocated_bytes": asdict(allocated)}
    return found


def instructions() -> dict[str, Any]:
    """Instructions of the C++ operators and the compiler that made them; raises HpcmError where they cannot be counted."""
    return {"compiler": callgrind.compiler_name(), "operators": callgrind.instructions()}


def all_counts() -> dict[str, Any]:
    """Everything that is guarded."""
    return {
        "kmac_per_pixel": kmac_per_pixel(),
        "launches_per_step": launches_per_step(),
        "decoding": decoding(),
        "instructions": instructions(),
    }
