"""The stored functions of the exact profile: made once, in float64, when a checkpoint is exported, and read from it ever after.

Two machines never compute their own: an exponential that differs in a last bit is a file that does not decode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcm_codec.ops.integer import EXP_SHIFT, GATE_REACH, GATE_SHIFT, round_shift

ARGUMENT_UNITS = 256  # of exponentials and sigmoids: one unit is 1/256
POWER_BITS = 12  # the table of powers of two has 2^12 steps per octave
LOG2_SHIFT = 16  # binary logarithms are in units of 2^-16
LOG2_E = 1.4426950408889634  # a float64 constant, used in single multiplications only


@dataclass(frozen=True)
class IntegerTables:
    """All int16.

    exponential: e^(−n/256), n = 0 … 2661, in units of 2^-14 (after its end: 0).
    sigmoid:     σ(n/256), n = −2048 … 2047, in units of 2^-14.
    power:       2^(n/4096), n = 0 … 4095, in units of 2^-14.
    """

    exponential: Tensor
    sigmoid: Tensor
    power: Tensor


def build_tables() -> IntegerTables:
    """The tables, in float64 on the CPU. Only ever called when a checkpoint is exported."""
    one = 1 << EXP_SHIFT
    length = math.ceil(ARGUMENT_UNITS * math.log(2 * one))
    falling = (one * torch.exp(-torch.arange(length, dtype=torch.float64) / ARGUMENT_UNITS)).round()
    argument = torch.arange(-GATE_REACH, GATE_REACH, dtype=torch.float64) / ARGUMENT_UNITS
    sigmoid = ((1 << GATE_SHIFT) * torch.sigmoid(argument)).round()
    steps = 1 << POWER_BITS
    power = (one * torch.exp2(torch.arange(steps, dtype=torch.float64) / steps)).round()
    return IntegerTables(*(table.to(torch.int16) for table in (falling, sigmoid, power)))


def power_of_two(exponent: Tensor, tables: IntegerTables) -> Tensor:
    """2^(exponent / 2^16) in units of 2^-14, int64; exponent: int64 in units of 2^-16, below 2^16 · 32."""
    whole = exponent >> LOG2_SHIFT
    mantissa = tables.power[(exponent & ((1 << LOG2_SHIFT) - 1)) >> (LOG2_SHIFT - POWER_BITS)].long()
    return torch.where(whole >= 0, mantissa << whole.clamp_min(0), round_shift(mantissa, (-whole).clamp(0, 40)))


def log2_fixed(logarithms: Tensor) -> Tensor:
    """Natural logarithms as binary ones in units of 2^-16, int64: one multiplication in float64."""
    return (logarithms.double() * (LOG2_E * (1 << LOG2_SHIFT))).round().long()
