"""What activations of a trained model reach, found by coding pictures in simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.rate import spread_positions


class LargestMagnitudes:
    """The largest magnitude of every channel of every activation, by name: float64 C."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}

    def see(self, name: str, x: Tensor) -> None:
        """x: B×C×h×w or B×T×C."""
        axes = (0, 2, 3) if x.ndim == 4 else (0, 1)
        largest = x.detach().abs().amax(dim=axes).double()
        self.by_name[name] = torch.maximum(self.by_name[name], largest) if name in self.by_name else largest


def code_pictures(model: HPCM, pictures: Sequence[Tensor], hooks: Sequence[Any]) -> None:
    """Code every picture at the lowest, the middle and the highest rate, and remove the hooks, which have seen it."""
    try:
        with torch.inference_mode():
            for picture in pictures:
                for position in spread_positions(model.config.rate_levels):
                    model(picture, position)
    finally:
        for hook in hooks:
            hook.remove()
