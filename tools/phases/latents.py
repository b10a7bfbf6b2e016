"""The latents that all context models are trained and measured on: a trained model's analysis of crops, computed once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcm_codec.errors import FileError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.ops import fused
from hpcm_codec.tiles.grid import PIXELS_PER_LATENT
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.scoring import EDGE, middles

TRAIN, VALID = "train.npy", "valid.npy"
SMALLEST_SCALE = 0.6  # pictures are shrunk at random, as in the training of the model itself
_TOGETHER = 8


def store(model: HPCM, pictures: PackedPictures, valid: Path, folder: Path, crops: int) -> None:
    """Write the latents of `crops` random training crops and of the validation pictures' middles, float16 n×M×16×16 each."""
    folder.mkdir(parents=True, exist_ok=True)
    random = (pictures.crop(EDGE, np.random.default_rng([7, n]), SMALLEST_SCALE).float() / 255 for n in range(crops))
    held_out = middles(valid)
    _write(model, random, crops, folder / TRAIN)
    _write(model, iter(held_out), len(held_out), folder / VALID)


def _write(model: HPCM, pictures: Iterator[Tensor], count: int, path: Path) -> None:
    side = EDGE // PIXELS_PER_LATENT
    unfinished = path.with_suffix(".part.npy")
    shape = (count, model.config.latent_channels, side, side)
    stored = np.lib.format.open_memmap(unfinished, "w+", np.float16, shape)
    for start in range(0, count, _TOGETHER):
        part = torch.stack([next(pictures) for _ in range(min(_TOGETHER, count - start))])
        # As in the training of whole models, whose operations are several times faster.
        with torch.autocast("cpu", torch.bfloat16), torch.enable_grad(), fused.step():
            latents = model.analyse(part.contiguous(memory_format=torch.channels_last)).to(torch.float16)
        if not latents.isfinite().all():
            raise FileError("latents that float16 does not hold", file=path, advice="take another model's")
        stored[start : start + len(part)] = latents.numpy()
    stored.flush()
    unfinished.replace(path)


def opened(folder: Path, name: str) -> NDArray[np.float16]:
    """Stored latents, mapped into memory; raises FileError where there are none."""
    try:
        return np.load(folder / name, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise FileError(
            f"no stored latents ({error})", file=folder / name, advice="make them with the command `latents`"
        ) from error
