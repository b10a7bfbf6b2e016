"""The trained modules, made of integer layers by their names in the checkpoint: one class for each of `model`'s.

Planes are int16 h×w×C: numpy arrays or tensors, as the layers' weights are. Nothing but operators of `ops.integer` touches them.
"""

from __future__ import annotations

import math

import numpy as np

from hpcm_codec.engines.exact.blocks import Blocks
from hpcm_codec.engines.exact.layers import LayerMaker, Longs, Reals, integer_norm
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model.config import CellConfig
from hpcm_codec.ops import integer
from hpcm_codec.ops.integer import BLOCKS, EXP_SHIFT, LIMIT, POSITION_SHIFT, Array, PositionFactors
from hpcm_codec.ops.integer_tables import StoredFunctions, log2_fixed, power_of_two

ARGUMENT_FRACTION = 8  # keys and receptances of the RWKV cell, in units of 1/256
LARGEST_DECAY = 6.0  # of the RWKV cell, in magnitude: what the sums of `bi_wkv` are dimensioned for
NORM_EPSILON = 1e-5  # of layer norms, as they are trained
SQUARE_SHIFT = 13  # brings the square of LIMIT back under LIMIT


class IntegerPrior:
    """Blocks, a gain, blocks, and the head that refines the context."""

    def __init__(self, make: LayerMaker, blocks: tuple[int, int], context: Longs, name: str) -> None:
        stream = make.fraction(name)
        self.before = Blocks(make, stream, (f"{name}.before.{i}" for i in range(blocks[0])))
        self.after = Blocks(make, stream, (f"{name}.after.{i}" for i in range(blocks[1])))
        self.head = make.linear(f"{name}.head", stream, context)

    def __call__(self, adapted: Array, gain: Array, context: Array, position: Array) -> Array:
        x = self.after(integer.scale(self.before(adapted, position), gain), position)
        return integer.linear(x, weights=self.head, added=context)


class IntegerAdaptor:
    """A step's own conv1×1 of (context ‖ latents), its phase bias, and its gain."""

    def __init__(self, make: LayerMaker, fraction_in: Longs, stream: Longs, name: str) -> None:
        self.adapt = make.linear(f"{name}.adapt", fraction_in, stream)
        self.gain: Array = make.factor(f"{name}.gain")
        self.phase: Array | None = None
        if f"{name}.phase_bias" in make.weights:
            phase = np.rint(np.ldexp(make.real(f"{name}.phase_bias"), stream[:, None, None]))
            phase = np.clip(phase, -LIMIT, LIMIT).astype(np.int16)
            self.phase = np.ascontiguousarray(phase.transpose(1, 2, 0))  # cell×cell×C

    def __call__(self, context: Array, latents: Array) -> Array:
        return integer.linear(context, latents, weights=self.adapt, added=self.phase, repeated=True)


class IntegerAttentionCell:
    """params + widen(attention(query(params), key(context), value(context))) + output(params)."""

    def __init__(
        self, make: LayerMaker, config: CellConfig, context: Longs, name: str, functions: StoredFunctions
    ) -> None:
        self.heads, self.window, self.functions = config.heads, config.window, functions
        query, key, value = (make.fraction(f"{name}.{part}") for part in ("query", "key", "value"))
        self.query = make.linear(f"{name}.query", context, query)
        self.key = make.linear(f"{name}.key", context, key)
        self.value = make.linear(f"{name}.value", context, value)
        self.output = make.linear(f"{name}.output", context, context)
        self.widen = make.linear(f"{name}.widen", value, context)
        unit = make.one_fraction(f"{name}.query") + make.one_fraction(f"{name}.key")
        if unit + 15 < ARGUMENT_FRACTION:
            raise UnsupportedError(
                f"the scores of {name} are too coarse for integer arithmetic", advice="use the float profile"
            )
        per_head = len(query) // config.heads
        # multiplier / 2^shift = 256 / √(channels of a head) / 2^unit, with 15 bits of multiplier
        self.scores = integer.AttentionScale(round(2**15 / math.sqrt(per_head)), unit + 15 - ARGUMENT_FRACTION)

    def __call__(self, params: Array, context: Array) -> Array:
        query = integer.linear(params, weights=self.query)
        key, value = integer.together(context, (self.key, self.value))
        attended = integer.window_attention(
            query, key, value, self.heads, self.window, self.scores, self.functions.exponential
        )
        output = integer.linear(params, weights=self.output, added=params)
        return integer.linear(attended, weights=self.widen, added=output)


def folded_kernel(alpha: Reals, one: Reals, three: Reals, five: Reals) -> Reals:
    """OmniShift's one kernel C×1×5×5 of its four branches: sums of products of float16 numbers, which float64 holds without rounding."""
    kernel = alpha[3] * five
    kernel[:, :, 1:4, 1:4] += alpha[2] * three
    kernel[:, :, 2:3, 2:3] += alpha[0] + alpha[1] * one
    return kernel


