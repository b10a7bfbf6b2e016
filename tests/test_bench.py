"""`hpcm bench`: what the command takes and refuses, and that its figures arrive in tables and JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hpcm_codec.benchmark.stages import STAGES
from hpcm_codec.benchmark.whole import PARTS
from hpcm_codec.cli.bench import command, parse_sides
from hpcm_codec.errors import FileError, HpcmError, UnsupportedError, UsageError
from hpcm_codec.evaluation import machine

CEILINGS = {"float32_operations": 2e11, "integer_operations": 4e11, "triad_bytes": 2e10, "copy_bytes": 2e10}


@pytest.fixture
def ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings that are there at once: measuring them is tested elsewhere."""
    from hpcm_codec.benchmark import ceilings

    monkeypatch.setattr(ceilings, "measure_ceilings", lambda device: ceilings.Ceilings(**CEILINGS))


def test_sizes_are_width_then_height() -> None:
    assert parse_sides("768x512") == (768, 512)
    assert parse_sides("1×2") == (1, 2)
    for bad in ("", "768", "768x", "0x5", "5x-1", "99999x1", "1x1x1"):
        with pytest.raises(UsageError):
            parse_sides(bad)


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


def test_a_whole_command_is_measured_part_by_part() -> None:
    result = CliRunner().invoke(command, ["--whole", "--size", "64x64", "--runs", "1", "--threads", "1", "--json", "-"])
    assert result.exception is None, result.exception
    [measured] = json.loads(result.output)["measurements"]
    for action in ("encode", "decode"):
        assert tuple(measured[action]["parts"]) == PARTS
        assert min(measured[action]["parts"].values()) >= 0
        assert sum(measured[action]["parts"].values()) == pytest.approx(measured[action]["whole"])


