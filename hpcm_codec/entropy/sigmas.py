"""The widths σ that have a table: 64, log-spaced. Imports nothing, since the engine without torch needs them too."""

from __future__ import annotations

import math

SIGMA_COUNT = 64
SMALLEST_SIGMA = 0.12
LARGEST_SIGMA = 64.0
LOG_SIGMA_STEP = math.log(LARGEST_SIGMA / SMALLEST_SIGMA) / (SIGMA_COUNT - 1)
PRECISION_BITS = 16  # cumulative frequencies of the rANS coder add up to 2^16


def sigma_borders() -> list[float]:
    """The 63 widths at which the nearest of the 64 changes: halfway between the logarithms of two."""
    return [SMALLEST_SIGMA * math.exp((index + 0.5) * LOG_SIGMA_STEP) for index in range(SIGMA_COUNT - 1)]
