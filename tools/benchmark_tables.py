"""Write the tables of docs/benchmarks.md anew from the results of `hpcm bench`, after measuring them where that is asked for.

    python tools/benchmark_tables.py --measure     # all of COMMANDS below but ON_REQUEST, a quarter of an hour; then the tables
    python tools/benchmark_tables.py               # the tables alone
    python tools/benchmark_tables.py --measure --only training   # needs: git worktree add ../d1d4bf1 d1d4bf1

What stands between `<!-- stages -->` and `<!-- /stages -->`, and the other sections of that kind, is made of the JSON files in
docs/results and of nothing else. `--check` writes nothing and fails when the document is not what the files say.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hpcm_codec.benchmark.tables import as_markdown
from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.evaluation.sections import with_sections
from hpcm_codec.system.files import file_error, write_atomically

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("--model", "phase1", "--model", "hpcm-base")
# section → the options of `hpcm bench` that measure it; the results are docs/results/bench-SECTION.json
COMMANDS = {
    "stages": ["--size", "768x512", "--size", "1920x1080", "--size", "3840x2160"],
    "float": ["--profile", "float"],
    "presets": [*PRESETS, "--size", "768x512", "--size", "1920x1080"],
    "presets-exact": [*PRESETS, "--size", "768x512", "--profile", "exact"],
    "cells": ["--cell"],
    "growth": ["--growth"],
    "training": ["--training", "--crops-per-process", "16", "--runs", "2", "--steps", "24", "--against", "../d1d4bf1"],
}
# Measured only when named with --only, since it needs another checkout: git worktree add ../d1d4bf1 d1d4bf1
ON_REQUEST = {"training"}


def results_file(folder: Path, section: str) -> Path:
    """Where a section's results are."""
    return folder / f"bench-{section}.json"


def shown_command(section: str) -> str:
    """The command that measures a section, as a reader can type it."""
    return " ".join(["hpcm bench", *COMMANDS[section], "--json", f"docs/results/bench-{section}.json", "-f"])


def measure(section: str, folder: Path) -> None:
    """Run the section's command; raises FileError when it fails."""
    target = results_file(folder, section)
    command = [sys.executable, "-m", "hpcm_codec", "bench", *COMMANDS[section], "--json", str(target), "-f"]
    print(f"{shown_command(section)}", flush=True)
    if subprocess.run(command, cwd=ROOT).returncode:
        raise FileError("could not be measured", file=target, advice="see the message above")


def section_text(section: str, folder: Path) -> str:
    """What stands between a section's markers; raises FileError for what is no results file."""
    path = results_file(folder, section)
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return f"    {shown_command(section)}\n\n{as_markdown(results)}"
    except OSError as error:
        raise file_error(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise FileError("is not a results file of `hpcm bench`", file=path, advice="measure again") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the JSON files")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--measure", action="store_true", help="measure first; nothing else should be running")
    parser.add_argument("--only", choices=sorted(COMMANDS), action="append", help="of the sections, once or more")
    parser.add_argument("--check", action="store_true", help="fail when the document is not up to date; write nothing")
    options = parser.parse_args(arguments)
    try:
        sections = options.only or [section for section in COMMANDS if section not in ON_REQUEST]
        if options.measure and not options.check:
            for section in sections:
                measure(section, options.results)
        if not options.only:
            sections += [section for section in sorted(ON_REQUEST) if results_file(options.results, section).is_file()]
        texts = {section: section_text(section, options.results) for section in sections}
        updated = with_sections(options.document, texts, check=options.check)
        if not options.check:
            write_atomically(options.document, updated.encode(), overwrite=True)
    except HpcmError as error:
        print(f"benchmark_tables: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
