"""The rates of a training step as single operations with their own gradients: what `fused` is for the network's blocks.

A coding step's latents are packed B×n float32 in an order of their own (pieces, places, channels), which only these functions
use. The likelihoods are those of `entropy.distributions`, by a table of log(1 − cdf) to about 1e-6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpcm_codec.ops.fused import plane_of, rows_of
from hpcm_codec.ops.training import call

SPACING = 1 / 64  # of the table's entries
REACH = 14.0  # beyond, 1 − cdf is below 1e-23


class Distribution(NamedTuple):
    """Parameters of a distribution for the operators: its table and the bounds of its scales and likelihoods.

    table:   float32, entries×2: log(1 − cdf) and its slope times SPACING at multiples of SPACING.
    numbers: float32: entries per unit, density at zero, smallest and largest log-scale, smallest likelihood.
    """

    table: Tensor
    numbers: Tensor


def distribution(shape: float, scales: tuple[float, float], smallest_likelihood: float) -> Distribution:
    """A generalised Gaussian of that shape, whose scales lie within `scales`."""
    v = torch.arange(0, REACH + 3 * SPACING, SPACING, dtype=torch.float64)
    at_zero = shape / (2 * math.gamma(1 / shape))
    survival = 0.5 * torch.special.gammaincc(torch.tensor(1 / shape, dtype=torch.float64), v.pow(shape))
    slope = -SPACING * at_zero * torch.exp(-v.pow(shape)) / survival
    table = torch.stack((survival.log(), slope), dim=1).float().contiguous()
    bounds = (math.log(scales[0]), math.log(scales[1]), smallest_likelihood)
    return Distribution(table, torch.tensor([1 / SPACING, at_zero, *bounds]))


@dataclass(frozen=True)
class Pieces:
    """Where a coding step's latents lie: rows of (first channel, channel after the last, row, column, stride), int64."""

    table: Tensor
    channels: int

    def arguments(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        return len(self.table), batch, height, width, self.channels

    def count(self, height: int, width: int) -> int:
        """Latents of the step in a plane of that size."""
        return sum(
            (last - first) * len(range(row, height, stride)) * len(range(column, width, stride))
            for first, last, row, column, stride in self.table.tolist()
        )


@cache
def pieces_of(rows: tuple[tuple[int, int, int, int, int], ...], channels: int) -> Pieces:
    """The pieces of a step, from its rows."""
    return Pieces(torch.tensor(rows, dtype=torch.int64), channels)


def _plane_rows(plane: Tensor) -> Tensor:
    return plane.permute(0, 2, 3, 1).contiguous()


class _TakeSteps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plane: Tensor, steps: tuple[Pieces, ...]) -> tuple[Tensor, ...]:
        rows = _plane_rows(plane)
        batch, height, width, _ = rows.shape
        ctx.steps, ctx.shape = steps, rows.shape
        packed = tuple(rows.new_empty(batch, step.count(height, width)) for step in steps)
        for step, latents in zip(steps, packed, strict=True):
            call("take", rows, latents, step.table, *step.arguments(batch, height, width))
        return packed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        plane = gradients[0].new_zeros(ctx.shape)
        for step, gradient in zip(ctx.steps, gradients, strict=True):
            call("place", gradient.contiguous(), plane, step.table, *step.arguments(*ctx.shape[:3]))
        return plane.permute(0, 3, 1, 2), None


def take_steps(plane: Tensor, steps: tuple[Pieces, ...]) -> tuple[Tensor, ...]:
    """The latents of several steps of a plane B×M×h×w (float32), packed."""
    taken: tuple[Tensor, ...] = _TakeSteps.apply(plane, steps)
    return taken


class _PlaceSteps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, size: tuple[int, int], steps: tuple[Pieces, ...], *packed: Tensor) -> Tensor:
        shape = (packed[0].shape[0], *size, steps[0].channels)
        ctx.steps, ctx.shape = steps, shape
        plane = packed[0].new_ones(shape)
        for step, latents in zip(steps, packed, strict=True):
            call("place", latents, plane, step.table, *step.arguments(*shape[:3]))
        return plane.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows = _plane_rows(gradient)
        batch, height, width, _ = ctx.shape
        packed = []
        for step in ctx.steps:
            packed.append(rows.new_empty(batch, step.count(height, width)))
            call("take", rows, packed[-1], step.table, *step.arguments(batch, height, width))
        return None, None, *packed


def place_steps(packed: tuple[Tensor, ...], steps: tuple[Pieces, ...], size: tuple[int, int]) -> Tensor:
    """A plane B×M×h×w of ones with the packed numbers of several steps in their places; size: (h, w)."""
    plane: Tensor = _PlaceSteps.apply(size, steps, *packed)
    return plane


class _CodeStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, params: Tensor, before: Tensor, latents: Tensor, noise: Tensor, log_gain: Tensor, step: Pieces,
        distribution: Distribution,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows, decoded = rows_of(params), rows_of(before).clone()
        gains = log_gain.detach().float().expand(params.shape[0], -1, 1, 1).flatten(1).contiguous()
        likelihood, by_latent, by_log_scale = (torch.empty_like(latents) for _ in range(3))
        ctx.step, ctx.distribution, ctx.gain_shape = step, distribution, log_gain.shape
        call(
            "code_step", rows, latents, noise, gains, decoded, likelihood, by_latent, by_log_scale, step.table,
            distribution.table, distribution.numbers, len(step.table), len(distribution.table), *rows.shape[:3],
            step.channels,
        )  # fmt: skip
        ctx.save_for_backward(rows, latents, gains, likelihood, by_latent, by_log_scale)
        return plane_of(decoded), likelihood

    @staticmethod
    def backward(ctx: Any, decoded: Tensor, likelihood: Tensor) -> tuple[Tensor | None, ...]:
        rows, latents, gains, *kept = ctx.saved_tensors
        params, packed, gain = torch.zeros_like(rows), torch.empty_like(latents), torch.zeros_like(gains)
        call(
            "code_step_backward", rows, latents, gains, *kept, likelihood.contiguous(), rows_of(decoded), params, packed,
            gain, ctx.step.table, ctx.distribution.numbers, len(ctx.step.table), *rows.shape[:3], ctx.step.channels,
        )  # fmt: skip
        # At the step's places the plane before held constant zeros: no gradient is needed there.
        return plane_of(params), decoded, packed, None, gain.view(ctx.gain_shape), None, None


def code_step(
    params: Tensor, before: Tensor, latents: Tensor, noise: Tensor, log_gain: Tensor, step: Pieces, given: Distribution
) -> tuple[Tensor, Tensor]:
    """Round a step's latents and place them in the plane of those decoded before; returns it and their likelihoods.

    params:   B×2M×h×w: log-scales and means.
    before:   B×M×h×w, zeros at the step's places.
    latents:  packed, in quantisation steps; noise: packed, uniform in [-1/2, 1/2).
    log_gain: B×M×1×1, natural logarithm of quantisation steps per unit.
    """
    result: tuple[Tensor, Tensor] = _CodeStep.apply(params, before, latents, noise, log_gain, step, given)
    return result
