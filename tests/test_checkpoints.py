"""Checkpoints: found, verified, loaded, identified."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpcm_codec.checkpoints import find_checkpoint, identity_of, load_checkpoint, save_checkpoint
from hpcm_codec.errors import FileError, UnsupportedError
from hpcm_codec.model.hpcm import HPCM
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


def test_a_missing_or_damaged_checkpoint_is_refused_by_name(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nowhere.safetensors"):
        load_checkpoint(str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(UnsupportedError, match="no checkpoint is called 'nothing'"):
        find_checkpoint("nothing")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(FileError, match="damaged.safetensors"):
        load_checkpoint(str(damaged))


def test_the_shipped_default_is_a_lite_model() -> None:
    checkpoint = load_checkpoint()
    assert checkpoint.config.name == "phase1-lite"
    assert checkpoint.build_model().config.rate_levels == 8
