"""The exact profile's network: all of a codec between pixels and table indexes in integers, layer by layer.

`ExactNetwork` holds the integer layers; `ExactNetwork.at` adds the integers of one quality. The walk over the coding steps is
`model.walk.walk`, the same as in floating point. Arrays are numpy's, which the compiled operators take, or after `to` tensors. Planes are
int16 h×w×C; where the walk wants C×h×w, views of such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.engines.exact.layers import Fractions, LayerMaker, Longs, Reals, fixed, interpolated, level_position
from hpcm_codec.engines.exact.modules import IntegerAdaptor, IntegerAttentionCell, IntegerContextConv, IntegerPrior
from hpcm_codec.engines.exact.rwkv import IntegerFusion
from hpcm_codec.engines.exact.transforms import (
    GAIN_SHIFT,
    Analysis,
    HyperAnalysis,
    HyperSynthesis,
    Synthesis,
    refuse_coarse,
)
from hpcm_codec.engines.exact.weights import Weights
from hpcm_codec.entropy.sigmas import LOG_SIGMA_STEP, SIGMA_COUNT, SMALLEST_SIGMA
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model import schedule
from hpcm_codec.model.config import CellConfig, ModelConfig
from hpcm_codec.model.planes import hyper_planes
from hpcm_codec.model.schedule import Lattice
from hpcm_codec.model.walk import SymbolPort, walk
from hpcm_codec.ops import integer, integer_native
from hpcm_codec.ops.integer import EXP_SHIFT, WIDE, Array, LinearScales, LogScales, Scales, round_shift
from hpcm_codec.ops.integer_tables import LOG2_SHIFT, THRESHOLD_FRACTION, StoredFunctions, log2_fixed, power_of_two

SCALE_FRACTION = 10  # logarithmic scales in context planes are in units of 2^-10
FINE_BITS = 6  # decoded latents carry this many bits more than the context sees
HYPER_MEAN_FRACTION = 8
# The table index of a logarithmic scale v, in units of 2^-10, is round((v/1024 − ln 0.12) / δ) with δ = ln(64/0.12)/63.
_INDEX_OFFSET, _INDEX_MULTIPLIER, _INDEX_SHIFT = 2171, 642, 16
assert abs(_INDEX_OFFSET + math.log(SMALLEST_SIGMA) * (1 << SCALE_FRACTION)) < 1
assert abs(_INDEX_MULTIPLIER - (1 << _INDEX_SHIFT) / (LOG_SIGMA_STEP * (1 << SCALE_FRACTION))) < 1


def can_compile(config: ModelConfig) -> bool:
    """Whether the compiled operators do all that such a model needs."""
    attention = (cell for cell in config.cells if cell.kind == "cross-attention")
    context = 2 * config.latent_channels
    return all(integer_native.can_attend(cell.width or context, cell.heads, cell.window) for cell in attention)


@dataclass(frozen=True)
class QualityIntegers:
    """What one quality adds, int64 per channel: see `ExactNetwork.at`."""

    scales: Scales
    inverse_gain: Array
    hyper_indexes: Array
    hyper_mean: Array
    hyper_inverse_gain: Array


class ExactNetwork:
    """The integer layers of a model. Raises UnsupportedError for weights that integers do not hold, or without their units.

    weights:   the checkpoint's, float16 or packed.
    fractions: the units of every activation, from the checkpoint (`engines.exact.export` finds them).
    compiled:  for the compiled operators and by them, which must be there; else for tensors (see `to`).
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, fractions: Fractions, functions: StoredFunctions, *, compiled: bool
    ) -> None:
        make = LayerMaker(weights, fractions, compiled=compiled)
        functions = StoredFunctions(**vars(functions))  # our own, which `to` may change
        self.config, self.functions, self._make = config, functions, make
        self.compiled = compiled
        self.has_transforms = "g_s" in fractions
        latents = make.fraction("latents")
        self.linear = config.scale_domain == "linear"
        scales = make.fraction("scales") if self.linear else np.full_like(latents, SCALE_FRACTION)
        context = np.concatenate((scales, latents))
        self.latent_fraction: Array = latents
        self.hyper_fraction: Array = make.fraction("h_s")
        self._power: Array = functions.power.astype(np.int64)
        self.hyper_synthesis = HyperSynthesis(make, config, context)
        self.context_nets = [self._context_net(context, f"context.context_nets.{i}") for i in range(2)]
        self.prior_s12, self.prior_s3 = (
            IntegerPrior(make, config, blocks, context, f"context.{name}", functions)
            for name, blocks in (("prior_s12", config.prior_blocks_s12), ("prior_s3", config.prior_blocks_s3))
        )
        both = np.concatenate((context, latents))
        self.adaptors = [
            [
                IntegerAdaptor(make, both, make.fraction(stream), f"context.adaptors.{number}.{step}")
                for step in range(len(scale.steps) - (number == 0))  # the first has its parameters from the hyperprior
            ]
            for number, (scale, stream) in enumerate(zip(schedule.scales(len(latents)), _STREAMS, strict=True))
        ]
        self.cells = [self._cell(cell, context, f"context.cells.{i}.inner") for i, cell in enumerate(config.cells)]
        # Rate-dependent values: logarithms in three units, for table indexes, for powers of two, and means.
        log_gain = self._of_rates("log_gain", config.latent_channels)
        self._log_gain: Array = fixed(log_gain, SCALE_FRACTION)
        self._log2_gain: Array = log2_fixed(log_gain)
        self._log2_correction: Array = log2_fixed(self._of_rates("log_inverse_correction", config.latent_channels))
        self._hyper_log2_gain: Array = log2_fixed(self._of_rates("log_hyper_gain", config.hyper_channels))
        hyper_scale = make.real("hyper_scale.level_values")
        self._hyper_scale: Array = fixed(hyper_scale, THRESHOLD_FRACTION if self.linear else SCALE_FRACTION)
        self._hyper_mean: Array = fixed(make.real("hyper_mean.level_values"), HYPER_MEAN_FRACTION)
        self._scale_shift: Array = THRESHOLD_FRACTION - scales
        self.device: Any = None  # of torch, after `to`
        if self.linear and functions.thresholds is None:
            raise UnsupportedError(
                "the checkpoint has no thresholds of linear scales", advice="export it again with --exact"
            )

    def _context_net(self, context: Longs, name: str) -> IntegerContextConv | IntegerFusion:
        if self.config.context_fusion is None:
            return IntegerContextConv(self._make, context, name)
        return IntegerFusion(self._make, 1, context, name, self.functions, residual=True)

    def _cell(self, cell: CellConfig, context: Longs, name: str) -> IntegerAttentionCell | IntegerFusion:
        if cell.kind == "cross-attention":
            return IntegerAttentionCell(self._make, cell, context, name, self.functions)
        return IntegerFusion(self._make, 2, context, name, self.functions, residual=cell.residual)

    def _of_rates(self, name: str, channels: int) -> Reals:
        """Logarithms L×C of the rate control; zeros in a model of one rate, which has none."""
        if self.config.rate_levels == 1:
            return np.zeros((1, channels))
        return self._make.real(f"rate_control.{name}")

    # ---- transforms, which are made when they are first needed: an encoder needs two of them, a decoder one

    @cached_property
    def analysis(self) -> Analysis:
        return self._moved(Analysis(self._make, self.config))

    @cached_property
    def hyper_analysis(self) -> HyperAnalysis:
        return self._moved(HyperAnalysis(self._make, self.config))

    @cached_property
    def synthesis(self) -> Synthesis:
        made = Synthesis(self._make, self.config)
        refuse_coarse(self._make.fraction("latents"), made.fraction, FINE_BITS)
        return self._moved(made)

    def make_transforms(self) -> None:
        """Make all of them now; raises UnsupportedError for weights that integers do not hold."""
        _ = self.analysis, self.hyper_analysis, self.synthesis

    def analyse(self, pixels: NDArray[np.uint8], position: Array) -> Array:
        """Pixels 16h×16w×3 (or ×1) → latents int16 h×w×M, in the units of `g_a`; the same at every position."""
        return self.analysis(pixels, position)

    def hyper_latents(self, latents: Array, position: Array) -> Array:
        """The hyper-latents of `analyse`'s latents, int16 h/4×w/4×N, in the units of `h_a`."""
        return self.hyper_analysis(latents, position)

    def synthesise(self, latents: Array, position: Array, area: tuple[int, int, int, int], grey: bool) -> Any:
        """Decoded latents int32 h×w×M → numpy pixels of the area (top, left, height, width), uint8 ×3, or ×1 for grey."""
        synthesis = self.synthesis
        change = (synthesis.fraction - self.latent_fraction - FINE_BITS + GAIN_SHIFT - EXP_SHIFT) << LOG2_SHIFT
        gain = power_of_two(change + interpolated(self._log2_correction, position), self._power)
        return synthesis(integer.rescale(latents, gain, GAIN_SHIFT, WIDE), position, area, grey)

    # ---- qualities

    def position(self, quality_code: int) -> Array:
        """A quality code 0 … 200 as the network's methods take it, a `level_position`, where the network is."""
        return self._moved(level_position(quality_code, self.config.rate_levels))

    def at(self, position: Array) -> QualityIntegers:
        """The integers of a quality: what scales' indexes are, inverse gain (2^-14, from a quantisation step to units of decoded
        latents), table indexes, means (2^-8) and inverse gains (2^-14) of the hyper-latents."""
        latent_unit = (self.latent_fraction + FINE_BITS) << LOG2_SHIFT
        hyper_unit = (self.hyper_fraction - HYPER_MEAN_FRACTION) << LOG2_SHIFT
        scales = self._scales(interpolated(self._log_gain, position), self._scale_shift)
        hyper_scale = interpolated(self._hyper_scale, position)
        return QualityIntegers(
            scales,
            power_of_two(latent_unit - interpolated(self._log2_gain, position), self._power),
            integer.index_of(hyper_scale, self._scales(hyper_scale * 0, hyper_scale * 0)),
            interpolated(self._hyper_mean, position),
            power_of_two(hyper_unit - interpolated(self._hyper_log2_gain, position), self._power),
        )

    def _scales(self, log_gain: Array, shift: Array) -> Scales:
        """How scales give table indexes. log_gain: of logarithms, in units of 2^-10; shift: of linear scales, to the thresholds' units."""
        if self.linear:
            return LinearScales(self.functions.thresholds, shift)
        return log_scales(log_gain)

    def steps_per_unit(self, quality: QualityIntegers, fraction: Array) -> Array:
        """Quantisation steps in units of 2^-fraction, float32 M: the inverse of `inverse_gain`, for an encoder's rounding only."""
        return integer.inverse(quality.inverse_gain, self.latent_fraction + FINE_BITS + EXP_SHIFT - fraction)

    def latent_gain(self, position: Array) -> Array:
        """What an encoder multiplies real latents with before rounding, float32 1×M×1×1: quantisation steps per unit of latent."""
        return self.steps_per_unit(self.at(position), self.latent_fraction * 0)[None, :, None, None]

    def hyper_steps_per_unit(self, quality: QualityIntegers, fraction: Array) -> Array:
        """The same of the hyper-latents, float32 N."""
        unit = self.hyper_fraction - HYPER_MEAN_FRACTION + EXP_SHIFT
        return integer.inverse(quality.hyper_inverse_gain, unit - fraction)

    def hyper_distribution(self, position: Array) -> tuple[Array, Array]:
        """Table indexes (int64) and means (float32, in quantisation steps) of the hyper-latents, 1×N×1×1 each."""
        quality = self.at(position)
        mean = integer.real(quality.hyper_mean) * 2.0**-HYPER_MEAN_FRACTION
        return quality.hyper_indexes[None, :, None, None], mean[None, :, None, None]

    # ---- the walk

    def code_latents(self, hyper_symbols: Array, position: Array, port: SymbolPort) -> Array:
        """The walk over all steps from decoded hyper-symbols to decoded latents, shared by all ports.

        hyper_symbols: int32 1×N×h/4×w/4. Returns int32 h×w×M, in units of 2^-(latents' fraction + FINE_BITS).
        """
        quality = self.at(position)
        symbols = integer.as_int64(integer.channels_last(hyper_symbols[0]))
        in_units = ((symbols << HYPER_MEAN_FRACTION) + quality.hyper_mean) * quality.hyper_inverse_gain
        limited = round_shift(in_units, EXP_SHIFT).clip(-integer.LIMIT, integer.LIMIT)
        params = self.hyper_synthesis(integer.narrow(limited), position)
        planes = hyper_planes(integer.channels_first(params), self.config.hyper_gather)
        return integer.channels_last(walk(_AtQuality(self, port, position, quality), planes, port.begin))

    def real_latents(self, latents: Array) -> Array:
        """Decoded latents as float32 1×M×h×w, in units of latents: the same numbers on every machine."""
        values = integer.scaled(latents, -(self.latent_fraction + FINE_BITS))
        return integer.channels_first(values)[None]

    # ---- tensors

    def to(self, device: Any) -> ExactNetwork:
        """Turn all arrays into tensors on a torch device; returns itself, which must not have been made compiled."""
        self.device = device
        _move(self, device)
        return self

    def _moved(self, owner: Any) -> Any:
        return owner if self.device is None else _move(owner, self.device)


