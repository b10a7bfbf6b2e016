"""docs/phases.md shows what docs/results/phases.json holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from phases import report  # noqa: E402
from phases.training import rows_of  # noqa: E402


def test_the_tables_are_those_of_the_results() -> None:
    record = json.loads((ROOT / "docs" / "results" / "phases.json").read_text())
    slopes = record["decibels_per_log_rate"]
    runs = {name: [rows_of(rows) for rows in seeds] for name, seeds in record["runs"].items()}
    document = (ROOT / "docs" / "phases.md").read_text()
    last, seconds = report.steps_in_common(runs)[-1], report.seconds_in_common(runs)
    shown = [
        *report.table(report.savings(runs, report.at_step(last), slopes), runs, last),
        *report.table(report.savings(runs, report.at_seconds(seconds), slopes), runs, last),
        *report.order_over_time(runs, slopes),
        f"The same {last} steps",
        f"The same {seconds:.0f} seconds",
    ]
    assert [line for line in shown if line not in document] == []
