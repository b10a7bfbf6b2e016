"""`hpcm train pack`: one file of all pictures, whole or not at all, and a word about what is not in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from conftest import ROOT, small_photograph
from hpcm_codec.cli.main import main
from hpcm_codec.errors import FileError
from hpcm_codec.images import read_picture
from hpcm_codec.training import data
from hpcm_codec.training.data import PackedPictures, pack_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sound pictures, a small one and a broken one."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.fromarray(small_photograph(160 + number, 140)).save(pictures / f"{number}.png")
    Image.new("RGB", (200, 20)).save(pictures / "small.png")
    (pictures / "broken.png").write_bytes(b"not a picture")
    return pictures


def test_what_is_left_out_is_named(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["train", "pack", str(folder), "-o", str(tmp_path / "all.pack")])
    assert done.exit_code == 0
    assert f"{folder}/small.png: left out: has 200×20 pixels, fewer than 128 on a side" in done.stderr
    assert f"{folder}/broken.png: left out: not an image" in done.stderr
    assert "all.pack: 3 pictures" in done.stdout and done.stdout.endswith("MB, 2 left out\n")
    assert len(PackedPictures(tmp_path / "all.pack")) == 3


@pytest.mark.parametrize("stopped_by", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_run_that_is_stopped_leaves_what_was_there(stopped_by, folder: Path, tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "all.pack"
    pack_pictures(folder, target)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    reading, seen = read_picture, []

    def read_then_stop(path: Path) -> object:
        seen.append(path)
        if len(seen) == 3:
            raise stopped_by
        return reading(path)

    monkeypatch.setattr(data, "read_picture", read_then_stop)
    with pytest.raises(
        KeyboardInterrupt if stopped_by is KeyboardInterrupt else FileError, match="|all.pack: no space"
    ):
        pack_pictures(folder, target)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert len(PackedPictures(target)) == 3


def test_nothing_to_pack_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.png").write_bytes(b"")
    with pytest.raises(FileError, match="no picture here"):
        pack_pictures(tmp_path / "in", tmp_path / "all.pack")
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.skipif(os.name == "nt", reason="no limits of file sizes")
def test_a_full_disk_is_reported_with_the_files_name(folder: Path, tmp_path: Path) -> None:
    import resource

    program = "from hpcm_codec.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "pack", str(folder), "-o", "all.pack"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 5
    assert (
        "hpcm: all.pack: larger than the file system or a limit allows" in done.stderr and "stdout" not in done.stderr
    )
    assert os.listdir(tmp_path) == ["pictures"]
