"""The codec becomes no dearer unnoticed: counts, not times, against tests/costs.json.

The figures are written by `python tools/count_costs.py`, whenever a cost has changed on purpose. Counts below the figures fail too:
they are an improvement to be written down, or a count that has stopped counting.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from hpcm_codec.benchmark.allocations import allocations_of
from hpcm_codec.model.config import PRESETS
from hpcm_codec.ops import build

sys.path.append(str(ROOT / "tools"))
from costs import callgrind, guards

COSTS: dict[str, Any] = json.loads((Path(__file__).parent / "costs.json").read_text())
WORK = 0.01  # relative: shapes decide alone
LAUNCHES = 0.1  # versions of torch take operators apart differently
ALLOCATED = 0.1
INSTRUCTIONS = 0.05


def test_operations_of_every_preset_are_as_written_down() -> None:
    found = guards.kmac_per_pixel()
    assert set(found) == set(COSTS["kmac_per_pixel"]) == set(PRESETS)
    for name, parts in COSTS["kmac_per_pixel"].items():
        assert found[name] == pytest.approx(parts, rel=WORK), name


def test_no_context_step_launches_more_than_is_written_down() -> None:
    found = guards.launches_per_step()
    for name in PRESETS:
        assert found[name] == pytest.approx(COSTS["launches_per_step"][name], rel=LAUNCHES), name


def test_decoding_launches_and_allocates_what_is_written_down() -> None:
    if not build.use_compiled("integer"):
        pytest.skip("the integer operators are not compiled here: plain PyTorch launches more")
    found = guards.decoding()
    for profile, expected in COSTS["decoding"].items():
        assert found[profile]["launches"] == pytest.approx(expected["launches"], rel=LAUNCHES), profile
        assert found[profile]["allocated_bytes"] == pytest.approx(expected["allocated_bytes"], rel=ALLOCATED), profile


def test_the_operators_take_no_more_instructions_than_is_written_down() -> None:
    if (reason := callgrind.missing()) is not None:
        pytest.skip(reason)
    expected = COSTS["instructions"]
    if (compiler := callgrind.compiler_name()) != expected["compiler"]:
        pytest.skip(f"the figures are of {expected['compiler']}, this is {compiler}")
    assert callgrind.instructions() == pytest.approx(expected["operators"], rel=INSTRUCTIONS)


def test_allocations_are_counted_in_all_and_at_most_at_once() -> None:
    import torch

    def work() -> None:
        for _ in range(3):
            torch.zeros(1000, dtype=torch.float64).add_(1)

    found = allocations_of(work)
    assert 3 * 8000 <= found.total < 4 * 8000
    assert 8000 <= found.peak < 2 * 8000
