"""Which part of the package may import which: the contracts in pyproject.toml, [tool.importlinter]."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT


def lint_imports(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("importlinter", reason="import-linter needs Python 3.11")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    return subprocess.run(
        [*command, "--no-cache", "--config", str(config)], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_imports_point_downwards_and_not_in_circles() -> None:
    done = lint_imports(ROOT, ROOT / "pyproject.toml")
    assert done.returncode == 0 and "3 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_an_import_that_points_upwards_is_found(tmp_path: Path) -> None:
    package = tmp_path / "hpcm_codec"
    for name in ("errors", "codec", "entropy.tables"):
        path = package.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.touch()
    (package / "entropy" / "tables.py").write_text("def late():\n    from hpcm_codec import codec\n")
    config = tmp_path / "pyproject.toml"
    rules = '[tool.importlinter]\nroot_package = "hpcm_codec"\n[[tool.importlinter.contracts]]\nname = "layers"\ntype = "layers"\n'
    config.write_text(rules + 'containers = ["hpcm_codec"]\nlayers = ["codec", "entropy", "errors"]\n')
    done = lint_imports(tmp_path, config)
    assert done.returncode == 1 and "hpcm_codec.entropy.tables -> hpcm_codec.codec" in done.stdout, done.stdout
