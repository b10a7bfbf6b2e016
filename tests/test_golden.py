"""The golden files: the same symbols under every number of threads, with every implementation of the operators."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hpcm_codec.codec import Codec, load_codec
from hpcm_codec.errors import FileError
from hpcm_codec.selftest import GOLDEN_FOLDER, INDEX_NAME, golden_files, run_selftest


@pytest.fixture
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_there_are_six_pictures_at_three_qualities_of_the_shipped_model(codec: Codec) -> None:
    files = list(golden_files())
    assert len(files) == 18
    assert len({golden.name.rpartition("-")[0] for golden in files}) == 6
    assert json.loads((GOLDEN_FOLDER / INDEX_NAME).read_text())["identity"] == codec.identity.hex()
    assert sum(len(golden.data) for golden in files) < 200_000


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.exhaustive), 4])
def test_symbols_do_not_depend_on_threads(codec: Codec, threads: int, threads_restored: None) -> None:
    torch.set_num_threads(threads)
    assert run_selftest(codec).failures == ()


@pytest.mark.exhaustive
def test_symbols_do_not_depend_on_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCM_OPS", "torch")
    assert run_selftest(load_codec(device="cpu")).failures == ()


@pytest.mark.parametrize("enabled", [True, False])
def test_symbols_do_not_depend_on_onednn(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCM_OPS", "torch")
    codec = load_codec(device="cpu")
    with torch.backends.mkldnn.flags(enabled=enabled):
        for golden in [file for file in golden_files() if file.name.startswith(("noise", "ramp"))]:
            assert codec.symbol_digest(golden.data) == golden.symbols


def test_other_symbols_are_noticed_and_named(codec: Codec, tmp_path: Path) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN_FOLDER, folder)
    index = json.loads((folder / INDEX_NAME).read_text())
    index["files"] = {"ramp-5.hpcm": "0" * 64, "noise-5.hpcm": index["files"]["noise-5.hpcm"]}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    data = bytearray((folder / "noise-5.hpcm").read_bytes())
    data[-9] ^= 1
    (folder / "noise-5.hpcm").write_bytes(data)
    result = run_selftest(codec, folder)
    assert not result.passed and result.files == 2
    assert any("ramp-5.hpcm" in failure and "other symbols" in failure for failure in result.failures)
    assert any("noise-5.hpcm" in failure and "CRC" in failure for failure in result.failures)


def test_missing_golden_files_are_named(codec: Codec, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="golden"):
        run_selftest(codec, tmp_path)
