"""`hpcm bench`: what the command takes and refuses, and that its figures arrive in tables and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hpcm_codec.benchmark.stages import STAGES
from hpcm_codec.cli.bench import command, parse_size
from hpcm_codec.errors import FileError, UsageError
from hpcm_codec.evaluation import machine

CEILINGS = {"float32_operations": 2e11, "integer_operations": 4e11, "triad_bytes": 2e10, "copy_bytes": 2e10}


@pytest.fixture
def ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings that are there at once: measuring them is tested elsewhere."""
    from hpcm_codec.benchmark import ceilings

    monkeypatch.setattr(ceilings, "measure_ceilings", lambda device: ceilings.Ceilings(**CEILINGS))


def test_sizes_are_width_then_height() -> None:
    assert parse_size("768x512") == (768, 512)
    assert parse_size("1×2") == (1, 2)
    for bad in ("", "768", "768x", "0x5", "5x-1", "99999x1", "1x1x1"):
        with pytest.raises(UsageError):
            parse_size(bad)


@pytest.mark.usefixtures("ceilings")
def test_the_command_measures_both_directions_and_names_the_machine(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    arguments = ["--size", "128x64", "--runs", "2", "--device", "cpu", "--threads", "1", "--json", str(output)]
    result = CliRunner().invoke(command, arguments)
    assert result.exception is None, result.exception
    results = json.loads(output.read_text())
    assert results["kind"] == "stages" and results["ceilings"] == CEILINGS
    [figures] = results["measurements"]
    assert (figures["width"], figures["height"], figures["profile"]) == (128, 64, "exact")
    for action in ("encode", "decode"):
        measured = figures[action]
        assert min(measured["all_seconds"]) <= measured["seconds"] <= max(measured["all_seconds"])
        assert sorted(measured["stages"]) == sorted(STAGES)
        # torch alone is above the lower bound; the upper is what we promise for a picture 48 times as large
        assert 5e7 < measured["peak_memory_bytes"] < 1.5e9
    assert results["machine"]["processor"] == machine.processor_name()
    assert machine.processor_name() in result.output
    assert "| s3 step 6 " in result.output
    assert isinstance(CliRunner().invoke(command, arguments).exception, FileError)  # not overwritten


def test_ceilings_are_above_nothing_and_measured_in_this_process() -> None:
    from hpcm_codec.benchmark import ceilings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "EDGE", {"cpu": 128})
        patch.setattr(ceilings, "NUMBERS", {"cpu": 2**16})
        patch.setattr(ceilings, "TOKENS", 128)
        patch.setattr(ceilings, "LEAST_SECONDS", 0.0)
        found = ceilings.measure_ceilings("cpu").to_json()
    assert all(value is None or value > 1e6 for value in found.values())
    assert found["float32_operations"] and found["triad_bytes"]


def test_of_two_measurements_each_ceiling_is_the_higher_one() -> None:
    from hpcm_codec.benchmark.ceilings import Ceilings

    slow_at_first, slow_later = Ceilings(1e11, None, 3e10, 2e10), Ceilings(2e11, 4e11, 1e10, 3e10)
    assert slow_at_first.highest(slow_later) == slow_later.highest(slow_at_first) == Ceilings(2e11, 4e11, 3e10, 3e10)
    assert slow_at_first.highest(slow_at_first).integer_operations is None


def test_growth_and_cells_have_tables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcm_codec.benchmark import cells, growth

    def same_for_all(model: str, sizes: Any, settings: Any) -> dict[str, Any]:
        way = {"seconds": 1.5, "peak_memory_bytes": 4e8, "device_memory_bytes": None}
        points = [{"width": w, "height": h, "bytes": 9, "encode": way, "decode": way} for w, h in sizes]
        fitted = {"seconds": 0.98, "peak_memory_bytes": 0.1}
        about = {"model": model, "identity": "00", "profile": "exact", "quality": settings.quality}
        return about | {"points": points, "exponents": {"encode": fitted, "decode": fitted}}

    monkeypatch.setattr(growth, "growth", same_for_all)
    result = CliRunner().invoke(command, ["--growth"])
    assert result.exception is None, result.exception
    assert "| 7680×4320 |" in result.output and "0.98" in result.output
    cell = {"parameters": 10**6, "operations": 10**9, "memory_bytes": 10**7, "seconds": 0.05, "rounds": 3}
    narrow = {"title": "narrow", "preset": None} | cell | {"operations": 5 * 10**8}

    def compared(width: int, height: int, device: str) -> dict[str, Any]:
        both = [{"title": "baseline", "preset": "hpcm-base"} | cell, narrow]
        return {"width": width, "height": height, "before_the_cell": cell, "cells": both}

    monkeypatch.setattr(cells, "compare_cells", compared)
    result = CliRunner().invoke(command, ["--cell", "--size", "768x512"])
    assert result.exception is None, result.exception
    assert "−50%" in result.output and "baseline (`hpcm-base`)" in result.output
    assert "**narrow**" not in result.output  # cheaper in operations only


def test_what_makes_no_sense_is_refused_before_any_work() -> None:
    for arguments in (
        ["--growth", "--size", "64x64"],
        ["--growth", "--model", "a", "--model", "b"],
        ["--device", "tpu"],
    ):
        assert isinstance(CliRunner().invoke(command, arguments).exception, UsageError)
