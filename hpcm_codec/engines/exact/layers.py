"""Integer layers from trained ones: how float16 weights become int16, and which activations are in which units.

An activation of channel c with `fraction` f_c stands for its integer times 2^-f_c. Fractions may differ from channel to channel wherever
channels meet in weighted sums only: the weights take up the difference. A row of weights is multiplied by the largest power of two with
which its accumulator cannot overflow (the contract of `ops.integer`). Weights are float16, or products of two such, so all of this is
exact in floating point (scaling by powers of two, rounding to integers, sums in float64): every machine makes the same integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpcm_codec.errors import UnsupportedError
from hpcm_codec.ops.integer import FACTOR_SHIFT, LIMIT, NORM_SHIFT, DepthwiseWeights, LinearWeights, NormWeights
from hpcm_codec.ops.powers import power_factors, times_power_of_two

LARGEST_SHIFT = 30
_LARGEST_SUM = 2**31 - 1
LARGEST_WEIGHT = 2**15 - 1
_LARGEST_FACTOR = 2**15 - 1


def _rows_to_integers(rows: Tensor, bias: Tensor, fraction_out: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rows N×K (in units of the integer inputs), bias N (float64) → int16 rows, int32 bias, int32 shifts.

    The shift of a row: with LIMIT · Σ|row| + |bias| = m · 2^e, ½ ≤ m < 1, it is 31 − e − fraction within 0 … 30, less one as often as
    rounding has brought the sum to 2^31 or a weight to 2^15.
    """
    # Sums of float16 numbers, which float64 holds without rounding.
    _, exponent = torch.frexp(LIMIT * rows.abs().sum(dim=1, dtype=torch.float64) + bias.abs())
    shift = (31 - exponent.to(fraction_out.dtype) - fraction_out).clamp(0, LARGEST_SHIFT)
    while True:
        factor = power_factors(shift + fraction_out, bias)
        integer = (rows * factor[:, None].to(rows.dtype)).round_()
        offset = (bias * factor).round_()
        largest = integer.abs().amax(dim=1)
        sums = LIMIT * integer.abs().sum(dim=1, dtype=torch.float64) + offset.abs() + power_factors(shift - 1, bias)
        too_large = (sums > _LARGEST_SUM) | (largest > LARGEST_WEIGHT)
        if not too_large.any():
            return integer.to(torch.int16), offset.to(torch.int32), shift.to(torch.int32)
        if (too_large & (shift == 0)).any():
            break
        shift = shift - too_large.to(shift.dtype)
    raise UnsupportedError(
        f"the weights of {name} are too large for integer arithmetic", advice="use the float profile"
    )


def integer_linear(
    weight: Tensor, bias: Tensor | None, fraction_in: Tensor, fraction_out: Tensor, name: str
) -> LinearWeights:
    """weight: N×K (or N×K×1×1), float32, of 24 significant bits at most; fraction_in: int K; fraction_out: int N.

    Raises UnsupportedError when it cannot be done.
    """
    rows = times_power_of_two(weight.reshape(weight.shape[0], -1), -fraction_in)
    zeros = torch.zeros(rows.shape[0], dtype=torch.float64)
    return LinearWeights(*_rows_to_integers(rows, zeros if bias is None else bias.double(), fraction_out, name))


def integer_depthwise(
    kernel: Tensor, bias: Tensor | None, fraction_in: Tensor, fraction_out: Tensor, name: str
) -> DepthwiseWeights:
    """kernel: C×1×k×k; fractions: int C."""
    channels, _, size, _ = kernel.shape
    rows = times_power_of_two(kernel.double().reshape(channels, -1), -fraction_in[:, None])
    zeros = torch.zeros(channels, dtype=torch.float64)
    taps, offset, shift = _rows_to_integers(rows, zeros if bias is None else bias.double(), fraction_out, name)
    return DepthwiseWeights(taps.T.reshape(size, size, channels).contiguous(), offset, shift)


def integer_norm(weight: Tensor, bias: Tensor, epsilon: float, fraction_in: int, fraction_out: Tensor) -> NormWeights:
    """weight, bias: C; fraction_in: of all input channels; fraction_out: int C."""
    shift = 16  # of n · gamma, with n below 2^12 · √C
    channels = weight.shape[0]
    gamma = times_power_of_two(weight.double(), fraction_out + (shift - NORM_SHIFT)).round()
    beta = times_power_of_two(bias.double(), fraction_out + shift).round()
    if max(gamma.abs().max(), beta.abs().max()) > _LARGEST_SUM:  # int32 tensors hold them
        raise UnsupportedError("the weights of a layer norm are too large for integer arithmetic")
    units = max(1, round(epsilon * channels**2 * 2.0 ** (2 * fraction_in)))
    return NormWeights(gamma.to(torch.int32), beta.to(torch.int32), shift, units)


def integer_factor(values: Tensor, name: str) -> Tensor:
    """Factors in units of 2^-12, int32 of the values' shape; raises UnsupportedError when one does not fit int16."""
    integer = times_power_of_two(values.double(), FACTOR_SHIFT).round()
    if integer.abs().max() > _LARGEST_FACTOR:
        raise UnsupportedError(
            f"a factor of {name} is too large for integer arithmetic", advice="use the float profile"
        )
    return integer.to(torch.int32)


def level_position(quality_code: int, levels: int) -> Tensor:
    """Where a quality code 0 … 200 lies among L levels, int64 2×2: the numbers of the levels around it, and their weights in 200ths.

    A tensor, so that what is computed with it is the same work for every quality.
    """
    level, rest = divmod(quality_code * (levels - 1), 200)
    return torch.tensor([[level, min(level + 1, levels - 1)], [200 - rest, rest]])


def interpolated(levels: Tensor, position: Tensor) -> Tensor:
    """Integer level values L×C at a `level_position`: floor((a·(200 − r) + b·r + 100) / 200), int64 C."""
    around = levels.index_select(0, position[0]).long() * position[1, :, None]
    return torch.div(around.sum(dim=0) + 100, 200, rounding_mode="floor")
