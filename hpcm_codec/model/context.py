"""The context model: what `walk` computes with in floating point, in training and in the float profile.

Source: HPCM (arXiv 2507.19125), section 3; the steps are in `schedule.py`, the walk over them in `walk.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from hpcm_codec.entropy.distributions import bounded
from hpcm_codec.entropy.sigmas import LARGEST_SIGMA, SMALLEST_SIGMA
from hpcm_codec.model import schedule
from hpcm_codec.model.blocks import pointwise
from hpcm_codec.model.cells import ContextCell, ContextNet
from hpcm_codec.model.config import HyperGather, ModelConfig
from hpcm_codec.model.planes import hyper_planes
from hpcm_codec.model.priors import Prior, StepAdaptor
from hpcm_codec.model.schedule import Lattice, Scale
from hpcm_codec.model.walk import CodeStep, SymbolPort, walk


# Attributes that hold modules or parameters name the tensors of checkpoints: renaming one makes every file undecodable (CONTRIBUTING.md).
class ContextModel(nn.Module):
    """Adaptors, priors, cells and the walk that uses them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = 2 * config.latent_channels
        self.latent_channels = config.latent_channels
        self.scale_domain = config.scale_domain
        self.hyper_gather: HyperGather = config.hyper_gather
        s1, s2, s3 = schedule.scales(config.latent_channels)
        # The very first step has its parameters from the hyperprior and needs no adaptor.
        self.adaptors = nn.ModuleList(
            nn.ModuleList(StepAdaptor(config, scale.cell_size) for _ in range(count))
            for scale, count in ((s1, len(s1.steps) - 1), (s2, len(s2.steps)), (s3, len(s3.steps)))
        )
        self.prior_s12 = Prior(config, config.prior_blocks_s12)
        self.prior_s3 = Prior(config, config.prior_blocks_s3)
        self.cells = nn.ModuleList(ContextCell(channels, cell, config.use_checkpoint) for cell in config.cells)
        self.context_nets = nn.ModuleList(_context_net(config) for _ in range(2))

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
        return walk(_AtRate(self, code, rate), hyper_planes(hyper_params, self.hyper_gather), begin)

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
        net = self._network.context_nets[scale - 1]
        return pointwise(net, context) if isinstance(net, nn.Conv2d) else net(context)

    def parameters(self, scale: int, step: int, context: Tensor, latents: Tensor) -> Tensor:
        adaptor = cast(StepAdaptor, cast(nn.ModuleList, self._network.adaptors[scale])[step])
        prior = self._network.prior_s3 if scale == 2 else self._network.prior_s12
        adapted, context = adaptor(context, latents)
        return prior(adapted, adaptor.gain, context, self._rate)

    def carry(self, scale: int, params: Tensor, context: Tensor) -> Tensor:
        return self._network.cells[scale](params, context)


def _context_net(config: ModelConfig) -> nn.Module:
    """The network on a context B×2M×h×w that was brought to a finer scale."""
    channels = 2 * config.latent_channels
    if config.context_fusion is not None:
        return ContextNet(channels, config.context_fusion, config.use_checkpoint)
    net = nn.Conv2d(channels, channels, 1)
    if config.prior_residual:
        assert net.bias is not None
        nn.init.dirac_(net.weight)
        nn.init.zeros_(net.bias)
    return net
