"""Integer layers from trained ones: how float16 weights become int16, and which activations are in which units.

An activation of channel c with `fraction` f_c stands for its integer times 2^-f_c. Fractions may differ from channel to channel wherever
channels meet in weighted sums only: the weights take up the difference. A row of weights is multiplied by the largest power of two with
which its accumulator cannot overflow (the contract of `ops.integer`). Weights are float16, or products of two such, so all of this is
exact in floating point (scaling by powers of two, rounding to integers, sums in float64): every machine makes the same integers, in C++
(csrc/integer_weights.h) and in numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.engines.exact.weights import Weights, unpacked_rows
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.ops import integer_weights
from hpcm_codec.ops.integer import (
    FACTOR_SHIFT,
    LIMIT,
    NORM_SHIFT,
    Array,
    DepthwiseWeights,
    Linear,
    LinearWeights,
    NormWeights,
)

LARGEST_SHIFT = 30
_LARGEST_SUM = 2**31 - 1
LARGEST_WEIGHT = 2**15 - 1
_LARGEST_FACTOR = 2**15 - 1

Reals = NDArray[np.float64]
Longs = NDArray[np.int64]
Fractions = Mapping[str, NDArray[np.int8]]  # activation → fraction of each channel


def _rows_to_integers(
    rows: Reals, bias: Reals, fraction_out: Longs, bound: int, name: str
) -> tuple[NDArray[np.int16], NDArray[np.int32], NDArray[np.int32]]:
    """Rows N×K (in units of the integer inputs), bias N → int16 rows, int32 bias, int32 shifts.

    The shift of a row: with bound · Σ|row| + |bias| = m · 2^e, ½ ≤ m < 1, it is 31 − e − fraction within 0 … 30, less one as often as
    rounding has brought the sum to 2^31 or a weight to 2^15.
    """
    _, exponent = np.frexp(bound * np.abs(rows).sum(axis=1) + np.abs(bias))
    shift = np.clip(31 - exponent.astype(np.int64) - fraction_out, 0, LARGEST_SHIFT)
    while True:
        factor = np.ldexp(1.0, shift + fraction_out)
        integer, offset = np.rint(rows * factor[:, None]), np.rint(bias * factor)
        sums = bound * np.abs(integer).sum(axis=1) + np.abs(offset) + np.ldexp(0.5, shift)
        too_large = (sums > _LARGEST_SUM) | (np.abs(integer).max(axis=1) > LARGEST_WEIGHT)
        if not too_large.any():
            return integer.astype(np.int16), offset.astype(np.int32), shift.astype(np.int32)
        if (too_large & (shift == 0)).any():
            raise too_large_for_integers(name)
        shift = shift - too_large


def _refuse_other_counts(name: str, channels: tuple[int, ...], units: tuple[int, int]) -> None:
    """One unit for each channel, outputs and inputs; arrays of one would be taken for all."""
    if channels != units:
        raise ValueError(f"{name} has {channels} channels, with units for {units}")


def too_large_for_integers(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"the weights of {name} are too large for integer arithmetic", advice="use the float profile"
    )


def integer_linear(
    rows: Any,
    bias: Reals | None,
    fraction_in: Longs,
    fraction_out: Longs,
    name: str,
    *,
    row_factor: NDArray[np.float32] | None = None,
    bound: int = LIMIT,
    limit: int = LIMIT,
    compiled: bool = False,
) -> Linear:
    """rows: real N×K, of 24 significant bits at most, or packed ones (`engines.exact.weights.PackedRows`).

    fraction_in: int K; fraction_out: int N; row_factor: what rows are multiplied with; bound: of the inputs' magnitudes; limit: of the
    outputs'. Raises UnsupportedError when it cannot be done.
    """
    inputs = np.ldexp(np.float32(1), -fraction_in).astype(np.float32)
    if compiled:
        source = rows if isinstance(rows, tuple) else np.ascontiguousarray(rows, np.float32)
        made = integer_weights.made_linear(source, row_factor, inputs, bias, fraction_out, bound, limit)
        if made is None:
            raise too_large_for_integers(name)
        return made
    real = (unpacked_rows(rows) if isinstance(rows, tuple) else rows).astype(np.float64)
    _refuse_other_counts(name, real.shape, (len(fraction_out), len(fraction_in)))
    if row_factor is not None:
        real = real * row_factor[:, None]
    offset = np.zeros(len(fraction_out)) if bias is None else bias.astype(np.float64)
    return LinearWeights(*_rows_to_integers(real * inputs, offset, fraction_out, bound, name), limit)


def integer_depthwise(
    kernel: Reals,
    bias: Reals | None,
    fraction_in: Longs,
    fraction_out: Longs,
    name: str,
    *,
    bound: int = LIMIT,
    limit: int = LIMIT,
    compiled: bool = False,
) -> DepthwiseWeights:
    """kernel: C×1×k×k; fractions: int C."""
    channels, _, size, _ = kernel.shape
    _refuse_other_counts(name, (channels, channels), (len(fraction_out), len(fraction_in)))
    rows = kernel.astype(np.float64).reshape(channels, -1) * np.ldexp(1.0, -fraction_in)[:, None]
    offset = np.zeros(channels) if bias is None else bias.astype(np.float64)
    if compiled:
        made = integer_weights.made_rows(rows, offset, fraction_out, bound)
        if made is None:
            raise too_large_for_integers(name)
    else:
        made = _rows_to_integers(rows, offset, fraction_out, bound, name)
    taps, offset32, shift = made
    return DepthwiseWeights(np.ascontiguousarray(taps.T).reshape(size, size, channels), offset32, shift, limit)


def integer_norm(weight: Reals, bias: Reals, epsilon: float, fraction_in: int, fraction_out: Longs) -> NormWeights:
    """weight, bias: C; fraction_in: of all input channels; fraction_out: int C."""
    shift = 16  # of n · gamma, with n below 2^12 · √C
    channels = weight.shape[0]
    gamma = np.rint(np.ldexp(weight.astype(np.float64), fraction_out + (shift - NORM_SHIFT)))
    beta = np.rint(np.ldexp(bias.astype(np.float64), fraction_out + shift))
    if max(np.abs(gamma).max(), np.abs(beta).max()) > _LARGEST_SUM:  # int32 holds them
        raise UnsupportedError("the weights of a layer norm are too large for integer arithmetic")
    units = max(1, round(epsilon * channels**2 * 2.0 ** (2 * fraction_in)))
    return NormWeights(gamma.astype(np.int32), beta.astype(np.int32), shift, units)


def integer_factor(values: Reals, name: str) -> Longs:
    """Factors in units of 2^-12, int64 of the values' shape; raises UnsupportedError when one does not fit int16."""
    integer = np.rint(np.ldexp(values.astype(np.float64), FACTOR_SHIFT))
    if np.abs(integer).max() > _LARGEST_FACTOR:
        raise UnsupportedError(
            f"a factor of {name} is too large for integer arithmetic", advice="use the float profile"
        )
    return integer.astype(np.int64)


