"""Qualities, and how a file stores them."""

from __future__ import annotations

from hpcm_codec.constants import HIGHEST_QUALITY, LOWEST_QUALITY, QUALITY_STEPS
from hpcm_codec.errors import UsageError


def quality_code(quality: float) -> int:
    """A quality of 0 .. 100 in half steps: 0 .. 200. Raises UsageError for others, not-a-number among them.

    >>> quality_code(47.6), quality_of(95)
    (95, 47.5)
    """
    if not LOWEST_QUALITY <= quality <= HIGHEST_QUALITY:
        raise UsageError(f"quality {quality:g} is not between {LOWEST_QUALITY:g} and {HIGHEST_QUALITY:g}")
    return round(QUALITY_STEPS * quality)


def quality_of(code: int) -> float:
    """The quality of a code."""
    return code / QUALITY_STEPS
