"""Inputs of the integer operators besides planes: constants, and weights of layers. `hpcm_codec.ops.integer` has the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Array = Any  # a numpy array or a torch tensor; all those of one call are of one kind

LIMIT = 8191
WIDE = 32767  # the bound of the planes that the transforms' residual streams are
LEAKY_NUMERATOR, LEAKY_SHIFT = 328, 15  # LeakyReLU's slope 0.01 as 328/2^15
FACTOR_SHIFT = 12  # factors of channels are in units of 2^-12
GATE_SHIFT = 14  # the sigmoid table is in units of 2^-14
GATE_REACH = 2048  # its arguments, in units of 1/256, run from -GATE_REACH to GATE_REACH - 1
EXP_SHIFT = 14  # the exponential table is in units of 2^-14, its argument in units of -1/256
NORM_SHIFT = 12  # normalised values are in units of 2^-12
BLOCKS = 16  # into which Bi-WKV cuts its tokens
POSITION_SHIFT = 14


@dataclass(frozen=True)
class LinearWeights:
    """N outputs of K inputs.

    weight: int16 N×K; bias: int32 N, in units of the accumulator; shift: int32 N, 0..30, from there to the output.
    limit:  what the outputs are clamped to.
    """

    weight: Array
    bias: Array
    shift: Array
    limit: int = LIMIT

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0])

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[1])


@dataclass(frozen=True)
class PackedLinear:
    """The same in the form of the compiled matrix product, numpy arrays.

    packed: int16, as csrc/integer.h lays it out; offset: int32, bias with the rounding of the shift; both and shift padded to 16 outputs.
    """

    packed: Array
    offset: Array
    shift: Array
    outputs: int
    inputs: int
    limit: int = LIMIT


Linear = LinearWeights | PackedLinear


@dataclass(frozen=True)
class DepthwiseWeights:
    """kernel: int16 k×k×C, k odd; bias: int32 C; shift: int32 C, 0..30; limit: what the outputs are clamped to."""

    kernel: Array
    bias: Array
    shift: Array
    limit: int = LIMIT


@dataclass(frozen=True)
class NormWeights:
    """gamma: int32 C; beta: int32 C, in units of gamma × 2^-12; shift: to the output; epsilon: int ≥ 1, C²·ε in squared input units."""

    gamma: Array
    beta: Array
    shift: int
    epsilon: int


@dataclass(frozen=True)
class AttentionScale:
    """What a difference of scores (products of queries and keys) is in units of 1/256: round_shift(difference · multiplier, shift)."""

    multiplier: int
    shift: int


@dataclass(frozen=True)
class PositionFactors:
    """Bi-WKV's position factors for T tokens in BLOCKS blocks of L = ceil(T / BLOCKS), in units of 2^-14.

    growth: int32 L×C, e^(w·m); fading: int32 (L+1)×C, e^(−w·j); itself: int32 C, e^u.
    """

    growth: Array
    fading: Array
    itself: Array


@dataclass(frozen=True)
class LogScales:
    """Scales given by their logarithms: index = round_shift((scale + gain + offset) · multiplier, shift), bounded to 0 … highest.

    gain: int64 M.
    """

    gain: Array
    offset: int
    multiplier: int
    shift: int
    highest: int


@dataclass(frozen=True)
class LinearScales:
    """Scales given as they are: index = how many of the thresholds (int32, ascending) are not above scale · 2^shift.

    shift: int64 M, 0 … 16.
    """

    thresholds: Array
    shift: Array


Scales = LogScales | LinearScales


def round_shift(x: Array, shift: int | Array) -> Array:
    """x / 2^shift, halves up: (x + 2^(shift-1)) >> shift; x and a shift of several numbers int64, shift ≥ 0."""
    one = 1 if isinstance(shift, int) else shift * 0 + 1
    return (x + ((one << shift) >> 1)) >> shift
