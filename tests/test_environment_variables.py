"""docs/environment.md names every environment variable of ours that is read, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

NAME = re.compile(r"HPCM_[A-Z_]+")


def strings_of(path: Path) -> Iterator[str]:
    """All string constants of a program that are no docstrings and no prose."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
            yield node.value


def test_every_variable_that_is_read_is_documented() -> None:
    sources = [path for folder in ("hpcm_codec", "tools", "fuzz") for path in (ROOT / folder).rglob("*.py")]
    read = {name for path in sources for name in strings_of(path)}
    assert {"HPCM_OPS", "HPCM_MODELS"} <= read
    rows = re.findall(
        r"^\| `(HPCM_[A-Z_]+)` \|", (ROOT / "docs" / "environment.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(rows) == sorted(read)


def test_the_c_code_reads_no_environment() -> None:
    for path in [*(ROOT / "csrc").iterdir(), *(ROOT / "tools").rglob("*.cpp")]:
        assert "getenv" not in path.read_text(encoding="utf-8"), path
