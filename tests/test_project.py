"""The project around the code: what gets packaged, what is declared, and what the two commands of the README rest on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hpcm_codec
from hpcm_codec import constants
from hpcm_codec.cli.main import COMMANDS
from hpcm_codec.images import FORMATS
from hpcm_codec.model.config import PRESETS
from hpcm_codec.ops import shipped, toolchain


def pins(root: Path) -> dict[str, str]:
    lines = (line.split(";")[0].strip() for line in (root / "constraints.txt").read_text().splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def declared(root: Path) -> list[str]:
    """Names of all packages that pyproject.toml asks for; by hand, tomllib is not in Python 3.10."""
    return re.findall(r'^ *(?:requires = \[)?"([a-z][a-z-]+)>=', (root / "pyproject.toml").read_text(), re.MULTILINE)


def test_every_dependency_has_a_tested_version(root: Path) -> None:
    names = declared(root)
    assert {"torch", "compressai", "pytest", "hatchling"} <= set(names)
    assert set(names) <= set(pins(root))


def test_numpy_is_pinned_to_what_compressai_takes(root: Path) -> None:
    assert pins(root)["numpy"].startswith("1.26.")


def test_a_wheel_carries_the_sources_the_weights_and_the_types(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    build = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(tmp_path), str(root)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"hpcm_codec-{hpcm_codec.__version__}-py3-none-")
    compiles = toolchain.find_compiler("integer") is not None and platform.machine() in ("x86_64", "AMD64")
    assert wheel.name.endswith("-any.whl") != compiles  # with libraries it is for one kind of machine
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    wanted = {
        "checkpoints/phase1-lite.safetensors",
        "csrc/biwkv4.h",
        "csrc/biwkv4_cpu.cpp",
        "csrc/integer.h",
        "py.typed",
        "cli/main.py",
        "evaluation/anchors/kodak/jpeg.json",
        "evaluation/page/page.html",
    }
    assert {f"hpcm_codec/{name}" for name in wanted} <= names
    libraries = [name for name in names if name.startswith("hpcm_codec/ops/compiled/")]
    assert len(libraries) == (len(shipped.LEVELS) if compiles else 0)
    assert not [name for name in names if name.startswith(("tests/", "checkpoints/", "csrc/"))]
    # as an installed program would, away from the checkout
    code = (
        "from hpcm_codec.weights.registry import shipped_checkpoints as s; from hpcm_codec.ops.build import source_directory as d;"
        "print(s()['phase1-lite']); print(d())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    reported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    ).stdout
    assert [Path(line).is_relative_to(tmp_path / "installed") for line in reported.splitlines()] == [True, True]


def test_every_command_has_a_module_and_every_module_a_command(root: Path) -> None:
    helpers = {"__init__", "main", "batch", "options", "train_run"}
    assert {path.stem for path in (root / "hpcm_codec" / "cli").glob("*.py")} - helpers == set(COMMANDS)


def test_the_sample_photographs_have_their_credits(root: Path) -> None:
    credits = (root / "examples" / "CREDITS.md").read_text()
    pictures = [path.name for path in (root / "examples").iterdir() if path.suffix == ".png"]
    assert pictures and all(f"`{name}`" in credits for name in pictures)


def test_the_demo_says_what_it_did(root: Path, tmp_path: Path) -> None:
    demo = [
        sys.executable,
        str(root / "tools" / "demo.py"),
        str(root / "examples" / "chelsea.png"),
        "--into",
        str(tmp_path),
    ]
    reported = subprocess.run(
        demo, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(root)}
    ).stdout
    assert re.search(r"PSNR +(2[5-9]|3\d)\.\d\d dB", reported) and "bits per pixel" in reported
    assert (tmp_path / "chelsea.hpcm").is_file() and (tmp_path / "chelsea.png").is_file()
    for name in ("chelsea.hpcm", "chelsea.png"):
        assert str(tmp_path / name) in reported


def test_the_constants_that_help_texts_use_are_those_of_the_modules_they_stand_for() -> None:
    assert tuple(name.lower() for name in FORMATS) == constants.OUTPUT_FORMATS
    assert constants.HIGHEST_QUALITY * constants.QUALITY_STEPS == constants.LARGEST_QUALITY_CODE
    assert constants.DEFAULT_MODEL in PRESETS and constants.FINEST_SCALE == "s3"
