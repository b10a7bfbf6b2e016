"""The scripts in examples/ do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT, small_photograph
from hpcm_codec.weights.checkpoints import load_checkpoint

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        Image.fromarray(small_photograph(160, 136, seed)).save(folder / f"p{seed}.png")
    return folder


def test_every_script_is_run_by_a_test() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {"encode_folder.py", "numpy_in_memory.py", "train_on_own_pictures.py"}


def test_a_folder_is_encoded_and_what_fails_is_named(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    done = run("encode_folder.py", photos, tmp_path / "small", 30)
    assert done.returncode == 1 and "broken.png" in done.stderr
    assert "in all" in done.stdout
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["p0.hpcm", "p1.hpcm"]


def test_an_array_goes_through_memory() -> None:
    done = run("numpy_in_memory.py")
    assert done.returncode == 0, done.stderr
    assert "180000 bytes of pixels → " in done.stdout and "the same as the crop: True" in done.stdout


def test_two_steps_on_own_pictures_make_a_model_that_encodes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_on_own_pictures

    train_on_own_pictures.main(photos, tmp_path / "run", ("--steps", 2, "--warmup-steps", 1))
    trained = load_checkpoint(str(tmp_path / "run" / "weights.safetensors"))
    assert trained.identity != load_checkpoint().identity
    assert trained.identity in (tmp_path / "run" / "first.hpcm").read_bytes()[:32]
