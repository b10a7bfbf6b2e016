"""What training under autocast does not leave in bfloat16, since rounding there would be an error of one sign, not noise.

A run in bfloat16 then ends with the weights that it would reach in float32 (docs/training-log.md, "What bfloat16 costs").
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_is_on(x: Tensor) -> bool:
    """Whether operations on x's device are under autocast."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def outside_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, operations on x's device keep the dtypes that they are given."""
    return torch.autocast(x.device.type, enabled=False) if autocast_is_on(x) else nullcontext()


def in_autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast computes products in; as it is where autocast is off."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if autocast_is_on(x) else x


def stream(x: Tensor) -> Tensor:
    """x as residual blocks are to add to it: float32 under autocast, since bfloat16 loses small additions to large values."""
    return x.float() if autocast_is_on(x) else x
