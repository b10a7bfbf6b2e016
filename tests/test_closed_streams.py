"""With standard streams that are closed the work is done all the same; what needs one of them says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from hpcm_codec.bitstream.container import parse_header

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no shell that closes streams")
EACH = ["<&-", ">&-", "2>&-"]


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs "hpcm …" in a folder, with the redirections of the shell."""
    (folder / "hpcm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hpcm_codec "$@"\n')
    (folder / "hpcm").chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("closed", [*EACH, "<&- >&- 2>&-"])
def test_pictures_are_encoded_and_decoded(closed: str, photograph: Path) -> None:
    folder = photograph.parent
    done = shell(f"hpcm encode photo.png -o a.hpcm {closed} && hpcm decode a.hpcm -o b.png {closed}", folder)
    assert done.returncode == 0, done.stderr
    assert parse_header((folder / "a.hpcm").read_bytes()).width == 96
    assert (folder / "b.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert ("photo.png → a.hpcm" in done.stderr) == ("2" not in closed) and not done.stdout


def test_several_processes_work_too(photograph: Path) -> None:
    folder = photograph.parent
    (folder / "in").mkdir()
    for name in ("1.png", "2.png"):
        (folder / "in" / name).write_bytes(photograph.read_bytes())
    done = shell("hpcm encode in -o out --jobs 2 <&- >&- 2>&-", folder)
    assert done.returncode == 0 and sorted(os.listdir(folder / "out")) == ["1.hpcm", "2.hpcm"]


@pytest.mark.parametrize("closed", EACH)
def test_what_only_prints_ends_well(closed: str, compressed: Path) -> None:
    done = shell(
        f"hpcm info photo.hpcm {closed} && hpcm --version {closed} && hpcm encode --help {closed}", compressed.parent
    )
    assert done.returncode == 0 and not done.stderr
    assert ("96×64" in done.stdout) == (closed != ">&-")


@pytest.mark.parametrize(
    ("command", "name"),
    [("encode - -o a.hpcm <&-", "stdin"), ("decode - -o a.png <&-", "stdin"), ("encode photo.png -o - >&-", "stdout")],
)
def test_a_closed_stream_that_is_needed_is_reported(command: str, name: str, photograph: Path) -> None:
    done = shell(f"hpcm {command}", photograph.parent)
    assert (done.returncode, done.stderr) == (5, f"hpcm: {name}: is closed; redirect it, or name a file\n")
    assert sorted(os.listdir(photograph.parent)) == ["hpcm", "photo.png"]


def test_a_wrong_command_line_keeps_its_status_without_stderr(tmp_path: Path) -> None:
    assert shell("hpcm encode nothing.png 2>&-", tmp_path).returncode == 5
    assert shell("hpcm encode --no-such-option 2>&-", tmp_path).returncode == 2
