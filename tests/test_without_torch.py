"""Coding on a CPU needs no torch: sys.modules of a separate process shows whether it was imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import digests_by_threads_and_operators, photographs_to_calibrate, small_photograph
from hpcm_codec.codec import load_codec
from hpcm_codec.engines.exporting import export_checkpoint
from hpcm_codec.images import Picture
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.ops import build, shipped
from hpcm_codec.selftest import INDEX_NAME, pixel_digest, run_selftest
from hpcm_codec.weights.checkpoints import save_checkpoint
from test_hpcm_phase1 import SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose exact profile has the transforms (model.safetensors), and a picture (a.png)."""
    if not build.ensure_built("integer"):
        pytest.skip(build.last_error("integer"))
    folder = tmp_path_factory.mktemp("without-torch")
    torch.manual_seed(1)
    save_checkpoint(folder / "float.safetensors", SMALL, dict(HPCM(SMALL).eval().state_dict()), {})
    pictures = photographs_to_calibrate(2)
    (folder / "models").mkdir()
    export_checkpoint(str(folder / "float.safetensors"), folder / "models" / "model.safetensors", calibration=pictures)
    Image.fromarray(small_photograph(200, 170)).save(folder / "a.png")
    return folder


def run(folder: Path, code: str) -> str:
    """What a program prints that imports no torch: it could not."""
    guard = "import sys; sys.modules['torch'] = None\n"  # an import of it raises ImportError
    done = subprocess.run(
        [sys.executable, "-c", guard + textwrap.dedent(code)],
        cwd=folder,
        env={**os.environ, "HPCM_MODELS": str(folder / "models"), "HPCM_OPS": "cpp"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(folder: Path, *arguments: str) -> str:
    return run(folder, f"from hpcm_codec.cli.main import main; main({list(arguments)!r})")


def test_commands(folder: Path) -> None:
    model = str(folder / "models" / "model.safetensors")
    command(folder, "encode", "a.png", "-o", "a.hpcm", "--model", model, "-q", "60", "--measure-psnr", "-f")
    command(folder, "decode", "a.hpcm", "-o", "b.png", "-f")
    assert np.asarray(Image.open(folder / "b.png")).shape == (170, 200, 3)
    assert "200" in command(folder, "info", "a.hpcm")
    command(folder, "encode", "a.png", "-o", "c.hpcm", "--model", model, "--size", "3KB", "-f")
    assert (folder / "c.hpcm").stat().st_size <= 3000
    command(folder, "compare", "a.png", "-o", "page.html", "--model", model, "--codec", "hpcm,jpeg", "-f")
    assert "<html" in (folder / "page.html").read_text(encoding="utf-8")


def test_python_interface_and_pillow(folder: Path) -> None:
    shown = run(
        folder,
        """
        import io
        import numpy as np
        import hpcm_codec, hpcm_codec.pillow
        from PIL import Image
        model = "models/model.safetensors"
        data = hpcm_codec.encode("a.png", 40, model)
        assert data == hpcm_codec.encode(np.asarray(Image.open("a.png")), 40, model)
        array = hpcm_codec.decode(data, output="numpy")
        assert np.array_equal(np.asarray(hpcm_codec.decode(data)), array)
        file = io.BytesIO()
        Image.open("a.png").save(file, "HPCM", quality=40, model=model)
        assert np.array_equal(np.asarray(Image.open(file)), array)
        print(array.shape)
        """,
    )
    assert shown.strip() == "(170, 200, 3)"


def test_pixels_and_files_are_those_of_other_threads_and_of_torch(folder: Path) -> None:
    """One thread, two, and the plain operators of torch: the same bytes and the same pixels."""
    assert len(digests_by_threads_and_operators("models/model.safetensors", "a.png", folder)) == 1


def test_other_pixels_are_noticed_by_the_selftest(folder: Path) -> None:
    codec = load_codec(str(folder / "models" / "model.safetensors"), "cpu")
    assert codec.exact_pixels
    golden = folder / "golden"
    golden.mkdir()
    data = codec.encode(Picture(small_photograph(64, 80)), 50)
    (golden / "a.hpcm").write_bytes(data)
    symbols = codec.symbol_digest(data)
    for pixels, failures in ((pixel_digest(codec, data), 0), ("0" * 64, 1)):
        index = {"files": {"a.hpcm": symbols}, "pixels": {"a.hpcm": pixels}}
        (golden / INDEX_NAME).write_text(json.dumps(index))
        assert len(run_selftest(codec, golden).failures) == failures


def test_a_library_that_came_with_the_program_needs_no_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("c++") is None or "x86_64" not in build.processor():
        pytest.skip("compiles for x86-64")
    made = shipped.compile_levels(folder / "compiled")
    assert len(made) >= 2
    monkeypatch.setattr(shipped, "compiled_directory", lambda: folder / "compiled")
    monkeypatch.setattr(build, "_state", build._State())
    monkeypatch.setattr(build, "find_compiler", lambda _: None)
    monkeypatch.setenv("HPCM_CACHE", str(folder / "nothing"))
    monkeypatch.setenv("CXX", "some other compiler")
    best = shipped.shipped_library("integer")
    assert best in made
    assert build.ensure_built("integer") and not (folder / "nothing").exists()
    monkeypatch.setattr(shipped, "processor", lambda: "x86_64\nflags : sse2")
    older = shipped.shipped_library("integer")
    assert older is not None and older.name.startswith("integer-x86-64-")
