"""The trained modules of h_s and the context model, made of integer layers: one class for each of `model`'s.

Every class takes the trained module, the units of its activations, and its name in the model. Planes are int16 h×w×C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcm_codec.engines.exact.layers import (
    integer_depthwise,
    integer_factor,
    integer_linear,
    integer_norm,
    interpolated,
)
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model.blocks import RateSequential, ResidualBlock
from hpcm_codec.model.cells import CrossAttentionCell, RWKVContextCell
from hpcm_codec.model.priors import Prior, StepAdaptor
from hpcm_codec.model.rwkv import ChannelMix, OmniShift, SpatialMix
from hpcm_codec.ops import integer
from hpcm_codec.ops.integer import BLOCKS, EXP_SHIFT, LIMIT, POSITION_SHIFT, PositionFactors, saturate
from hpcm_codec.ops.integer_tables import IntegerTables, log2_fixed, power_of_two
from hpcm_codec.ops.powers import times_power_of_two

ARGUMENT_FRACTION = 8  # keys and receptances of the RWKV cell, in units of 1/256
LARGEST_DECAY = 6.0  # of the RWKV cell, in magnitude: what the sums of `bi_wkv` are dimensioned for
NORM_EPSILON = 1e-5  # of layer norms, as they are trained
SQUARE_SHIFT = 13  # brings the square of LIMIT back under LIMIT

Fractions = Mapping[str, Tensor]  # activation → fraction of each channel, int8 C


class Units:
    """The units of every activation by name, as fractions of its channels (see `layers`)."""

    def __init__(self, fractions: Fractions) -> None:
        self._fractions = fractions

    def fraction(self, name: str) -> Tensor:
        try:
            return self._fractions[name].to(torch.int64)
        except KeyError:
            raise UnsupportedError(
                f"the checkpoint says nothing about the units of {name}", advice="export it again with --exact"
            ) from None

    def one_fraction(self, name: str) -> int:
        found = self.fraction(name)
        if not (found == found[0]).all():
            raise UnsupportedError(
                f"the channels of {name} must share one unit", advice="export the checkpoint again with --exact"
            )
        return int(found[0])


class Linear:
    """conv1×1 or linear, between activations of known units."""

    def __init__(
        self, layer: nn.Module, fraction_in: Tensor, fraction_out: Tensor, name: str, row_factor: Tensor | None = None
    ) -> None:
        weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
        weight = weight.reshape(weight.shape[0], -1)
        if row_factor is not None:
            assert bias is None
            weight = weight * row_factor[:, None]  # of two float16 numbers: 22 bits, exact in float32
        self.weights = integer_linear(weight, bias, fraction_in, fraction_out, name)

    def __call__(
        self, x: Tensor, *, leaky: bool = False, factor: Tensor | None = None, added: Tensor | None = None
    ) -> Tensor:
        return integer.linear(x, self.weights, leaky=leaky, factor=factor, added=added)


class Block:
    """ResidualBlock, kind depthwise: x + factor · project(LeakyReLU(expand(depthwise(x)))) on a stream of one set of units."""

    def __init__(self, units: Units, block: ResidualBlock, stream: Tensor, name: str) -> None:
        spatial = cast(nn.Conv2d, block.spatial)
        fraction = units.fraction(f"{name}.spatial")
        self.spatial = integer_depthwise(spatial.weight, spatial.bias, stream, fraction, f"{name}.spatial")
        hidden = units.fraction(f"{name}.expand")
        self.expand = Linear(block.expand, fraction, hidden, f"{name}.expand")
        self.project = Linear(block.project, hidden, stream, f"{name}.project")
        assert block.factor is not None
        self.factor = integer_factor(block.factor.level_values, name)

    def __call__(self, x: Tensor, position: Tensor) -> Tensor:
        hidden = self.expand(integer.depthwise(x, self.spatial), leaky=True)
        return self.project(hidden, factor=interpolated(self.factor, position).to(torch.int16), added=x)


class Double:
    """up2: a 2×2 transposed convolution of stride 2 is one matrix product and a shuffle of pixels."""

    def __init__(self, layer: nn.ConvTranspose2d, fraction_in: Tensor, fraction_out: Tensor, name: str) -> None:
        assert layer.bias is not None
        rows = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2·2·out)×in
        self.weights = integer_linear(rows, layer.bias.repeat(4), fraction_in, fraction_out.repeat(4), name)

    def __call__(self, x: Tensor) -> Tensor:
        height, width, _ = x.shape
        quads = integer.linear(x, self.weights).reshape(height, width, 2, 2, -1)
        return quads.permute(0, 2, 1, 3, 4).reshape(2 * height, 2 * width, -1)


class HyperSynthesis:
    """h_s: hyper-latents → context parameters."""

    def __init__(self, units: Units, net: RateSequential, context: Tensor) -> None:
        self.steps: list[Double | Block] = []
        fraction = units.fraction("h_s")
        last_double = max(i for i, layer in enumerate(net) if isinstance(layer, nn.ConvTranspose2d))
        for index, layer in enumerate(net):
            stream = context if index >= last_double else units.fraction("h_s.inner")
            if isinstance(layer, nn.ConvTranspose2d):
                self.steps.append(Double(layer, fraction, stream, f"h_s.{index}"))
            else:
                self.steps.append(Block(units, cast(ResidualBlock, layer), stream, f"h_s.{index}"))
            fraction = stream

    def __call__(self, x: Tensor, position: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x) if isinstance(step, Double) else step(x, position)
        return x


class IntegerPrior:
    """Blocks, a gain, blocks, and the head that refines the context."""

    def __init__(self, units: Units, prior: Prior, context: Tensor, name: str) -> None:
        self.stream = units.fraction(name)
        self.before = [
            Block(units, cast(ResidualBlock, b), self.stream, f"{name}.before.{i}") for i, b in enumerate(prior.before)
        ]
        self.after = [
            Block(units, cast(ResidualBlock, b), self.stream, f"{name}.after.{i}") for i, b in enumerate(prior.after)
        ]
        self.head = Linear(prior.head, self.stream, context, f"{name}.head")

    def __call__(self, adapted: Tensor, gain: Tensor, context: Tensor, position: Tensor) -> Tensor:
        x = adapted
        for block in self.before:
            x = block(x, position)
        x = integer.scale(x, gain)
        for block in self.after:
            x = block(x, position)
        return self.head(x, added=context)


class IntegerAdaptor:
    """A step's own conv1×1 of (context ‖ latents), its phase bias, and its gain."""

    def __init__(self, adaptor: StepAdaptor, fraction_in: Tensor, stream: Tensor, name: str) -> None:
        self.adapt = Linear(adaptor.adapt, fraction_in, stream, name)
        self.gain = integer_factor(adaptor.gain.level_values, name)
        self.phase: Tensor | None = None
        if adaptor.phase_bias is not None:
            phase = times_power_of_two(adaptor.phase_bias.double(), stream[:, None, None]).round()
            self.phase = saturate(phase.permute(1, 2, 0))  # cell×cell×C

    def __call__(self, context: Tensor, latents: Tensor) -> Tensor:
        added = None
        if self.phase is not None:
            height, width, _ = context.shape
            cell = self.phase.shape[0]
            added = self.phase.repeat(-(-height // cell), -(-width // cell), 1)[:height, :width].contiguous()
        return self.adapt(torch.cat((context, latents), dim=-1), added=added)


class IntegerAttentionCell:
    """params + widen(attention(query(params), key(context), value(context))) + output(params)."""

    def __init__(
        self, units: Units, cell: CrossAttentionCell, context: Tensor, name: str, tables: IntegerTables
    ) -> None:
        self.heads, self.window, self.tables = cell.heads, cell.window, tables
        query, key, value = (units.fraction(f"{name}.{part}") for part in ("query", "key", "value"))
        self.query = Linear(cell.query, context, query, f"{name}.query")
        self.key = Linear(cell.key, context, key, f"{name}.key")
        self.value = Linear(cell.value, context, value, f"{name}.value")
        self.output = Linear(cell.output, context, context, f"{name}.output")
        assert cell.widen is not None
        self.widen = Linear(cell.widen, value, context, f"{name}.widen")
        unit = units.one_fraction(f"{name}.query") + units.one_fraction(f"{name}.key")
        if unit + 15 < ARGUMENT_FRACTION:
            raise UnsupportedError(
                f"the scores of {name} are too coarse for integer arithmetic", advice="use the float profile"
            )
        per_head = cell.query.out_channels // cell.heads
        # multiplier / 2^shift = 256 / √(channels of a head) / 2^unit, with 15 bits of multiplier
        self.scores = integer.AttentionScale(round(2**15 / math.sqrt(per_head)), unit + 15 - ARGUMENT_FRACTION)

    def __call__(self, params: Tensor, context: Tensor) -> Tensor:
        query = self.query(params)
        key, value = integer.together(context, (self.key.weights, self.value.weights))
        attended = integer.window_attention(
            query, key, value, self.heads, self.window, self.scores, self.tables.exponential
        )
        return self.widen(attended, added=self.output(params, added=params))


def folded_kernel(shift: OmniShift) -> Tensor:
    """The one kernel C×1×5×5 of the four branches, in float64: sums of products of float16 numbers, which it holds without rounding."""
    alpha = shift.alpha.double()
    one, three, five = (conv.weight.double() for conv in (shift.conv1x1, shift.conv3x3, shift.conv5x5))
    kernel = alpha[3] * five + functional.pad(alpha[2] * three, (1, 1, 1, 1))
    return kernel + functional.pad(alpha[0] + alpha[1] * one, (2, 2, 2, 2))


class _Mix:
    """What both mixes begin with: the shifted input, and the receptance that gates the output."""

    def __init__(
        self, units: Units, mix: SpatialMix | ChannelMix, fraction_in: Tensor, name: str, tables: IntegerTables
    ) -> None:
        self.tables = tables
        self.shifted = units.fraction(f"{name}.shift")
        self.argument = torch.full_like(self.shifted, ARGUMENT_FRACTION)
        self.shift = integer_depthwise(folded_kernel(mix.shift), None, fraction_in, self.shifted, f"{name}.shift")
        self.receptance = Linear(mix.receptance, self.shifted, self.argument, f"{name}.receptance")

    def gated(self, receptance: Tensor, value: Tensor) -> Tensor:
        """σ(receptance) · value."""
        return integer.gate(receptance, value, self.tables.sigmoid)


class IntegerSpatialMix(_Mix):
    """z + gamma · linear(σ(r) · BiWKV(k, v)) of the normalised z."""

    def __init__(
        self,
        units: Units,
        mix: SpatialMix,
        gamma: Tensor,
        fraction_in: Tensor,
        stream: Tensor,
        name: str,
        tables: IntegerTables,
    ) -> None:
        super().__init__(units, mix, fraction_in, name, tables)
        value = units.fraction(f"{name}.value")
        self.key = Linear(mix.key, self.shifted, self.argument, f"{name}.key")
        self.value = Linear(mix.value, self.shifted, value, f"{name}.value")
        self.output = Linear(mix.output, value, stream, f"{name}.output", row_factor=gamma)
        self._decay, self._boost = (
            log2_fixed(parameter.clamp(-LARGEST_DECAY, LARGEST_DECAY)) for parameter in (mix.decay, mix.boost)
        )
        self._factors: dict[int, PositionFactors] = {}

    def factors(self, tokens: int) -> PositionFactors:
        """The position factors of that many tokens, made at the first call and kept for the sizes seen last."""
        found = self._factors.get(tokens)
        if found is None:
            if len(self._factors) >= 4:
                self._factors.clear()
            length = -(-tokens // BLOCKS)
            distance = torch.arange(length + 1, device=self._decay.device)[:, None]
            exponent = torch.div(self._decay * distance, tokens, rounding_mode="floor")
            itself = torch.div(self._boost, tokens, rounding_mode="floor")
            growth, fading, own = (
                power_of_two(e, self.tables).to(torch.int32) for e in (exponent[:-1], -exponent, itself)
            )
            found = PositionFactors(growth, fading, own)
            # what a capture makes is not there before its graph runs
            if not (self._decay.is_cuda and torch.cuda.is_current_stream_capturing()):
                self._factors[tokens] = found
        return found

    def __call__(self, z: Tensor, normalised: Tensor) -> Tensor:
        height, width, _ = normalised.shape
        shifted = integer.depthwise(normalised, self.shift)
        layers = self.key.weights, self.value.weights, self.receptance.weights
        key, value, receptance = integer.together(shifted, layers)
        mixed = integer.bi_wkv(key, value, self.factors(height * width), self.tables.exponential)
        return self.output(self.gated(receptance, mixed), added=z)


class IntegerChannelMix(_Mix):
    """z + gamma · σ(r) · value(relu(key)²) of the normalised z."""

    def __init__(
        self,
        units: Units,
        mix: ChannelMix,
        gamma: Tensor,
        fraction_in: Tensor,
        stream: Tensor,
        name: str,
        tables: IntegerTables,
    ) -> None:
        super().__init__(units, mix, fraction_in, name, tables)
        key = units.fraction(f"{name}.key")
        self.key = Linear(mix.key, self.shifted, key, f"{name}.key")
        self.value = Linear(mix.value, 2 * key - SQUARE_SHIFT, stream, f"{name}.value", row_factor=gamma)

    def __call__(self, z: Tensor, normalised: Tensor) -> Tensor:
        shifted = integer.depthwise(normalised, self.shift)
        key, receptance = integer.together(shifted, (self.key.weights, self.receptance.weights))
        value = self.value(integer.squared_relu(key, SQUARE_SHIFT))
        return saturate(z.int() + self.gated(receptance, value))


class IntegerRWKVCell:
    """params + leave(RWKV block(enter(params ‖ context)))."""

    def __init__(self, units: Units, cell: RWKVContextCell, context: Tensor, name: str, tables: IntegerTables) -> None:
        block = cell.block
        stream, unit = units.fraction(name), units.one_fraction(name)
        normal1, normal2 = units.fraction(f"{name}.block.norm1"), units.fraction(f"{name}.block.norm2")
        self.enter = Linear(cell.enter, context.repeat(2), stream, f"{name}.enter")
        self.norm1 = integer_norm(block.norm1.weight, block.norm1.bias, NORM_EPSILON, unit, normal1)
        self.norm2 = integer_norm(block.norm2.weight, block.norm2.bias, NORM_EPSILON, unit, normal2)
        self.spatial = IntegerSpatialMix(
            units, block.spatial_mix, block.gamma1, normal1, stream, f"{name}.block.spatial_mix", tables
        )
        self.channel = IntegerChannelMix(
            units, block.channel_mix, block.gamma2, normal2, stream, f"{name}.block.channel_mix", tables
        )
        self.leave = Linear(cell.leave, stream, context, f"{name}.leave")

    def __call__(self, params: Tensor, context: Tensor) -> Tensor:
        z = self.enter(torch.cat((params, context), dim=-1))
        z = self.spatial(z, integer.layer_norm(z, self.norm1))
        z = self.channel(z, integer.layer_norm(z, self.norm2))
        return self.leave(z, added=params)


assert LIMIT * LIMIT >> SQUARE_SHIFT < LIMIT
assert POSITION_SHIFT == EXP_SHIFT
