"""What a step trains on: crops, rate positions and noise, each a function of the seed, the step and the sample's number only.

The samples of a step are numbered through all processes. However many processes share a step, and however often a run was
cut and resumed, the step sees the same samples; there is no state of random numbers to save.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.hpcm import Noise
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.settings import CropPhase, TrainSettings


@dataclass(frozen=True)
class Batch:
    """pixels: uint8 B×3×E×E; position: rate positions, B; noise: for the rates of the latents."""

    pixels: Tensor
    position: Tensor
    noise: Noise

    def tensors(self) -> tuple[Tensor, ...]:
        return self.pixels, self.position, self.noise.latents, self.noise.hyper

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        pixels, position, latents, hyper = map(function, self.tensors())
        return Batch(pixels, position, Noise(latents, hyper))

    def to(self, device: torch.device) -> Batch:
        return self.map(lambda tensor: tensor.to(device))

    def clone(self) -> Batch:
        return self.map(Tensor.clone)


def draw_batch(
    pictures: PackedPictures,
    config: ModelConfig,
    settings: TrainSettings,
    phase: CropPhase,
    step: int,
    rank: int = 0,
    world: int = 1,
) -> Batch:
    """The samples of process `rank` of `world` in a step: the numbers rank, rank + world, … of phase.batch·world.

    Every position is uniform in its own equal part of the range, one part for each sample of the whole step: with a few crops
    in a step, independent draws would make the gradient's size vary at random.
    """
    pixels, positions, latents, hyper = [], [], [], []
    total, edge = phase.batch * world, phase.edge // 16
    for number in range(rank, total, world):
        generator = np.random.default_rng([settings.seed, step, number])
        pixels.append(pictures.crop(phase.edge, generator, settings.smallest_scale))
        positions.append((number + generator.random()) / total * (config.rate_levels - 1))
        uniform = torch.Generator().manual_seed(int(generator.integers(2**63)))
        latents.append(torch.rand(config.latent_channels, edge, edge, generator=uniform) - 0.5)
        hyper.append(torch.rand(config.hyper_channels, edge // 4, edge // 4, generator=uniform) - 0.5)
    noise = Noise(torch.stack(latents), torch.stack(hyper))
    return Batch(torch.stack(pixels), torch.tensor(positions, dtype=torch.float32), noise)
