"""The score by which runs are compared: the training loss on validation pictures, estimated, without coding a bit.

A minute instead of the hour that real files take (`hpcm train validate`), and accurate enough to compare two settings.
docs/training-log.md has the scores of all runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcm_codec.errors import FileError
from hpcm_codec.images import read_picture
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.rate import spread_positions
from hpcm_codec.training.data import image_files
from hpcm_codec.training.losses import lambda_at, rate_distortion
from hpcm_codec.training.processes import Processes

EDGE = 256  # pixels; of the middle of every picture
_BATCH = 4


@dataclass(frozen=True)
class PositionScore:
    """Means over all pictures at one rate position; psnr in dB."""

    position: float
    loss: float
    bits_per_pixel: float
    psnr: float


@dataclass(frozen=True)
class Score:
    """value: the mean loss over the positions, lower is better."""

    value: float
    positions: tuple[PositionScore, ...]


def middles(folder: Path, edge: int = EDGE) -> Tensor:
    """The middle edge×edge pixels of every picture below a folder, N×3×edge×edge in [0, 1].

    Raises FileError for a picture that is too small or unreadable: a score without it could not be compared.
    """
    found = []
    for path in image_files(folder):
        pixels = read_picture(path).pixels
        height, width = pixels.shape[:2]
        if min(height, width) < edge:
            raise FileError(f"smaller than {edge}×{edge} pixels", file=path, advice="take it out of the folder")
        top, left = (height - edge) // 2, (width - edge) // 2
        middle = np.broadcast_to(pixels[top : top + edge, left : left + edge], (edge, edge, 3))
        found.append(torch.from_numpy(middle.transpose(2, 0, 1).copy()))
    return torch.stack(found).float() / 255


@torch.no_grad()
def score(model: HPCM, pictures: Tensor) -> Score:
    """The score of a model in evaluation mode on pictures N×3×H×W in [0, 1], H and W multiples of 64, on the model's device."""
    device = next(model.parameters()).device
    rows = []
    for position in spread_positions(model.config.rate_levels):
        losses, rates, fidelities = [], [], []
        for part in pictures.split(_BATCH):
            x = part.to(device).contiguous(memory_format=torch.channels_last)
            positions = torch.full((len(x),), position, device=device)
            outcome = rate_distortion(model(x, positions), x, lambda_at(positions, model.config.lambdas))
            losses.append(outcome.loss * len(x))
            rates.append(outcome.bits_per_pixel)
            fidelities.append(-10 * outcome.squared_error.log10())
        loss = float(torch.stack(losses).sum()) / len(pictures)
        rows.append(PositionScore(position, loss, float(torch.cat(rates).mean()), float(torch.cat(fidelities).mean())))
    return Score(sum(row.loss for row in rows) / len(rows), tuple(rows))


def shared_score(config: ModelConfig, weights: dict[str, Tensor], pictures: Tensor, together: Processes) -> float:
    """The value of `score` for these weights, the same in all processes; each looks at its part of the pictures."""
    model = HPCM(config, initialise=False)
    model.load_state_dict(weights)
    model.to(together.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mine = pictures[together.rank :: together.world]
    total = score(model.eval(), mine).value * len(mine) if len(mine) else 0.0
    mean = together.mean(torch.tensor([total], dtype=torch.float64, device=together.device))
    return float(mean) * together.world / len(pictures)
