"""The stored functions of the exact profile: made once, in float64, when a checkpoint is exported, and always read from there.

No machine computes its own: if an exponential differed in its last bit, files would not decode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcm_codec.ops.integer import EXP_SHIFT, GATE_REACH, GATE_SHIFT, Array, round_shift

ARGUMENT_UNITS = 256  # of exponentials and sigmoids: one unit is 1/256
POWER_BITS = 12  # the table of powers of two has 2^12 steps per octave
LOG2_SHIFT = 16  # binary logarithms are in units of 2^-16
THRESHOLD_FRACTION = 12  # thresholds of linear scales are in units of 2^-12
_LENGTHS = {
    "exponential": math.ceil(ARGUMENT_UNITS * math.log(2 << EXP_SHIFT)),  # up to where it rounds to 0
    "sigmoid": 2 * GATE_REACH,
    "power": 1 << POWER_BITS,
    "thresholds": 63,  # between the coder's 64 widths
}
LOG2_E = 1.4426950408889634  # a float64 constant, used in single multiplications only


@dataclass(frozen=True)
class StoredFunctions:
    """All int16, but for the thresholds.

    exponential: e^(−n/256), n = 0 … 2661, in units of 2^-14 (after its end: 0).
    sigmoid:     σ(n/256), n = −2048 … 2047, in units of 2^-14.
    power:       2^(n/4096), n = 0 … 4095, in units of 2^-14.
    thresholds:  int32, in models of linear scales only: from the n-th of these on, in units of 2^-12, a scale has the table index n + 1.
    """

    exponential: Array
    sigmoid: Array
    power: Array
    thresholds: Array | None = None

    @classmethod
    def of(cls, tables: Mapping[str, Any]) -> StoredFunctions:
        """From tables by name; raises KeyError where one is missing, ValueError for one of another length."""
        found = cls(tables["exponential"], tables["sigmoid"], tables["power"], tables.get("thresholds"))
        for name, table in found.tables().items():
            if tuple(table.shape) != (_LENGTHS[name],):
                raise ValueError(f"the function {name} has the shape {tuple(table.shape)}, not ({_LENGTHS[name]},)")
        return found

    def tables(self) -> dict[str, Any]:
        """Those that there are, by name."""
        return {name: table for name, table in vars(self).items() if table is not None}


def build_functions(borders: Sequence[float] | None = None) -> StoredFunctions:
    """The functions as numpy arrays, made in float64 on the CPU. Only ever called when a checkpoint is exported.

    borders: of models of linear scales, the scales at which the table index rises by one.
    """
    one = 1 << EXP_SHIFT
    falling = np.rint(one * np.exp(-np.arange(_LENGTHS["exponential"], dtype=np.float64) / ARGUMENT_UNITS))
    argument = np.arange(-GATE_REACH, GATE_REACH, dtype=np.float64) / ARGUMENT_UNITS
    sigmoid = np.rint((1 << GATE_SHIFT) / (1 + np.exp(-argument)))
    steps = 1 << POWER_BITS
    power = np.rint(one * np.exp2(np.arange(steps, dtype=np.float64) / steps))
    thresholds = None if borders is None else np.ceil(np.ldexp(borders, THRESHOLD_FRACTION)).astype(np.int32)
    exponential, gates, powers = (table.astype(np.int16) for table in (falling, sigmoid, power))
    return StoredFunctions(exponential, gates, powers, thresholds)


def power_of_two(exponent: Array, power: Array) -> Array:
    """2^(exponent / 2^16) in units of 2^-14, int64; exponent: int64 in units of 2^-16, below 2^16 · 32; power: the table, as int64."""
    whole = exponent >> LOG2_SHIFT
    mantissa = power[(exponent & ((1 << LOG2_SHIFT) - 1)) >> (LOG2_SHIFT - POWER_BITS)]
    return round_shift(mantissa << whole.clip(0, 40), (-whole).clip(0, 40))


def log2_fixed(logarithms: Array) -> Array:
    """Natural logarithms (float64) as binary ones in units of 2^-16, int64: one multiplication in float64."""
    return np.rint(logarithms * (LOG2_E * (1 << LOG2_SHIFT))).astype(np.int64)