class _Mix:
    """What both mixes begin with: the shifted input, and the receptance that gates the output."""

    def __init__(self, make: LayerMaker, fraction_in: Longs, name: str, functions: StoredFunctions) -> None:
        self.functions = functions
        self.shifted = make.fraction(f"{name}.shift")
        self.argument = np.full_like(self.shifted, ARGUMENT_FRACTION)
        branches = (make.real(f"{name}.shift.{part}.weight") for part in ("conv1x1", "conv3x3", "conv5x5"))
        kernel = folded_kernel(make.real(f"{name}.shift.alpha"), *branches)
        self.shift = make.depthwise(kernel, None, fraction_in, self.shifted, f"{name}.shift")
        self.receptance = make.linear(f"{name}.receptance", self.shifted, self.argument)


class IntegerSpatialMix(_Mix):
    """z + gamma · linear(σ(r) · BiWKV(k, v)) of the normalised z."""

    def __init__(
        self, make: LayerMaker, gamma: str, fraction_in: Longs, stream: Longs, name: str, functions: StoredFunctions
    ) -> None:
        super().__init__(make, fraction_in, name, functions)
        value = make.fraction(f"{name}.value")
        self.key = make.linear(f"{name}.key", self.shifted, self.argument)
        self.value = make.linear(f"{name}.value", self.shifted, value)
        self.output = make.linear(f"{name}.output", value, stream, row_factor=make.weights.real(gamma))
        self._power: Array = functions.power.astype(np.int64)
        decay, boost = (
            log2_fixed(np.clip(make.real(f"{name}.{part}"), -LARGEST_DECAY, LARGEST_DECAY))
            for part in ("decay", "boost")
        )
        self._decay: Array = decay
        self._boost: Array = boost
        self._factors: dict[int, PositionFactors] = {}

    def factors(self, tokens: int) -> PositionFactors:
        """The position factors of that many tokens, made at the first call and kept for the sizes seen last."""
        found = self._factors.get(tokens)
        if found is None:
            if len(self._factors) >= 4:
                self._factors.clear()
            length = -(-tokens // BLOCKS)
            distance = integer.counted(length + 1, like=self._decay)[:, None]
            exponent = self._decay * distance // tokens
            itself = self._boost // tokens
            parts = (power_of_two(e, self._power) for e in (exponent[:-1], -exponent, itself))
            found = PositionFactors(*(integer.as_int32(part) for part in parts))
            if not integer.in_capture(self._decay):  # what a capture makes is not there before its graph runs
                self._factors[tokens] = found
        return found

    def __call__(self, z: Array, normalised: Array) -> Array:
        height, width, _ = normalised.shape
        shifted = integer.depthwise(normalised, self.shift)
        key, value, receptance = integer.together(shifted, (self.key, self.value, self.receptance))
        mixed = integer.bi_wkv(key, value, self.factors(height * width), self.functions.exponential)
        gated = integer.gate(receptance, mixed, self.functions.sigmoid)
        return integer.linear(gated, weights=self.output, added=z)


class IntegerChannelMix(_Mix):
    """z + gamma · σ(r) · value(relu(key)²) of the normalised z."""

    def __init__(
        self, make: LayerMaker, gamma: str, fraction_in: Longs, stream: Longs, name: str, functions: StoredFunctions
    ) -> None:
        super().__init__(make, fraction_in, name, functions)
        key = make.fraction(f"{name}.key")
        self.key = make.linear(f"{name}.key", self.shifted, key)
        row_factor = make.weights.real(gamma)
        self.value = make.linear(f"{name}.value", 2 * key - SQUARE_SHIFT, stream, row_factor=row_factor)

    def __call__(self, z: Array, normalised: Array) -> Array:
        shifted = integer.depthwise(normalised, self.shift)
        key, receptance = integer.together(shifted, (self.key, self.receptance))
        value = integer.linear(integer.squared_relu(key, SQUARE_SHIFT), weights=self.value)
        return integer.gate(receptance, value, self.functions.sigmoid, added=z)


class IntegerRWKVCell:
    """params + leave(RWKV block(enter(params ‖ context)))."""

    def __init__(self, make: LayerMaker, context: Longs, name: str, functions: StoredFunctions) -> None:
        block = f"{name}.block"
        stream, unit = make.fraction(name), make.one_fraction(name)
        normal1, normal2 = make.fraction(f"{block}.norm1"), make.fraction(f"{block}.norm2")
        self.enter = make.linear(f"{name}.enter", np.tile(context, 2), stream)
        self.norm1, self.norm2 = (
            integer_norm(
                make.real(f"{block}.{part}.weight"), make.real(f"{block}.{part}.bias"), NORM_EPSILON, unit, normal
            )
            for part, normal in (("norm1", normal1), ("norm2", normal2))
        )
        spatial, channel = f"{block}.spatial_mix", f"{block}.channel_mix"
        self.spatial = IntegerSpatialMix(make, f"{block}.gamma1", normal1, stream, spatial, functions)
        self.channel = IntegerChannelMix(make, f"{block}.gamma2", normal2, stream, channel, functions)
        self.leave = make.linear(f"{name}.leave", stream, context)

    def __call__(self, params: Array, context: Array) -> Array:
        z = integer.linear(params, context, weights=self.enter)
        z = self.spatial(z, integer.layer_norm(z, self.norm1))
        z = self.channel(z, integer.layer_norm(z, self.norm2))
        return integer.linear(z, weights=self.leave, added=params)


assert LIMIT * LIMIT >> SQUARE_SHIFT < LIMIT
assert POSITION_SHIFT == EXP_SHIFT
