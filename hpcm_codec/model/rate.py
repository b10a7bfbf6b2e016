"""The continuous quality control: from a quality of 0..100 to level weights, gains and their inverses.

A variable-rate model has L anchor levels of λ, log-spaced; a position p in [0, L-1] lies between two of them.
Per-channel gains multiply the latents before rounding, their inverses after; both are interpolated geometrically.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hpcm_codec.constants import HIGHEST_QUALITY
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.precision import outside_autocast


def coefficient_unit(lambdas: tuple[float, ...]) -> float:
    """Quantisation steps per unit of an orthonormal coefficient (image in [0, 1]) at the geometric mean of the λs.

    From high-rate theory: λ·255²·MSE + bpp is least for a step Δ with Δ²/12 = 3/(2·ln 2·λ·255²).
    """
    middle = math.sqrt(lambdas[0] * lambdas[-1])
    return math.sqrt(middle * 255**2 * 2 * math.log(2) / (3 * 12))


def level_weights(position: Tensor, levels: int) -> Tensor:
    """Interpolation weights B×L for positions B in [0, L-1]; each row sums to 1, at most two are not zero."""
    anchors = torch.arange(levels, dtype=position.dtype, device=position.device)
    return (1 - (position[:, None] - anchors).abs()).clamp_min(0)


def interpolated(rate: Tensor, values: Tensor) -> Tensor:
    """values L×C between levels: B×C, for level weights B×L. In float32 under autocast too."""
    with outside_autocast(rate):
        return rate @ values


def quality_to_position(quality: float, levels: int) -> float:
    """The position in [0, L-1] of a quality in [0, 100]."""
    return quality / HIGHEST_QUALITY * (levels - 1)


def spread_positions(levels: int) -> tuple[float, ...]:
    """The lowest, the middle and the highest rate position; the only one of a fixed-rate model."""
    return (0.0,) if levels == 1 else (0.0, (levels - 1) / 2, levels - 1.0)


# Attributes that hold modules or parameters name the tensors of checkpoints: renaming one makes every file undecodable (CONTRIBUTING.md).
class RateControl(nn.Module):
    """The gains of a variable-rate model: one row per level, for latents and for hyper-latents."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        lambdas = torch.tensor(config.lambdas, dtype=torch.float64).log()
        start = 0.5 * (lambdas - lambdas.mean()).float()[:, None]
        self.log_gain = nn.Parameter(start.repeat(1, config.latent_channels))
        self.log_hyper_gain = nn.Parameter(torch.zeros(config.rate_levels, config.hyper_channels))
        # Starts at zero: the inverse gain is then the inverse of the gain, and may learn to shrink from there.
        self.log_inverse_correction = nn.Parameter(torch.zeros(config.rate_levels, config.latent_channels))

    def latent_log_gain(self, rate: Tensor) -> Tensor:
        """B×M×1×1: logarithm of what the latents are multiplied with before rounding; rate: level weights B×L."""
        return interpolated(rate, self.log_gain)[:, :, None, None]

    def synthesis_correction(self, rate: Tensor) -> Tensor:
        """B×M×1×1: what the decoded latents are multiplied with, after the inverse gain, before the synthesis."""
        return interpolated(rate, self.log_inverse_correction).exp()[:, :, None, None]

    def hyper_log_gain(self, rate: Tensor) -> Tensor:
        """B×N×1×1: the same as `latent_log_gain` for the hyper-latents."""
        return interpolated(rate, self.log_hyper_gain)[:, :, None, None]
