"""Weights for an untrained network: the right shapes and plausible magnitudes, so that times and memory can be measured.

What such a network makes of a picture is meaningless, and so is the size of its files.
"""

from __future__ import annotations

from pathlib import Path

import torch

from hpcm_codec.benchmark.pictures import synthetic_photograph
from hpcm_codec.engines.exporting import export_checkpoint
from hpcm_codec.model.config import PRESETS, preset
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.weights.checkpoints import save_checkpoint
from hpcm_codec.weights.registry import known_checkpoints

SEED = 0
CALIBRATION_EDGE = 256  # pixels


def is_untrained(model: str) -> bool:
    """Whether a name is that of a preset no checkpoint is known of."""
    return model in PRESETS and model not in known_checkpoints()


def random_checkpoint(name: str, folder: Path, *, exact: bool = False) -> Path:
    """A checkpoint of a preset in that folder: torch's initial weights under a fixed seed, float32.

    exact: in float16, with an exact profile, whose units a synthetic photograph finds.
    Raises UnsupportedError when there is no such preset.
    """
    config = preset(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = HPCM(config)
    path = folder / f"{name}.safetensors"
    save_checkpoint(path, config, model.state_dict(), {"random weights of seed": SEED})
    if exact:
        pixels = torch.from_numpy(synthetic_photograph(CALIBRATION_EDGE, CALIBRATION_EDGE))
        export_checkpoint(str(path), path, calibration=[pixels.permute(2, 0, 1)[None] / 255])
    return path
