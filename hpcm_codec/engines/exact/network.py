"""From decoded hyper-latents to table indexes and means in integers: the hyper synthesis and the context model, layer by layer.

`ExactNetwork` holds the integer layers made of a trained HPCM; `ExactNetwork.at` adds the integers of one quality. The walk over the
coding steps is `model.context.walk`, the same as in floating point. Planes are int16, C×h×w views of channels-last memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from hpcm_codec.engines.exact.layers import interpolated, level_position
from hpcm_codec.engines.exact.modules import (
    Fractions,
    HyperSynthesis,
    IntegerAdaptor,
    IntegerAttentionCell,
    IntegerPrior,
    IntegerRWKVCell,
    Linear,
    Units,
)
from hpcm_codec.entropy.distributions import LOG_SIGMA_STEP, SIGMA_COUNT, SMALLEST_SIGMA
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model.cells import CrossAttentionCell, RWKVContextCell
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.context import ContextModel, SymbolPort, hyper_planes, walk
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.priors import StepAdaptor
from hpcm_codec.model.schedule import Lattice
from hpcm_codec.ops.integer import EXP_SHIFT, round_shift, saturate
from hpcm_codec.ops.integer_tables import LOG2_SHIFT, IntegerTables, log2_fixed, power_of_two
from hpcm_codec.ops.powers import times_power_of_two

SCALE_FRACTION = 10  # logarithmic scales in context planes are in units of 2^-10
FINE_BITS = 6  # decoded latents carry this many bits more than the context sees
HYPER_MEAN_FRACTION = 8
# The table index of a logarithmic scale v, in units of 2^-10, is round((v/1024 − ln 0.12) / δ) with δ = ln(64/0.12)/63.
_INDEX_OFFSET, _INDEX_MULTIPLIER, _INDEX_SHIFT = 2171, 642, 16
assert abs(_INDEX_OFFSET + math.log(SMALLEST_SIGMA) * (1 << SCALE_FRACTION)) < 1
assert abs(_INDEX_MULTIPLIER - (1 << _INDEX_SHIFT) / (LOG_SIGMA_STEP * (1 << SCALE_FRACTION))) < 1


def refuse_unsupported(config: ModelConfig) -> None:
    """Raise UnsupportedError unless the exact profile can evaluate such a model."""
    narrow = all(cell.residual and cell.width not in (None, 2 * config.latent_channels) for cell in config.cells)
    if not (config.scale_domain == "log" and config.rate_levels > 1 and config.prior_residual and config.residual_factors and narrow
            and config.transform == "patch" and config.hyper_gather == "aligned"):  # fmt: skip
        raise UnsupportedError(
            f"the exact profile does not cover models like {config.name}",
            advice="it needs logarithmic scales, several rates, and residual priors and cells; use the float profile",
        )


@dataclass(frozen=True)
class QualityIntegers:
    """What one quality adds, int64 per channel: see `ExactNetwork.at`."""

    log_gain: Tensor
    inverse_gain: Tensor
    hyper_indexes: Tensor
    hyper_mean: Tensor
    hyper_inverse_gain: Tensor


class ExactNetwork:
    """The integer layers of a model. Raises UnsupportedError for models or weights that the exact profile does not cover.

    model:     in evaluation mode, with the checkpoint's float16 weights in float32.
    fractions: the units of every activation, from the checkpoint (`engines.exact.export` finds them).
    """

    def __init__(self, model: HPCM, fractions: Fractions, tables: IntegerTables) -> None:
        refuse_unsupported(model.config)
        assert model.rate_control is not None
        self.config, self.tables = model.config, tables
        units = Units(fractions)
        latents = units.fraction("latents")
        context = torch.cat((torch.full_like(latents, SCALE_FRACTION), latents))
        network: ContextModel = model.context
        self.latent_fraction = latents
        self.hyper_fraction = units.fraction("h_s")
        self.hyper_synthesis = HyperSynthesis(units, model.h_s, context)
        self.context_nets = [
            Linear(net, context, context, f"context.context_nets.{i}") for i, net in enumerate(network.context_nets)
        ]
        self.prior_s12 = IntegerPrior(units, network.prior_s12, context, "context.prior_s12")
        self.prior_s3 = IntegerPrior(units, network.prior_s3, context, "context.prior_s3")
        both = torch.cat((context, latents))
        streams = self.prior_s12.stream, self.prior_s12.stream, self.prior_s3.stream
        self.adaptors = [
            [
                IntegerAdaptor(cast(StepAdaptor, adaptor), both, streams[scale], f"context.adaptors.{scale}.{step}")
                for step, adaptor in enumerate(cast(nn.ModuleList, adaptors))
            ]
            for scale, adaptors in enumerate(network.adaptors)
        ]
        self.cells: list[IntegerAttentionCell | IntegerRWKVCell] = []
        for i, cell in enumerate(network.cells):
            inner, name = cell.inner, f"context.cells.{i}.inner"
            if isinstance(inner, CrossAttentionCell):
                self.cells.append(IntegerAttentionCell(units, inner, context, name, tables))
            else:
                self.cells.append(IntegerRWKVCell(units, cast(RWKVContextCell, inner), context, name, tables))
        # Rate-dependent values: logarithms in three units, for table indexes, for powers of two, and means.
        control = model.rate_control
        self._log_gain = _fixed(control.log_gain, SCALE_FRACTION)
        self._log2_gain = log2_fixed(control.log_gain)
        self._hyper_log2_gain = log2_fixed(control.log_hyper_gain)
        self._hyper_log_scale = _fixed(model.hyper_scale.level_values, SCALE_FRACTION)
        self._hyper_mean = _fixed(model.hyper_mean.level_values, HYPER_MEAN_FRACTION)

    def position(self, quality_code: int) -> Tensor:
        """A quality code 0 … 200 as the network's methods take it, a `level_position` on its device."""
        return level_position(quality_code, self.config.rate_levels).to(self.latent_fraction.device)

    def at(self, position: Tensor) -> QualityIntegers:
        """The integers of a quality: log gain (2^-10), inverse gain (2^-14, from a quantisation step to units of decoded
        latents), table indexes, means (2^-8) and inverse gains (2^-14) of the hyper-latents."""
        latent_unit = (self.latent_fraction + FINE_BITS) << LOG2_SHIFT
        hyper_unit = (self.hyper_fraction - HYPER_MEAN_FRACTION) << LOG2_SHIFT
        return QualityIntegers(
            interpolated(self._log_gain, position),
            power_of_two(latent_unit - interpolated(self._log2_gain, position), self.tables),
            index_of(interpolated(self._hyper_log_scale, position)),
            interpolated(self._hyper_mean, position),
            power_of_two(hyper_unit - interpolated(self._hyper_log2_gain, position), self.tables),
        )

    def latent_gain(self, position: Tensor) -> Tensor:
        """What an encoder multiplies latents with before rounding, float32 1×M×1×1: quantisation steps per unit of latent."""
        gain = self.steps_per_unit(self.at(position), torch.zeros_like(self.latent_fraction))
        return gain[None, :, None, None]

    def steps_per_unit(self, quality: QualityIntegers, fraction: Tensor) -> Tensor:
        """Quantisation steps in units of 2^-fraction, float32 M: the inverse of `inverse_gain`, for an encoder's rounding only."""
        unit = self.latent_fraction + FINE_BITS + EXP_SHIFT - fraction
        return times_power_of_two(1 / quality.inverse_gain.double(), unit).float()

    def hyper_distribution(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Table indexes (int32) and means (float32, in quantisation steps) of the hyper-latents, 1×N×1×1 each."""
        quality = self.at(position)
        mean = times_power_of_two(quality.hyper_mean.float(), -HYPER_MEAN_FRACTION)
        return quality.hyper_indexes[None, :, None, None], mean[None, :, None, None]

    def to(self, device: torch.device) -> ExactNetwork:
        """Move every integer to a device; returns itself."""
        if device.type != "cpu":
            _move(self, device)
        return self

    def code_latents(self, hyper_symbols: Tensor, position: Tensor, port: SymbolPort) -> Tensor:
        """The walk over all steps from decoded hyper-symbols to decoded latents, shared by all ports.

        hyper_symbols: int32 1×N×h/4×w/4. Returns float32 1×M×h×w, in units of latents: the same numbers on every machine.
        """
        quality = self.at(position)
        symbols = hyper_symbols[0].permute(1, 2, 0).long()
        in_units = ((symbols << HYPER_MEAN_FRACTION) + quality.hyper_mean) * quality.hyper_inverse_gain
        params = self.hyper_synthesis(saturate(round_shift(in_units, EXP_SHIFT)), position)
        at_quality = _AtQuality(self, port, position, quality)
        planes = hyper_planes(params.permute(2, 0, 1), self.config.latent_channels)
        latents = walk(at_quality, planes, port.begin)
        exponent = -(self.latent_fraction + FINE_BITS)
        return times_power_of_two(latents.float(), exponent[:, None, None])[None]


class _AtQuality:
    """The network's arithmetic in integers, at one quality and with one port. Latents are int32, with FINE_BITS more than the context's."""

    def __init__(self, network: ExactNetwork, port: SymbolPort, position: Tensor, quality: QualityIntegers) -> None:
        self._network, self._port, self._position, self._quality = network, port, position, quality
        self._mean_unit = network.steps_per_unit(quality, network.latent_fraction)

    def no_latents(self, context: Tensor) -> Tensor:
        half = context[: self._network.config.latent_channels]
        return torch.zeros_like(half, dtype=torch.int32)

    def enter(self, scale: int, context: Tensor) -> Tensor:
        return _plane(self._network.context_nets[scale - 1](_tokens(context)))

    def parameters(self, scale: int, step: int, context: Tensor, latents: Tensor) -> Tensor:
        network, tokens = self._network, _tokens(context)
        prior = network.prior_s3 if scale == 2 else network.prior_s12
        adaptor = network.adaptors[scale][step]
        coarse = saturate(round_shift(_tokens(latents), FINE_BITS))
        gain = interpolated(adaptor.gain, self._position).to(torch.int16)
        return _plane(prior(adaptor(tokens, coarse), gain, tokens, self._position))

    def code(self, step: Lattice, params: Tensor, latents: Tensor) -> Tensor:
        channels, height, width = latents.shape
        scale, mean = (step.take(half) for half in params.unflatten(0, (2, channels)))
        of_step = _PerChannel(step, height, width)
        indexes = index_of(scale.long() + of_step(self._quality.log_gain))
        symbols = self._port.exchange(step, indexes, mean.float() * of_step(self._mean_unit))
        decoded = round_shift(symbols.long() * of_step(self._quality.inverse_gain), EXP_SHIFT)
        decoded = decoded + (mean.long() << FINE_BITS)
        return step.place(decoded.clamp(-(2**30), 2**30).to(torch.int32), latents)

    def carry(self, scale: int, params: Tensor, context: Tensor) -> Tensor:
        return _plane(self._network.cells[scale](_tokens(params), _tokens(context)))


def _move(owner: object, device: torch.device) -> None:
    """Move the tensors an object of this package holds, however deep."""
    if isinstance(owner, list):
        for member in owner:
            _move(member, device)
    elif type(owner).__module__.startswith("hpcm_codec.") and hasattr(owner, "__dict__"):
        for name, value in list(vars(owner).items()):
            if isinstance(value, Tensor):
                object.__setattr__(owner, name, value.to(device))  # weights are frozen dataclasses
            else:
                _move(value, device)


class _PerChannel:
    """Values of channels, packed as a step packs its latents."""

    def __init__(self, step: Lattice, height: int, width: int) -> None:
        self._step, self._size = step, (height, width)

    def __call__(self, values: Tensor) -> Tensor:
        return self._step.take(values[:, None, None].expand(-1, *self._size))


def index_of(log_scale: Tensor) -> Tensor:
    """The table index (int32) of a logarithmic scale in units of 2^-10 (int64): the nearest of the 64 log-spaced widths."""
    level = round_shift((log_scale + _INDEX_OFFSET) * _INDEX_MULTIPLIER, _INDEX_SHIFT)
    return level.clamp(0, SIGMA_COUNT - 1).to(torch.int32)


def _fixed(values: Tensor, fraction: int) -> Tensor:
    return times_power_of_two(values.double(), fraction).round().long()


def _tokens(plane: Tensor) -> Tensor:
    """C×h×w → h×w×C, contiguous."""
    return plane.permute(1, 2, 0).contiguous()


def _plane(tokens: Tensor) -> Tensor:
    """h×w×C → C×h×w, a view."""
    return tokens.permute(2, 0, 1)