def fixed(values: Reals, fraction: int) -> Longs:
    """Real numbers in units of 2^-fraction."""
    return np.rint(np.ldexp(values.astype(np.float64), fraction)).astype(np.int64)


def level_position(quality_code: int, levels: int) -> Longs:
    """Where a quality code 0 … 200 lies among L levels, int64 2×2: the numbers of the levels around it, and their weights in 200ths.

    An array, so that what is computed with it is the same work for every quality.
    """
    level, rest = divmod(quality_code * (levels - 1), 200)
    return np.array([[level, min(level + 1, levels - 1)], [200 - rest, rest]], np.int64)


def interpolated(levels: Array, position: Array) -> Array:
    """Integer level values L×C (int64) at a `level_position`: floor((a·(200 − r) + b·r + 100) / 200), int64 C.

    A single level is the same at every position. Of numpy arrays or tensors.
    """
    if levels.shape[0] == 1:
        return levels[0]
    return ((levels[position[0]] * position[1][:, None]).sum(0) + 100) // 200


def window_rows(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """A convolution's weight N×C×k×k as rows N×(k·k·C), as `ops.integer.windows` takes them."""
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(weight.shape[0], -1)


class LayerMaker:
    """Makes a network's layers by their names, of its weights and of its activations' units.

    compiled: in the form of the compiled operators, and by them; else as plain arrays, which may become tensors.
    """

    def __init__(self, weights: Weights, fractions: Fractions, *, compiled: bool) -> None:
        self.weights, self._fractions, self._compiled = weights, fractions, compiled

    def fraction(self, name: str) -> Longs:
        try:
            return self._fractions[name].astype(np.int64)
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

    def real(self, name: str) -> Reals:
        """A weight as float64, in its own shape."""
        return self.weights.real(name).astype(np.float64)

    def bias(self, name: str) -> Reals | None:
        """The bias of a layer, if it has one."""
        return self.real(f"{name}.bias") if f"{name}.bias" in self.weights else None

    def factor(self, name: str, change: Longs | int = 0) -> Longs:
        """Factors of channels, levels×C, times 2^change."""
        return integer_factor(np.ldexp(self.real(f"{name}.level_values"), change), name)

    def headroom(self, name: str) -> Longs:
        """The powers of two that bring each channel's largest factor between ½ and 1, within −3 … 12."""
        _, exponent = np.frexp(np.abs(self.real(f"{name}.level_values")).max(axis=0))
        return np.clip(-exponent.astype(np.int64), -3, 12)

    def linear(
        self,
        name: str,
        fraction_in: Longs,
        fraction_out: Longs,
        *,
        row_factor: NDArray[np.float32] | None = None,
        bound: int = LIMIT,
        limit: int = LIMIT,
    ) -> Linear:
        """A linear layer or a 1×1 convolution."""
        rows, bias = self.weights.rows(f"{name}.weight"), self.bias(name)
        return self.matrix(rows, bias, fraction_in, fraction_out, name, row_factor=row_factor, bound=bound, limit=limit)

    def matrix(
        self,
        rows: Any,
        bias: Reals | None,
        fraction_in: Longs,
        fraction_out: Longs,
        name: str,
        *,
        row_factor: NDArray[np.float32] | None = None,
        bound: int = LIMIT,
        limit: int = LIMIT,
    ) -> Linear:
        """A layer whose rows are given in the order of its inputs; arguments as `integer_linear` takes them."""
        return integer_linear(
            rows,
            bias,
            fraction_in,
            fraction_out,
            name,
            row_factor=row_factor,
            bound=bound,
            limit=limit,
            compiled=self._compiled,
        )

    def depthwise(
        self,
        kernel: Reals,
        bias: Reals | None,
        fraction_in: Longs,
        fraction_out: Longs,
        name: str,
        *,
        bound: int = LIMIT,
    ) -> DepthwiseWeights:
        return integer_depthwise(kernel, bias, fraction_in, fraction_out, name, bound=bound, compiled=self._compiled)
