"""Integer weights of linear and depthwise layers, made in C++ out of stored ones (csrc/integer_weights.h)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.ops.integer_calls import call, checked
from hpcm_codec.ops.integer_layers import Linear, PackedLinear

PACKED = 16  # outputs that the matrix product takes together


def packed_linear(weights: Linear) -> PackedLinear:
    """The weights in the form of the compiled product."""
    if isinstance(weights, PackedLinear):
        return weights
    outputs, inputs = weights.weight.shape
    missing = -outputs % PACKED
    weight = checked("weight", weights.weight, (outputs, inputs))
    bias = checked("bias", weights.bias, (outputs,), np.int32)
    shift = checked("shift", weights.shift, (outputs,), np.int32)
    packed = np.empty((outputs + missing) * (inputs + inputs % 2), np.int16)
    call("integer_pack", weight, packed, outputs, inputs)
    offset = bias + ((np.ones_like(shift) << shift) >> 1)
    offset, shift = (np.pad(part, (0, missing)) for part in (offset, shift))
    return PackedLinear(packed, offset, shift, outputs, inputs, weights.limit)


def made_linear(
    rows: NDArray[np.float32] | tuple[NDArray[np.uint8], NDArray[np.int8], int],
    row_factor: NDArray[np.float32] | None,
    input_units: NDArray[np.float32],
    bias: NDArray[np.float64] | None,
    fraction: NDArray[np.int64],
    bound: int,
    limit: int,
) -> PackedLinear | None:
    """The layer of real rows N×K, or of packed rows (integers, exponents, bits); None where int32 cannot hold its sums.

    input_units: K powers of two that inputs are multiplied with; bound: what their integers' magnitudes stay within.
    """
    outputs, inputs = len(fraction), len(input_units)
    if isinstance(rows, tuple):
        stored, exponents, bits = rows
        stored = checked("stored", stored, (outputs, inputs * bits // 8), np.uint8)
        exponents = checked("exponents", exponents, (outputs,), np.int8)
        source: tuple[Any, ...] = stored, exponents, bits, None
    else:
        source = None, None, 0, checked("rows", rows, (outputs, inputs), np.float32)
    padded = outputs + -outputs % PACKED
    packed = np.empty(padded * (inputs + inputs % 2), np.int16)
    offset, shift, failed = np.empty(padded, np.int32), np.empty(padded, np.int32), np.zeros(1, np.int64)
    if row_factor is not None:
        row_factor = checked("row_factor", row_factor, (outputs,), np.float32)
    if bias is not None:
        bias = checked("bias", bias, (outputs,), np.float64)
    units = checked("input_units", input_units, (inputs,), np.float32)
    fraction = checked("fraction", fraction, (outputs,), np.int64)
    sizes = bound, outputs, inputs
    call("integer_make_linear", *source, row_factor, units, bias, fraction, *sizes, packed, offset, shift, failed)
    return None if failed[0] else PackedLinear(packed, offset, shift, outputs, inputs, limit)


def made_rows(
    rows: NDArray[np.float64], bias: NDArray[np.float64], fraction: NDArray[np.int64], bound: int
) -> tuple[NDArray[np.int16], NDArray[np.int32], NDArray[np.int32]] | None:
    """Rows N×K, in units of their inputs, as int16, with bias and shift; None where int32 cannot hold their sums."""
    outputs, inputs = rows.shape
    rows = checked("rows", rows, (outputs, inputs), np.float64)
    bias = checked("bias", bias, (outputs,), np.float64)
    fraction = checked("fraction", fraction, (outputs,), np.int64)
    integers, failed = np.empty((outputs, inputs), np.int16), np.zeros(1, np.int64)
    offset, shift = np.empty(outputs, np.int32), np.empty(outputs, np.int32)
    call("integer_make_rows", rows, bias, fraction, bound, outputs, inputs, integers, offset, shift, failed)
    return None if failed[0] else (integers, offset, shift)


def unpacked(stored: NDArray[np.uint8], exponents: NDArray[np.int8], bits: int) -> NDArray[np.float32]:
    """The real rows N×K of packed ones."""
    outputs, inputs = len(exponents), stored.shape[1] * 8 // bits
    rows = np.empty((outputs, inputs), np.float32)
    stored = checked("stored", stored, (outputs, inputs * bits // 8), np.uint8)
    call("integer_unpack", stored, checked("exponents", exponents, (outputs,), np.int8), bits, rows, outputs, inputs)
    return rows
