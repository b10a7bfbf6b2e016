"""The RWKV block in integers, and what is made of it: cells, networks between scales and blocks of priors (`model.rwkv`, `model.cells`).

Planes are int16 h×w×C: numpy arrays or tensors, as the layers' weights are. Nothing but operators of `ops.integer` touches them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hpcm_codec.engines.exact.layers import LayerMaker, Longs, Reals, integer_norm
from hpcm_codec.ops import integer
from hpcm_codec.ops.integer import BLOCKS, EXP_SHIFT, LIMIT, POSITION_SHIFT, Array, PositionFactors
from hpcm_codec.ops.integer_tables import StoredFunctions, log2_fixed, power_of_two

ARGUMENT_FRACTION = 8  # keys and receptances, in units of 1/256
LARGEST_DECAY = 6.0  # in magnitude: what the sums of `bi_wkv` are dimensioned for
NORM_EPSILON = 1e-5  # of layer norms, as they are trained
SQUARE_SHIFT = 13  # brings the square of LIMIT back under LIMIT


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


class IntegerRWKVBlock:
    """z ← z + gamma1 · spatial mix(layer norm(z)); z ← z + gamma2 · channel mix(layer norm(z)).

    stream: the units of z, which must be one for all channels.
    """

    def __init__(self, make: LayerMaker, stream: str, name: str, functions: StoredFunctions) -> None:
        units, unit = make.fraction(stream), make.one_fraction(stream)
        normal1, normal2 = make.fraction(f"{name}.norm1"), make.fraction(f"{name}.norm2")
        self.norm1, self.norm2 = (
            integer_norm(
                make.real(f"{name}.{part}.weight"), make.real(f"{name}.{part}.bias"), NORM_EPSILON, unit, normal
            )
            for part, normal in (("norm1", normal1), ("norm2", normal2))
        )
        self.spatial = IntegerSpatialMix(make, f"{name}.gamma1", normal1, units, f"{name}.spatial_mix", functions)
        self.channel = IntegerChannelMix(make, f"{name}.gamma2", normal2, units, f"{name}.channel_mix", functions)

    def __call__(self, z: Array) -> Array:
        z = self.spatial(z, integer.layer_norm(z, self.norm1))
        return self.channel(z, integer.layer_norm(z, self.norm2))


class IntegerRWKVBlocks:
    """RWKV blocks one after the other, where a prior has them in the place of residual ones. They are the same at every position."""

    def __init__(self, make: LayerMaker, stream: str, names: Iterable[str], functions: StoredFunctions) -> None:
        self._blocks = [IntegerRWKVBlock(make, stream, name, functions) for name in names]

    def __call__(self, x: Array, position: Array) -> Array:
        for block in self._blocks:
            x = block(x)
        return x


class IntegerFusion:
    """leave(RWKV block(enter(inputs side by side))), plus the first input if `residual`. All planes are in units of the context.

    A cell has two inputs, (params, context); a network between two scales has one.
    """

    def __init__(
        self, make: LayerMaker, inputs: int, context: Longs, name: str, functions: StoredFunctions, *, residual: bool
    ) -> None:
        stream = make.fraction(name)
        self.residual = residual
        self.enter = make.linear(f"{name}.enter", np.tile(context, inputs), stream)
        self.block = IntegerRWKVBlock(make, name, f"{name}.block", functions)
        self.leave = make.linear(f"{name}.leave", stream, context)

    def __call__(self, *inputs: Array) -> Array:
        z = self.block(integer.linear(*inputs, weights=self.enter))
        return integer.linear(z, weights=self.leave, added=inputs[0] if self.residual else None)


assert LIMIT * LIMIT >> SQUARE_SHIFT < LIMIT
assert POSITION_SHIFT == EXP_SHIFT
