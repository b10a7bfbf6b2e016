"""The names and shapes of the default model's tensors are those of every checkpoint there is: tests/tensor_names.txt.

They are part of a checkpoint's identity, which every file names. A module's attribute that is renamed renames tensors: checkpoints no
longer load, and a checkpoint saved under new names is another model, which cannot decode the files of the old one. If this test fails,
rename the attribute back.
"""

from __future__ import annotations

from pathlib import Path

import torch

from hpcm_codec.constants import DEFAULT_MODEL
from hpcm_codec.model.config import preset
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.weights.checkpoints import load_checkpoint

RECORDED = Path(__file__).parent / "tensor_names.txt"


def names_and_shapes(tensors: dict[str, torch.Tensor]) -> list[str]:
    return sorted(f"{name} {'×'.join(map(str, value.shape))}" for name, value in tensors.items())


def test_no_tensor_of_the_default_model_has_another_name_or_shape() -> None:
    with torch.device("meta"):
        model = HPCM(preset(DEFAULT_MODEL))
    assert names_and_shapes(model.state_dict()) == RECORDED.read_text(encoding="utf-8").splitlines()


def test_the_shipped_checkpoint_has_the_recorded_names() -> None:
    assert names_and_shapes(load_checkpoint().weights) == RECORDED.read_text(encoding="utf-8").splitlines()
