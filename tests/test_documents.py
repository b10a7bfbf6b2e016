"""Pages and pictures of the documentation that are made by a tool are what the tool makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import small_photograph


def tool(root: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "tools" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})


def test_the_api_page_is_what_the_docstrings_say(root: Path) -> None:
    done = tool(root, "api_reference.py", "--check")
    assert done.returncode == 0, done.stderr
    page = (root / "docs" / "api.md").read_text(encoding="utf-8")
    for name in ("encode", "decode", "load_codec", "Codec", "Picture", "HpcmError", "hpcm_codec.pillow"):
        assert f"`{name}`" in page or f"import {name}`" in page
    assert page.count("```") % 2 == 0


def test_the_readme_shows_the_progressive_picture_and_the_command_that_makes_it(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert "(docs/progressive.png)" in readme and "python tools/progressive.py examples/" in readme
    picture = root / "docs" / "progressive.png"
    assert picture.stat().st_size < 250_000
    with Image.open(picture) as image:
        assert image.width > 2 * image.height  # three pictures side by side


@pytest.mark.parametrize(
    ("shares", "status", "reported"),
    [("60,100", 0, "100% of the file:"), ("0,5", 2, "percentages"), ("x", 2, "percentages")],
)
def test_the_progressive_picture_can_be_made(
    root: Path, tmp_path: Path, shares: str, status: int, reported: str
) -> None:
    Image.fromarray(small_photograph(120, 90)).save(tmp_path / "photo.png")
    out = tmp_path / "out.png"
    options = ("-o", out, "--crop", "0,0,110,80", "--shares", shares)
    done = tool(root, "progressive.py", tmp_path / "photo.png", *options)
    assert done.returncode == status and reported in done.stdout + done.stderr
    assert out.is_file() == (status == 0)
