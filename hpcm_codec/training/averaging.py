"""Averaged weights, the ones to ship."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Averaged:
    """Exponential moving average of a model's parameters, in float32, warming up from the first step."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: p.detach().clone().float() for name, p in model.named_parameters()}

    def count(self) -> float:
        """Count an update; which part of it the new weights have in the averages."""
        self.updates += 1
        return 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor]) -> None:
        """parameters: the model's, in its order."""
        torch._foreach_lerp_(list(self.values.values()), [p.float() for p in parameters], self.count())
