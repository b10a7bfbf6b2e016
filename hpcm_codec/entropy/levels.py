"""The scales that have a table: 64 levels, log-spaced. Imports nothing, as what codes without torch needs them."""

from __future__ import annotations

import math

SCALE_LEVELS = 64
SMALLEST_SCALE = 0.12
LARGEST_SCALE = 64.0
LOG_SCALE_STEP = math.log(LARGEST_SCALE / SMALLEST_SCALE) / (SCALE_LEVELS - 1)
PRECISION_BITS = 16  # cumulative frequencies of the range coder add up to 2^16
