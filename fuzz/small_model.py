"""A model with every kind of layer and an exact profile, small enough to decode many files a second. Its weights are seeded noise."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch

from hpcm_codec.engines.exporting import export_checkpoint
from hpcm_codec.model.config import CellConfig, ModelConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.weights.checkpoints import save_checkpoint

_CELL = {"width": 16, "heads": 2, "residual": True}
CONFIG = ModelConfig(
    name="fuzz",
    latent_channels=16,
    hyper_channels=8,
    transform="patch",
    cells=(
        CellConfig(window=4, **_CELL),  # type: ignore[arg-type]
        CellConfig(window=8, **_CELL),  # type: ignore[arg-type]
        CellConfig(kind="rwkv", hidden_rate=2, **_CELL),  # type: ignore[arg-type]
    ),
    prior_width=24,
    prior_blocks_s12=(1, 1),
    prior_blocks_s3=(1, 1),
    prior_residual=True,
    phase_bias=True,
    scale_domain="log",
    rate_levels=8,
    residual_factors=True,
)


@cache
def checkpoint() -> str:
    """The path of the model's checkpoint, made at the first call in a folder that stays for the system to clean."""
    folder = Path(tempfile.mkdtemp(prefix="hpcm-fuzz-"))
    torch.manual_seed(0)
    save_checkpoint(folder / "float.safetensors", CONFIG, dict(HPCM(CONFIG).eval().state_dict()), {})
    pictures = [torch.rand(1, 3, 64, 64) for _ in range(2)]
    export_checkpoint(str(folder / "float.safetensors"), folder / "small.safetensors", calibration=pictures)
    return str(folder / "small.safetensors")