def test_peers_are_measured_at_about_our_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow stands in for the programs, so that any machine has them."""
    from hpcm_codec.benchmark import peers

    def pillow(source: str, target: str, *save: str) -> list[str]:
        return [
            sys.executable,
            "-c",
            f"from PIL import Image; Image.open({source!r}).save({target!r}, {', '.join(save)})",
        ]

    ours = peers.Peer(
        "jpeg",
        (sys.executable, sys.executable),
        ".jpg",
        lambda a, b, q, n: pillow(a, b, f"quality={max(1, round(q))}"),
        lambda a, b, q, n: pillow(a, b, "'PNG'"),
    )
    monkeypatch.setattr(peers, "PEERS", (ours,))
    arguments = ["--peers", "--size", "96x64", "-q", "80", "--runs", "1", "--threads", "1", "--json", "-"]
    result = CliRunner().invoke(command, arguments)
    assert result.exception is None, result.exception
    first, second = json.loads(result.output)["measurements"][0]["rows"]
    assert (first["name"], second["name"]) == ("hpcm", "jpeg")
    assert abs(first["psnr"] - second["psnr"]) < 1 and min(first["bytes"], second["bytes"]) > 100


def test_what_makes_no_sense_is_refused_before_any_work() -> None:
    for arguments in (
        ["--growth", "--size", "64x64"],
        ["--growth", "--model", "a", "--model", "b"],
        ["--device", "tpu"],
    ):
        assert isinstance(CliRunner().invoke(command, arguments).exception, UsageError)


# ----------------------------------------------------------------------------------------------------------- training


def training_results(runs: list[dict[str, Any]]) -> dict[str, Any]:
    about = {"model": "phase1-lite", "edge": 256, "picture": "a.png", "steps": 40, "warm_up_steps": 10, "threads": 1}
    about |= {"kmac_per_pixel": 104.3, "matrix_products": "AMX", "allocator": None}
    rates = {"1": 10**12, "2": 2 * 10**12}
    machine = {"processor": "Abacus 9", "cores": 2, "python": "3.12.1"}
    found = about | {"bfloat16_operations": rates, "runs": runs}
    return {"kind": "training", "machine": machine, "load_average_before": 3.0, "training": found}


def run_of(version: str, processes: int, crops: int, speeds: list[float]) -> dict[str, Any]:
    commit = "d1d4bf1" if version == "other" else None
    figures = {"crops_per_second": speeds[0], "all_crops_per_second": speeds, "operations_per_second": 25 * 10**10}
    return {"version": version, "processes": processes, "commit": commit, "crops_per_process": crops} | figures


def test_crops_a_second_are_shown_beside_the_matrix_rate_and_the_other_version() -> None:
    from hpcm_codec.benchmark.tables import as_markdown

    runs = [run_of("this", 1, 4, [6.0, 9.0, 3.0]), run_of("other", 1, 2, [2.0, 3.0, 1.5])]
    text = as_markdown(training_results([*runs, run_of("this", 2, 4, [12.0])]))
    one, other, two = (line for line in text.splitlines() if line.startswith(("| this", "| other")))
    assert [cell.strip() for cell in one.split("|")][1:-1] == [
        "this", "1", "4", "666.7 ms", "**6.00**", "3.00–9.00", "1.00 TFLOP/s", "25.0%", "**3.00**",
    ]  # fmt: skip
    assert "other (d1d4bf1)" in other and other.endswith("– |")
    assert "12.5%" in two and two.endswith("– |")
    assert "Abacus 9" in text and "busy (load 3" in text and "the C library's allocator" in text and "AMX" in text


def test_training_is_measured_with_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hpcm_codec.benchmark import training

    asked = []

    def measured(settings: training.TrainingSettings) -> dict[str, Any]:
        asked.append(settings)
        found: dict[str, Any] = training_results([run_of("this", 1, 4, [6.0])])["training"]
        return found

    monkeypatch.setattr(training, "measure_training", measured)
    output = tmp_path / "training.json"
    arguments = ["--training", "--steps", "24", "--crops-per-process", "8", "--against", "x", "--against-crops", "3"]
    result = CliRunner().invoke(command, [*arguments, "--runs", "1", "--json", str(output)])
    assert result.exception is None, result.exception
    assert "| this" in result.output and json.loads(output.read_text())["kind"] == "training"
    assert CliRunner().invoke(command, ["--training"]).exception is None
    expected = training.TrainingSettings("phase1-lite", 8, 24, 1, against=Path("x"), against_crops=3)
    assert asked == [expected, training.TrainingSettings("phase1-lite")]


def test_what_belongs_to_another_kind_is_refused() -> None:
    for arguments, reported in (
        (["--steps", "10"], "--steps is for --training"),
        (["--growth", "--against", "."], "--against is for --training"),
        (["--training", "--size", "64x64"], "--size means nothing with --training"),
        (["--training", "-q", "50"], "--quality means nothing"),
        (["--training", "--device", "cuda"], "measures the processor"),
        (["--training", "--model", "a", "--model", "b"], "one preset"),
        (["--training", "--against-crops", "2"], "--against-crops needs --against"),
    ):
        error = CliRunner().invoke(command, arguments).exception
        assert isinstance(error, UsageError) and reported in str(error), (arguments, error)
    assert isinstance(CliRunner().invoke(command, ["--training", "--model", "none"]).exception, UnsupportedError)
    missing = CliRunner().invoke(command, ["--training", "--against", "/nowhere"]).exception
    assert isinstance(missing, FileError) and "git worktree add" in str(missing)


def test_rows_of_metrics_fall_on_the_first_and_the_last_step_that_count() -> None:
    from hpcm_codec.benchmark.training import TrainingSettings

    for steps in (2, 7, 8, 40, 43, 100):
        settings = TrainingSettings("phase1-lite", steps=steps)
        assert settings.first_row % settings.log_every == settings.last_row % settings.log_every == 0
        assert settings.first_row >= settings.warm_up_steps
        assert steps - settings.log_every < settings.last_row - settings.first_row <= steps


def test_steps_that_take_no_time_are_not_measured() -> None:
    from hpcm_codec.benchmark.training import seconds_per_step

    for rows in ([], [{"step": 2, "seconds": 0.1}], [{"step": step, "seconds": 0.1} for step in range(5)]):
        with pytest.raises(HpcmError, match="--steps"):
            seconds_per_step(rows, 1)


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    from hpcm_codec.benchmark import training

    settings = training.TrainingSettings("phase1-lite", steps=2)
    [version] = training.versions(settings)
    with pytest.raises(HpcmError, match="processes: 1, failed: hpcm: .*no such file"):
        training.train(version, 1, tmp_path / "none.pack", tmp_path / "run", settings)


@pytest.mark.exhaustive
def test_training_is_measured_by_the_real_command(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcm_codec.benchmark import training

    counts = [2] if machine.usable_cores() > 1 else [1]  # each run takes ten seconds to start
    monkeypatch.setattr(training, "PROCESSES", counts)
    monkeypatch.setattr(training, "bfloat16_rate", lambda processes, threads: 1e12)
    settings = training.TrainingSettings(
        "phase1-lite", 1, steps=10, turns=1, against=root, against_crops=2, edge=64, warm_up_steps=1
    )
    found = training.measure_training(settings)
    assert [(run["processes"], run["version"], run["crops_per_process"]) for run in found["runs"]] == [
        (count, *version) for count in counts for version in (("this", 1), ("other", 2))
    ]
    for run in found["runs"]:
        assert 0.05 < run["crops_per_second"] < 1000
        expected = 6 * 1000 * found["kmac_per_pixel"] * 64**2 * run["crops_per_second"]
        assert run["operations_per_second"] == pytest.approx(expected, rel=1e-2)


def test_the_bfloat16_rate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcm_codec.benchmark import ceilings

    monkeypatch.setattr(ceilings, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(ceilings, "BFLOAT16_SHAPES", ((64, 32, 32),))
    assert 1e6 < ceilings.bfloat16_operations() < 1e15
