"""The generalised Gaussian with shape 1.5: likelihoods for training, integer tables for coding.

cdf(v) = (1 + sign(v)·P(1/β, |v|^β))/2 with β = 1.5 and P the regularised lower incomplete gamma function. The
probability of the integer v at width σ (the field's scale parameter) is cdf((v+½)/σ) − cdf((v−½)/σ). For coding, σ is quantised to 64
log-spaced widths in [0.12, 64]; each has one table of 16-bit cumulative frequencies. Tables are made once, in float64,
and stored in the checkpoint: no machine computes its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hpcm_codec.entropy.sigmas import LARGEST_SIGMA, LOG_SIGMA_STEP, PRECISION_BITS, SIGMA_COUNT, SMALLEST_SIGMA
from hpcm_codec.ops import fused_rate

SHAPE = 1.5
SMALLEST_LIKELIHOOD = 1e-9
_TAIL_MASS = 2.0**-PRECISION_BITS  # the probability outside a table, both sides together, at most
_DENSITY_AT_ZERO = SHAPE / (2 * math.gamma(1 / SHAPE))


class _Survival(torch.autograd.Function):
    """1 − cdf, with the density as its derivative."""

    @staticmethod
    def forward(ctx, v: Tensor) -> Tensor:
        power = v.abs().pow(SHAPE)
        ctx.save_for_backward(power)
        tail = 0.5 * torch.special.gammaincc(power.new_full((), 1 / SHAPE), power)
        return torch.where(v < 0, 1 - tail, tail)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (power,) = ctx.saved_tensors
        return gradient * -_DENSITY_AT_ZERO * torch.exp(-power)


def likelihood(v: Tensor, sigma: Tensor) -> Tensor:
    """Probability mass of the unit interval around v (float, any shape) at that σ; differentiable in both.

    Not bounded from below: take `lower_bounded_likelihood` where a logarithm follows.
    """
    # Both bounds on the upper tail, where their difference loses no precision.
    magnitude = v.abs()
    return _Survival.apply((magnitude - 0.5) / sigma) - _Survival.apply((magnitude + 0.5) / sigma)


class _Bound(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, lowest: float, highest: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = (lowest, highest)
        return x.clamp(lowest, highest)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        lowest, highest = ctx.bounds
        blocked = ((x < lowest) & (gradient > 0)) | ((x > highest) & (gradient < 0))
        return gradient.masked_fill(blocked, 0), None, None


def bounded(x: Tensor, lowest: float, highest: float = math.inf) -> Tensor:
    """x clamped to [lowest, highest]; outside, only gradients that move x back into the range pass."""
    return _Bound.apply(x, lowest, highest)


def lower_bounded_likelihood(v: Tensor, sigma: Tensor) -> Tensor:
    """`likelihood`, at least 1e-9; below, only gradients that raise it pass."""
    return bounded(likelihood(v, sigma), SMALLEST_LIKELIHOOD)


@cache
def fused_distribution() -> fused_rate.Distribution:
    """This distribution in the form for the fused training step."""
    return fused_rate.distribution(SHAPE, (SMALLEST_SIGMA, LARGEST_SIGMA), SMALLEST_LIKELIHOOD)


def sigma_index(sigma: Tensor) -> Tensor:
    """The index (int32) of the nearest of the 64 widths, for each σ."""
    index = (sigma.log() - math.log(SMALLEST_SIGMA)) / LOG_SIGMA_STEP
    return index.round().clamp(0, SIGMA_COUNT - 1).to(torch.int32)


def sigma_of(index: Tensor) -> Tensor:
    """σ (float64) of each index: the inverse of `sigma_index`."""
    return SMALLEST_SIGMA * torch.exp(LOG_SIGMA_STEP * index.double())


@dataclass(frozen=True)
class SymbolTables:
    """Integer tables for the rANS coder, one row for each of the 64 widths.

    cumulative: int32, 64 × longest; row i starts with 0, ends with 2^16 at sizes[i]-1, padded with zeros.
                The last interval of a row is the escape: symbols outside the table, coded in full after it.
    sizes:      int32, 64: entries used in each row.
    offsets:    int32, 64: the symbol of a row's first interval.
    """

    cumulative: Tensor
    sizes: Tensor
    offsets: Tensor

    def packed(self) -> Tensor:
        """The used entries of all rows, one after the other: how a checkpoint holds `cumulative`."""
        return torch.cat([row[:size] for row, size in zip(self.cumulative, self.sizes.tolist(), strict=True)])

    @classmethod
    def from_packed(cls, cumulative: Tensor, sizes: Tensor, offsets: Tensor) -> SymbolTables:
        """The tables of a checkpoint; raises ValueError when the sizes do not add up. Padded rows (64 × longest) pass as they are."""
        if cumulative.ndim == 1:
            rows = torch.split(cumulative, sizes.tolist())
            cumulative = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        return cls(cumulative, sizes, offsets)


def build_tables() -> SymbolTables:
    """The tables of all 64 widths, in float64 on the CPU. Only ever called when a checkpoint is made."""
    sigmas = sigma_of(torch.arange(SIGMA_COUNT))
    rows, offsets = [], []
    for sigma in sigmas.tolist():
        reach = 1
        while 2 * _survival_at((reach + 0.5) / sigma) > _TAIL_MASS:
            reach += 1
        symbols = torch.arange(-reach, reach + 1, dtype=torch.float64)
        masses = likelihood(symbols, torch.full_like(symbols, sigma))
        escape = max(0.0, 1.0 - float(masses.sum()))
        rows.append(_cumulative_frequencies([*masses.tolist(), escape]))
        offsets.append(-reach)
    longest = max(map(len, rows))
    cumulative = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int32)
    sizes = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    return SymbolTables(cumulative, sizes, torch.tensor(offsets, dtype=torch.int32))


def _survival_at(v: float) -> float:
    return float(_Survival.apply(torch.tensor(v, dtype=torch.float64)))


def _cumulative_frequencies(masses: list[float]) -> list[int]:
    """Integer cumulative frequencies from 0 to 2^16 in which every interval, however unlikely, has at least one."""
    total = 1 << PRECISION_BITS
    spare = total - len(masses)
    factor = spare / sum(masses)
    frequencies = [1 + int(mass * factor) for mass in masses]
    # What is left after rounding down is given to the most likely symbol, where it changes least.
    frequencies[max(range(len(masses)), key=masses.__getitem__)] += total - sum(frequencies)
    cumulative = [0]
    for frequency in frequencies:
        cumulative.append(cumulative[-1] + frequency)
    return cumulative
