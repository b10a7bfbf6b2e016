"""What stays in float32 where training runs under autocast: rounding it to bfloat16 would shift gradients the same way in every step.

Weights follow such a shift, as they do not follow noise. Without it, sixty steps in bfloat16 scored as sixty in float32
(docs/training-log.md, "What bfloat16 costs").
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_is_on(x: Tensor) -> bool:
    """Whether operations on x are under autocast, which leaves float64 alone."""
    kind = x.device.type
    return kind != "meta" and x.dtype != torch.float64 and torch.is_autocast_enabled(kind)


def outside_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, operations on x's device keep the dtypes that they are given."""
    return torch.autocast(x.device.type, enabled=False) if autocast_is_on(x) else nullcontext()


def in_autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast computes products in; as it is where autocast is off."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if autocast_is_on(x) else x


def stream(x: Tensor) -> Tensor:
    """x as residual blocks are to add to it: float32 under autocast, since bfloat16 loses small additions to large values."""
    return x.float() if autocast_is_on(x) else x