_STREAMS = ("context.prior_s12", "context.prior_s12", "context.prior_s3")


class _AtQuality:
    """The network's arithmetic in integers, at one quality and with one port. Latents are int32, with FINE_BITS more than the context's."""

    def __init__(self, network: ExactNetwork, port: SymbolPort, position: Array, quality: QualityIntegers) -> None:
        self._network, self._port, self._position, self._quality = network, port, position, quality
        self._mean_unit = network.steps_per_unit(quality, network.latent_fraction)

    def no_latents(self, context: Array) -> Array:
        channels, height, width = context.shape
        return integer.channels_first(integer.zeros((height, width, channels // 2), "int32", like=context))

    def enter(self, scale: int, context: Array) -> Array:
        return _plane(self._network.context_nets[scale - 1](_tokens(context)))

    def parameters(self, scale: int, step: int, context: Array, latents: Array) -> Array:
        network, tokens = self._network, _tokens(context)
        prior = network.prior_s3 if scale == 2 else network.prior_s12
        adaptor = network.adaptors[scale][step]
        coarse = integer.rescale(_tokens(latents), None, FINE_BITS)
        gain = integer.narrow(interpolated(adaptor.gain, self._position))
        return _plane(prior(adaptor(tokens, coarse), gain, tokens, self._position))

    def code(self, step: Lattice, params: Array, latents: Array) -> Array:
        quality = self._quality
        levels, means, real = integer.step_parameters(step, _tokens(params), quality.scales, self._mean_unit)
        symbols = self._port.exchange(step, levels, real)
        return _plane(integer.decoded(step, symbols, means, quality.inverse_gain, _tokens(latents), FINE_BITS))

    def carry(self, scale: int, params: Array, context: Array) -> Array:
        return _plane(self._network.cells[scale](_tokens(params), _tokens(context)))


def log_scales(gain: Array) -> LogScales:
    """The table index of a logarithmic scale in units of 2^-10, to which `gain` is added: the nearest of the 64 log-spaced levels."""
    return LogScales(gain, _INDEX_OFFSET, _INDEX_MULTIPLIER, _INDEX_SHIFT, SIGMA_COUNT - 1)


def _tokens(plane: Array) -> Array:
    """C×h×w → h×w×C."""
    return integer.channels_last(plane)


def _plane(tokens: Array) -> Array:
    """h×w×C → C×h×w."""
    return integer.channels_first(tokens)


def _move(owner: Any, device: Any) -> Any:
    """The arrays of an object of this package, however deep, as tensors on a device; returns it."""
    import torch

    if isinstance(owner, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(owner)).to(device)
    if isinstance(owner, list):
        owner[:] = [_move(member, device) for member in owner]
    ours = type(owner).__module__.startswith("hpcm_codec.") and hasattr(owner, "__dict__")
    if ours and not isinstance(owner, LayerMaker):  # what that makes later is moved then
        for name, value in list(vars(owner).items()):
            object.__setattr__(owner, name, _move(value, device))  # weights are frozen dataclasses
    return owner
