"""The walk over the coding steps: the one place where probabilities are decided, for encoder, decoder and estimator.

`walk` goes through the 11 steps once, in whatever arithmetic it is given. At each step it knows the scales and means of the step's
latents and asks a *symbol port* to exchange them for symbols: the encoder's port quantises the true latents and codes
them, the decoder's reads them, the estimator's adds up likelihoods. Nothing else differs between the three.
Source: HPCM (arXiv 2507.19125), section 3; the steps are in `schedule.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from hpcm_codec.entropy.distributions import LARGEST_SIGMA, SMALLEST_SIGMA, bounded
from hpcm_codec.model import schedule
from hpcm_codec.model.blocks import pointwise
from hpcm_codec.model.cells import ContextCell
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.priors import Prior, StepAdaptor
from hpcm_codec.model.schedule import Lattice, Scale

Planes = tuple[Tensor, Tensor, Tensor]
CodeStep = Callable[[Lattice, Tensor, Tensor], Tensor]  # (step, params, latents) → latents, as `Arithmetic.code`


class SymbolPort(Protocol):
    """One end of the entropy coder, as the walk sees it: the encoder's, the decoder's or the estimator's."""

    def begin(self, scale: Scale, number: int) -> None:
        """Called before each step, coarse to fine; number counts a scale's steps from 1."""

    def exchange(self, step: Lattice, sigma: Tensor, mean: Tensor) -> Tensor:
        """Code a step's latents; returns their symbols, B×n: the rounded differences of latents and means, packed as `step` packs them.

        sigma: B×n, of the distributions: from the walk in floating point their widths σ within [0.12, 64], from the walk in integers
               the indexes of their tables (int32).
        mean:  B×n, floating point, in quantisation steps. A decoder does not need it.
        The symbols are whole numbers, int32 or of the means' type.
        """


class Arithmetic(Protocol):
    """What the walk computes with: the layers in floating point (`ContextModel`) or in integers (`engines.exact.network`).

    Planes are (…, C, h, w). Scales are numbered 0, 1, 2 for s1, s2, s3; `step` counts a scale's steps that have an adaptor.
    """

    def no_latents(self, context: Tensor) -> Tensor:
        """A plane of M channels of zeros, as large as the context's."""

    def enter(self, scale: int, context: Tensor) -> Tensor:
        """The network between two scales, on the context brought to the finer one."""

    def parameters(self, scale: int, step: int, context: Tensor, latents: Tensor) -> Tensor:
        """Scales and means of a step's latents, from the context and the latents decoded so far."""

    @property
    def code(self) -> CodeStep:
        """(step, params, latents) → the latents with those of the step decoded."""

    def carry(self, scale: int, params: Tensor, context: Tensor) -> Tensor:
        """The context for the next step."""


def walk(arithmetic: Arithmetic, planes: Planes, begin: Callable[[Scale, int], None]) -> Tensor:
    """Go through all coding steps; returns the decoded latents (…, M, h, w).

    planes: the hyperprior's parameters on s1, s2 and s3 (see `hyper_planes`); begin: `SymbolPort.begin`. What leads from one scale to the
    next belongs to the first step of the finer one.
    """
    context = planes[0]
    latents = arithmetic.no_latents(context)
    scales = schedule.scales(latents.shape[-3])
    for number, scale in enumerate(scales):
        begin(scale, 1)
        if number > 0:
            inside = scales[number - 1].inside
            assert inside is not None
            context = arithmetic.enter(number, _refine(inside, context, planes[number]))
            latents = inside.place(latents, arithmetic.no_latents(context))
        first = 1 if number == 0 else 0
        if first:
            # The very first step has its parameters from the hyperprior.
            latents = arithmetic.code(scale.steps[0], context, latents)
        for index, step in enumerate(scale.steps[first:]):
            if first + index > 0:
                begin(scale, first + index + 1)
            params = arithmetic.parameters(number, index, context, latents)
            latents = arithmetic.code(step, params, latents)
            if step is not scales[-1].steps[-1]:
                context = arithmetic.carry(number, params, context)
    return latents


