"""Files and modules that documents, docstrings and comments name exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from conftest import ROOT

# documents of how things were, and files that are made or lie elsewhere
NOT_READ = (
    "docs/training-log.md",
    "CHANGELOG.md",
    "examples/CREDITS.md",
    "hpcm_codec/evaluation/anchors/",
    "docs/results/",
)
MADE = {"CALLS.md", ".lease/CALLS.md"}  # by tools/gpu_lease.py
PATH = re.compile(r"(?<![\w/.-])((?:[\w.-]+/)*[\w-]+\.(?:py|h|cpp|cu|md|toml|js|css))(?![\w/])")
DOTTED = re.compile(r"`([a-z_]+(?:\.[A-Za-z_]\w*)+)(?:\(\))?`")
DATA = re.compile(r".*\.(png|jpg|hpcm|json|jsonl|pt|safetensors|partial)")
# what begins with these is a tensor's name, or an object of the text around it
OTHER_NAMES = {
    "tables",
    "exact",
    "packed",
    "exponents",
    "error",
    "settings",
    "header",
    "step",
    "factor",
    "g_s",
    "h_s",
    "image",
}


@cache
def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return listed.stdout.splitlines()


def texts() -> Iterator[tuple[str, str]]:
    """(path, prose) of every document, and of the docstrings and comments of every source file."""
    for path in tracked():
        if path.startswith(NOT_READ) or not (ROOT / path).exists():
            continue
        if path.endswith(".md"):
            yield path, (ROOT / path).read_text(encoding="utf-8")
        elif path.endswith((".h", ".cpp", ".cu")):
            content = (ROOT / path).read_text(encoding="utf-8")
            yield path, "\n".join(re.findall(r"//[^\n]*|/\*[\s\S]*?\*/", content))
        elif path.endswith(".py") and not path.startswith("tests/"):
            content = (ROOT / path).read_text(encoding="utf-8")
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            docstrings = [ast.get_docstring(n) or "" for n in ast.walk(ast.parse(content)) if isinstance(n, documented)]
            tokens = tokenize.generate_tokens(io.StringIO(content).readline)
            comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
            yield path, "\n".join([*docstrings, *comments])


def file_exists(named: str, in_file: str) -> bool:
    """A path from the root, the package, or the file's own folder; a name alone may be any file's."""
    if named in MADE:
        return True
    if "/" not in named:
        return any(path.rpartition("/")[2] == named for path in tracked())
    folders = ("", "hpcm_codec/", f"{Path(in_file).parent}/", "hpcm_codec/evaluation/")
    return any((ROOT / folder / named).exists() for folder in folders)


def resolves(named: str, in_file: str) -> bool:
    """A module or something in it: of the package, beside the file, or of another package that is installed."""
    parts = named.split(".")
    beside = ".".join(Path(in_file).parent.parts)
    for base in ("hpcm_codec", beside if beside.startswith("hpcm_codec") else "", ""):
        for length in range(len(parts), 0, -1):
            module = ".".join(filter(None, [base, *parts[:length]]))
            try:
                found = importlib.util.find_spec(module)
            except (ImportError, ValueError):
                continue
            if found is not None:
                return has(importlib.import_module(module), parts[length:])
    return False


def has(owner: object, names: list[str]) -> bool:
    for name in names:
        if name in getattr(owner, "__annotations__", {}):
            return True
        if not hasattr(owner, name):
            return isinstance(owner, type) and f"self.{name} = " in inspect.getsource(owner)
        owner = getattr(owner, name)
    return True


def test_files_that_are_named_exist() -> None:
    missing = {(path, named) for path, text in texts() for named in PATH.findall(text) if not file_exists(named, path)}
    assert not missing


def test_modules_that_are_named_exist() -> None:
    missing = set()
    for path, text in texts():
        for named in DOTTED.findall(text):
            first = named.partition(".")[0]
            if first in OTHER_NAMES or PATH.fullmatch(named) or DATA.fullmatch(named):
                continue
            if not resolves(named, path):
                missing.add((path, named))
    assert not missing
