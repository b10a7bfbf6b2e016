"""Exact powers of two as tensors: what changes units between integers and floating point, without rounding."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# Powers that float32 holds too, made by Python: torch.ldexp has gone through a rounded power in some versions.
_REACH = 126
_POWERS = torch.tensor([2.0**exponent for exponent in range(-_REACH, _REACH + 1)], dtype=torch.float64)


@lru_cache(maxsize=8)
def _powers_on(device: torch.device) -> Tensor:
    """A copy for each device: copying it from the host at every use would make the device wait."""
    return _POWERS.to(device)


def power_factors(exponent: Tensor | int, like: Tensor) -> Tensor:
    """2^exponent, exactly, in the type and on the device of `like`; exponent: int or integers, within ±126."""
    if isinstance(exponent, int):
        return torch.full((), 2.0**exponent, dtype=like.dtype, device=like.device)
    return _powers_on(exponent.device)[exponent + _REACH].to(like.device, like.dtype)


def times_power_of_two(x: Tensor, exponent: Tensor | int) -> Tensor:
    """x · 2^exponent, of floating-point x; the exponent's shape must fit x."""
    return x * power_factors(exponent, x)
