"""The tables of docs/benchmarks.md come from results files and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from conftest import load_tool


@pytest.fixture(scope="module")
def tool(root: Path) -> ModuleType:
    return load_tool(root, "benchmark_tables")


def test_the_document_says_what_the_results_say(tool: ModuleType) -> None:
    assert tool.main(["--check"]) == 0, "run python tools/benchmark_tables.py"


def test_a_changed_figure_is_noticed_and_written(tool: ModuleType, root: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    for section in tool.COMMANDS.keys() - tool.ON_REQUEST:
        original = tool.results_file(root / "docs" / "results", section)
        tool.results_file(results, section).write_text(original.read_text())
    document = tmp_path / "benchmarks.md"
    document.write_text((root / "docs" / "benchmarks.md").read_text())
    arguments = ["--results", str(results), "--document", str(document)]
    assert tool.main([*arguments, "--check"]) == 0
    changed = json.loads(tool.results_file(results, "growth").read_text())
    changed["growth"]["exponents"]["encode"]["seconds"] = 0.4321
    tool.results_file(results, "growth").write_text(json.dumps(changed))
    before = document.read_text()
    assert tool.main([*arguments, "--check"]) == 5
    assert document.read_text() == before
    assert tool.main(arguments) == 0
    assert "0.43" in document.read_text() and tool.main([*arguments, "--check"]) == 0
    # nothing outside the section has changed
    assert [line for line in before.splitlines() if line not in document.read_text().splitlines()] == [
        line for line in before.splitlines() if line.startswith("| exponent")
    ]


def test_what_is_no_results_file_or_no_document_with_markers_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("no markers\n")
    assert tool.main(["--document", str(document), "--check"]) == 2
    (tmp_path / "bench-stages.json").write_text('{"kind": "stages"}')
    assert tool.main(["--results", str(tmp_path), "--document", str(document), "--only", "stages"]) == 5
    assert tool.main(["--results", str(tmp_path / "none"), "--document", str(document), "--only", "stages"]) == 5
    assert document.read_text() == "no markers\n"


def test_training_has_its_table_once_it_was_measured(tool: ModuleType, root: Path, tmp_path: Path) -> None:
    from test_bench import run_of, training_results

    document = tmp_path / "benchmarks.md"
    document.write_text((root / "docs" / "benchmarks.md").read_text())
    results = training_results([run_of("this", 1, 4, [6.0]), run_of("other", 1, 2, [2.0])])
    arguments = ["--results", str(tmp_path), "--document", str(document), "--only", "training"]
    assert tool.main(arguments) == 5  # not measured
    tool.results_file(tmp_path, "training").write_text(json.dumps(results))
    assert tool.main(arguments) == 0 and tool.main([*arguments, "--check"]) == 0
    section = document.read_text().split("<!-- training -->")[1].split("<!-- /training -->")[0]
    assert "hpcm bench --training --crops-per-process 16" in section and "| other (d1d4bf1) |" in section