def _refine(inside: Lattice, coarse: Tensor, fine: Tensor) -> Tensor:
    """Scatter a coarser context into the finer plane of parameters."""
    halves = (2, coarse.shape[-3] // 2)
    placed = inside.place(coarse.unflatten(-3, halves), fine.unflatten(-3, halves).to(coarse.dtype))
    return placed.flatten(-4, -3)


def hyper_planes(hyper_params: Tensor, latent_channels: int, gather: str = "aligned") -> Planes:
    """The hyperprior's parameters (…, 2M, h, w) on the planes of s1, s2 and s3."""
    s1, s2, _ = schedule.scales(latent_channels)
    assert s1.inside is not None and s2.inside is not None
    full = hyper_params.unflatten(-3, (2, latent_channels))
    on_s2 = s2.inside.take(full)
    on_s1 = s1.inside.take(on_s2)
    if gather == "published":
        on_s2 = published_s2_gather(full, on_s2)
    return on_s1.flatten(-4, -3), on_s2.flatten(-4, -3), hyper_params


# Attributes that hold modules or parameters name the tensors of checkpoints: renaming one makes every file undecodable (CONTRIBUTING.md).
class ContextModel(nn.Module):
    """Adaptors, priors, cells and the walk that uses them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = 2 * config.latent_channels
        self.latent_channels = config.latent_channels
        self.scale_domain = config.scale_domain
        self.hyper_gather = config.hyper_gather
        s1, s2, s3 = schedule.scales(config.latent_channels)
        # The very first step has its parameters from the hyperprior and needs no adaptor.
        self.adaptors = nn.ModuleList(
            nn.ModuleList(StepAdaptor(config, scale.cell_size) for _ in range(count))
            for scale, count in ((s1, len(s1.steps) - 1), (s2, len(s2.steps)), (s3, len(s3.steps)))
        )
        self.prior_s12 = Prior(config, config.prior_blocks_s12)
        self.prior_s3 = Prior(config, config.prior_blocks_s3)
        self.cells = nn.ModuleList(ContextCell(channels, cell, config.use_checkpoint) for cell in config.cells)
        self.context_nets = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(2))
        if config.prior_residual:
            for net in self.context_nets:
                assert isinstance(net, nn.Conv2d) and net.bias is not None
                nn.init.dirac_(net.weight)
                nn.init.zeros_(net.bias)

    def code_latents(
        self, hyper_params: Tensor, port: SymbolPort, rate: Tensor, log_gain: Tensor | None = None
    ) -> Tensor:
        """Walk all steps and return the decoded latents B×M×h×w.

        hyper_params: B×2M×h×w, h and w multiples of 4, from the hyper synthesis.
        rate:         level weights B×L.
        log_gain:     B×M×1×1, natural logarithm of quantisation steps per unit of latent; None means 0 (fixed rate).
        """

        def code(step: Lattice, params: Tensor, latents: Tensor) -> Tensor:
            return self.code_step(step, params, latents, port, log_gain)

        return self.walk_with(hyper_params, code, port.begin, rate)

    def walk_with(
        self, hyper_params: Tensor, code: CodeStep, begin: Callable[[Scale, int], None], rate: Tensor
    ) -> Tensor:
        """`code_latents` with another way to code a step: `ops.fused_rate` does all of it in one operation."""
        planes = hyper_planes(hyper_params, self.latent_channels, self.hyper_gather)
        return walk(_AtRate(self, code, rate), planes, begin)

    def code_step(
        self, step: Lattice, params: Tensor, latents: Tensor, port: SymbolPort, log_gain: Tensor | None
    ) -> Tensor:
        """Code one step and return the latents B×M×h×w with the step's positions filled in.

        params: B×2M×h×w, σ (or its logarithm) and means before any gain.
        """
        sigma, mean = params.to(torch.promote_types(params.dtype, torch.float32)).chunk(2, dim=1)
        if log_gain is not None:
            mean = mean * log_gain.exp()
        if self.scale_domain == "log":
            shifted = sigma if log_gain is None else sigma + log_gain
            sigma = step.take(shifted)
            sigma = bounded(sigma, math.log(SMALLEST_SIGMA), math.log(LARGEST_SIGMA)).exp()
        else:
            sigma = bounded(step.take(sigma), SMALLEST_SIGMA, LARGEST_SIGMA)
        means = step.take(mean)
        decoded = step.place(port.exchange(step, sigma, means).to(means.dtype) + means, torch.zeros_like(mean))
        if log_gain is not None:
            decoded = decoded * (-log_gain).exp()
        return latents + decoded


class _AtRate:
    """The network's arithmetic in floating point, at one rate."""

    def __init__(self, network: ContextModel, code: CodeStep, rate: Tensor) -> None:
        self._network, self._rate = network, rate
        self.code = code

    def no_latents(self, context: Tensor) -> Tensor:
        return torch.zeros_like(context[:, : self._network.latent_channels])  # with the context's order in memory

    def enter(self, scale: int, context: Tensor) -> Tensor:
        return pointwise(cast(nn.Conv2d, self._network.context_nets[scale - 1]), context)

    def parameters(self, scale: int, step: int, context: Tensor, latents: Tensor) -> Tensor:
        adaptor = cast(StepAdaptor, cast(nn.ModuleList, self._network.adaptors[scale])[step])
        prior = self._network.prior_s3 if scale == 2 else self._network.prior_s12
        return prior(adaptor(context, latents), adaptor.gain, context, self._rate)

    def carry(self, scale: int, params: Tensor, context: Tensor) -> Tensor:
        return self._network.cells[scale](params, context)


# What the published code leaves out of the 4×4 cell for the groups 0..7 when it gathers the hyperprior for s2.
_PUBLISHED_LEFT_OUT = ((0, 0), (1, 1), (0, 1), (1, 0), (0, 2), (1, 3), (0, 3), (1, 2))


@lru_cache(maxsize=16)
def _published_indices(height: int, width: int, group: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Flat source positions in the full plane and target positions in the s2 plane, for one channel group."""
    row, column = schedule.S2_OFFSETS[group % 4]
    skip_row, skip_column = _PUBLISHED_LEFT_OUT[group]
    coded = schedule.S1_OFFSETS[group // 2]
    source = [
        i * width + j
        for i in range(row, height, 2)
        for j in range(column, width, 2)
        if (i % 4, j % 4) != (skip_row, skip_column)
    ]
    target = [i * (width // 2) + j for i in range(height // 2) for j in range(width // 2) if (i % 2, j % 2) != coded]
    return torch.tensor(source, device=device), torch.tensor(target, device=device)


def published_s2_gather(full: Tensor, on_s2: Tensor) -> Tensor:
    """The published code's misplaced gather of the hyperprior for s2, for weights that were trained with it.

    full: B×2×M×h×w; on_s2: the aligned gather, B×2×M×h/2×w/2. Positions that s1 has coded keep the aligned values
    (nothing reads them); the others receive, in row-major order over the whole plane, what the published table leaves.
    """
    group = full.shape[2] // schedule.GROUPS
    out = on_s2.clone()
    for index in range(schedule.GROUPS):
        source, target = _published_indices(full.shape[-2], full.shape[-1], index, full.device)
        channels = slice(index * group, (index + 1) * group)
        values = full[:, :, channels].flatten(-2).index_select(-1, source)
        out[:, :, channels].flatten(-2).index_copy_(-1, target, values)
    return out
