"""Checkpoints: found, verified, loaded, identified."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import hpcm_codec
from conftest import small_photograph
from hpcm_codec.cli.checkpoints import command
from hpcm_codec.engines.exporting import export_checkpoint
from hpcm_codec.errors import FileError, UnsupportedError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.weights.checkpoints import (
    identity_of,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from hpcm_codec.weights.identity import identity_of_file
from hpcm_codec.weights.registry import find_checkpoint
from test_hpcm_phase1 import SMALL


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "small.safetensors", SMALL, HPCM(SMALL).state_dict(), {"steps": 7})
    return tmp_path / "small.safetensors"


def test_what_is_saved_is_what_is_loaded(saved: Path) -> None:
    checkpoint = load_checkpoint(str(saved))
    assert checkpoint.config == SMALL
    assert checkpoint.training == {"steps": 7}
    torch.manual_seed(0)
    for name, value in HPCM(SMALL).state_dict().items():
        assert torch.equal(value, checkpoint.weights[name])
    assert checkpoint.tables.sizes.shape == (64,)


def test_identity_is_stable_and_changes_with_any_bit(saved: Path) -> None:
    checkpoint = load_checkpoint(str(saved))
    assert load_checkpoint(str(saved)).identity == checkpoint.identity
    assert len(checkpoint.identity) == 8
    base = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    changed = [
        {"a": torch.zeros(3), "b": torch.ones(4)},
        {"a": torch.tensor([0.0, 0.0, -0.0]), "b": torch.ones(2, 2)},
        {"a": torch.zeros(3).half(), "b": torch.ones(2, 2)},
        {"c": torch.zeros(3), "b": torch.ones(2, 2)},
    ]
    assert len({identity_of(tensors) for tensors in [base, *changed]}) == 5


def test_identity_does_not_depend_on_memory_layout() -> None:
    tensor = torch.randn(4, 3, 2, 2)
    assert identity_of({"w": tensor}) == identity_of({"w": tensor.contiguous(memory_format=torch.channels_last)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_identity_of_a_file_is_that_of_its_tensors(saved: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    exported = tmp_path / "exported.safetensors"
    identity = export_checkpoint(str(saved), exported, dtype)  # numpy has no bfloat16
    assert identity_of_file(exported) == load_checkpoint(str(exported)).identity == identity


def test_a_shipped_checkpoint_is_named_without_torch() -> None:
    code = (
        "import sys, hpcm_codec.weights.registry as s;"
        "from hpcm_codec.weights.identity import identity_of_file as i;"
        "print(s.known_name(i(s.find_checkpoint('phase1-lite'))), 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["phase1-lite", "False"]


def test_a_missing_or_damaged_checkpoint_is_refused_by_name(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nowhere.safetensors"):
        load_checkpoint(str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(UnsupportedError, match="no checkpoint is called 'nothing'"):
        find_checkpoint("nothing")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(saved.read_bytes()[:-100])
    for read in (load_checkpoint, identity_of_file):
        with pytest.raises(FileError, match="damaged.safetensors"):
            read(str(damaged))


def test_the_shipped_default_is_a_lite_model() -> None:
    checkpoint = load_checkpoint()
    assert checkpoint.config.name == "phase1-lite"
    assert checkpoint.build_model().config.rate_levels == 8


def test_building_a_model_draws_no_random_numbers(saved: Path) -> None:
    checkpoint = load_checkpoint(str(saved))
    before = torch.get_rng_state()
    built = checkpoint.build_model().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert built.keys() == checkpoint.weights.keys()
    assert all(torch.equal(value, checkpoint.weights[name]) for name, value in built.items())


def test_exported_weights_are_smaller_and_sound(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "half.safetensors"
    result = CliRunner().invoke(command, ["export", str(saved), "-o", str(target)])
    assert result.exit_code == 0, result.output
    exported = load_checkpoint(str(target))
    assert exported.identity != load_checkpoint(str(saved)).identity
    assert exported.identity.hex() in result.output
    assert all(value.dtype == torch.float16 for value in exported.weights.values())
    verify_checkpoint(exported, "half")
    for name, value in load_checkpoint(str(saved)).weights.items():
        torch.testing.assert_close(exported.weights[name].float(), value, rtol=1e-3, atol=1e-4)


def test_an_export_never_overwrites_unasked(saved: Path) -> None:
    target = saved.with_name("taken.safetensors")
    target.write_bytes(b"a good file")
    result = CliRunner().invoke(command, ["export", str(saved), "-o", str(target)])
    assert isinstance(result.exception, FileError) and "overwrite it with -f" in str(result.exception)
    assert target.read_bytes() == b"a good file"


def test_damaged_weights_and_tables_do_not_verify(saved: Path) -> None:
    checkpoint = load_checkpoint(str(saved))
    name = next(iter(checkpoint.weights))
    poisoned = dataclasses.replace(
        checkpoint, weights={**checkpoint.weights, name: torch.full_like(checkpoint.weights[name], float("nan"))}
    )
    with pytest.raises(FileError, match="not finite"):
        verify_checkpoint(poisoned, "poisoned")
    checkpoint.tables.cumulative[3, 2] = checkpoint.tables.cumulative[3, 1]
    with pytest.raises(FileError, match="tables are damaged"):
        verify_checkpoint(checkpoint, "damaged")


def test_an_alias_means_the_same_preset_and_the_same_weights() -> None:
    from hpcm_codec.cli.train_run import _configuration

    assert _configuration("patch-rwkv-small") == _configuration("phase1-lite")
    assert find_checkpoint("patch-rwkv-small") == find_checkpoint("phase1-lite")


def test_the_shipped_checkpoints_verify_and_are_listed() -> None:
    result = CliRunner().invoke(command, ["list"])
    assert "phase1-lite" in result.output and load_checkpoint().identity.hex() in result.output
    assert CliRunner().invoke(command, ["verify", "phase1-lite"]).exit_code == 0
    assert '"training"' in CliRunner().invoke(command, ["show", "phase1-lite"]).output


def test_files_of_a_checkpoint_in_the_users_folder_decode_without_naming_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = hpcm_codec.encode(small_photograph(), model=str(saved))
    folder = tmp_path / "models"
    monkeypatch.setenv("HPCM_MODELS", str(folder))
    with pytest.raises(UnsupportedError, match="not among those here") as refused:
        hpcm_codec.decode(data)
    assert str(folder) in str(refused.value)
    folder.mkdir()
    (folder / "broken.safetensors").write_bytes(b"not a checkpoint")
    kept = folder / "phase1-lite.safetensors"  # as the earlier weights are called that it may be
    kept.write_bytes(saved.read_bytes())
    assert np.array_equal(
        hpcm_codec.decode(data, output="numpy"), hpcm_codec.decode(data, model=str(saved), output="numpy")
    )
    assert find_checkpoint("phase1-lite") != kept  # a shipped one's name stays its own
    assert find_checkpoint("patch-rwkv-small") == find_checkpoint("phase1-lite")
    listed = [line.split() for line in CliRunner().invoke(command, ["list"]).output.splitlines()]
    assert [line[:2] for line in listed[1:]] == [
        ["broken", "damaged"],
        [str(kept), load_checkpoint(str(saved)).identity.hex()],
    ]
