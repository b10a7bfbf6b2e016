"""What turns the context and the latents decoded so far into the scales and means of the next step's latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpcm_codec.model.blocks import (
    RateFactor,
    RateSequential,
    ResidualBlock,
    pointwise,
    pointwise_and_input,
    recomputed,
    silence,
)
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.rwkv import RWKVBlock


# Attributes that hold modules or parameters name the tensors of checkpoints: renaming one makes every file undecodable (CONTRIBUTING.md).
class Prior(nn.Module):
    """Residual blocks, a gain of the step, residual blocks, conv1×1 to 2M parameters (HPCM, fig. 4).

    Shared by all steps of its scales; only the adaptor before it and the gain inside it belong to one step.
    """

    def __init__(self, config: ModelConfig, blocks: tuple[int, int]) -> None:
        super().__init__()
        width = prior_width(config)
        self.before = RateSequential(*(_block(config) for _ in range(blocks[0])))
        self.after = RateSequential(*(_block(config) for _ in range(blocks[1])))
        self.head = nn.Conv2d(width, 2 * config.latent_channels, 1)
        self.residual = config.prior_residual
        if self.residual:
            silence(self.head, 0.1)

    def forward(self, adapted: Tensor, gain: RateFactor, context: Tensor, rate: Tensor) -> Tensor:
        """adapted: B×width×h×w; gain: of the step; context: B×2M×h×w; rate: B×L. Returns parameters B×2M×h×w."""
        refined = self.after(gain.times(self.before(adapted, rate), rate), rate)
        return pointwise(self.head, refined, added=context if self.residual else None)


class PriorRWKVBlock(RWKVBlock):
    """An RWKV block in a prior (Phase 4), with activation checkpointing in training when asked for."""

    def __init__(self, channels: int, hidden_rate: float, use_checkpoint: bool) -> None:
        super().__init__(channels, hidden_rate)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self.use_checkpoint and self.training, super().forward, x)


def _block(config: ModelConfig) -> nn.Module:
    """A residual block of a prior, on B×width×h×w."""
    width = prior_width(config)
    if config.prior_rwkv_rate is not None:
        return PriorRWKVBlock(width, config.prior_rwkv_rate, config.use_checkpoint)
    return ResidualBlock(width, factor_levels=config.rate_levels if config.residual_factors else 0)


class StepAdaptor(nn.Module):
    """What belongs to one coding step: conv1×1 of (context ‖ latents), a gain, and where asked for a phase bias.

    The phase bias tells the layers after it, blind to position, which neighbours are decoded already: it repeats with
    the coding cell, as the schedule does.
    """

    def __init__(self, config: ModelConfig, cell_size: int) -> None:
        super().__init__()
        width = prior_width(config)
        self.adapt = nn.Conv2d(3 * config.latent_channels, width, 1)
        self.gain = RateFactor(config.rate_levels, width, initial=1.0)
        self.phase_bias = nn.Parameter(torch.zeros(width, cell_size, cell_size)) if config.phase_bias else None

    def forward(self, context: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the prior gets, B×width×h×w, and the context for whoever uses it next (see `pointwise_and_input`)."""
        if self.phase_bias is None:
            return pointwise_and_input(self.adapt, context, latents)
        height, width = context.shape[-2:]
        cell = self.phase_bias.shape[-1]
        tiled = self.phase_bias.repeat(1, -(-height // cell), -(-width // cell))[None, :, :height, :width]
        return pointwise_and_input(self.adapt, context, latents, added=tiled)


def prior_width(config: ModelConfig) -> int:
    """Channels inside the priors."""
    return config.prior_width or 3 * config.latent_channels
