"""The optimisers of a run behind one: AdamW, or Muon for the matrices and AdamW for everything else.

Muon (in torch.optim since 2.9) orthogonalises the update of a matrix. A 1×1 convolution is a matrix too, and they are most of our
weights, so it is given them as matrices that share their memory. Its rate is matched to AdamW's (the update's root mean
square), so that one learning rate serves both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training.settings import TrainSettings


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter multiplies vectors: the weight of a linear layer or of a 1×1 convolution."""
    shape = tuple(parameter.shape)
    return name.endswith(".weight") and len(shape) >= 2 and min(shape[:2]) > 1 and all(n == 1 for n in shape[2:])


class Optimiser:
    """All optimisers of a model; raises UnsupportedError for Muon where torch has none."""

    def __init__(self, model: HPCM, settings: TrainSettings) -> None:
        named = list(model.named_parameters())
        self._matrices: list[tuple[nn.Parameter, nn.Parameter]] = []
        if settings.optimiser == "muon":
            matrices = [p for name, p in named if is_matrix(name, p)]
            self._matrices = [(p, nn.Parameter(p.detach().view(p.shape[:2]))) for p in matrices]
        taken = {id(p) for p, _ in self._matrices}
        slow = [p for name, p in named if name.endswith((".decay", ".boost"))]
        # A group of their own only where they need one: runs of before know two groups.
        apart = settings.patch_rate_factor != 1 and model.config.transform == "patch"
        patches = [*model.g_a[0].parameters(), *model.g_s[-1].parameters()] if apart else []
        taken |= {id(p) for p in (*slow, *patches)}
        lower = settings.transform_rate_factor != 1
        transforms = [p for p in (*model.g_a.parameters(), *model.g_s.parameters()) if lower and id(p) not in taken]
        taken |= {id(p) for p in transforms}
        groups = [
            {"params": [p for _, p in named if id(p) not in taken], "factor": 1.0},
            {"params": slow, "factor": settings.decay_rate_factor, "weight_decay": 0.0},
            {"params": patches, "factor": settings.patch_rate_factor},
            {"params": transforms, "factor": settings.transform_rate_factor},
        ]
        shared: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        self._parts: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW([group for group in groups if group["params"]], fused=True, **shared)
        }
        if self._matrices:
            if not hasattr(torch.optim, "Muon"):
                raise UnsupportedError(f"torch {torch.__version__} has no Muon", advice="use torch 2.9 or newer")
            group = {"params": [matrix for _, matrix in self._matrices], "factor": 1.0}
            self._parts["muon"] = torch.optim.Muon([group], adjust_lr_fn="match_rms_adamw", **shared)

    @property
    def adamw_alone(self) -> torch.optim.Optimizer | None:
        """torch's AdamW when it has all weights; None otherwise."""
        return self._parts["adamw"] if len(self._parts) == 1 else None

    def set_rate(self, learning_rate: float) -> None:
        """The learning rate of the next step, of a group with factor 1."""
        for part in self._parts.values():
            for group in part.param_groups:
                group["lr"] = learning_rate * group["factor"]

    def step(self, learning_rate: float) -> None:
        """Change the weights by their gradients; learning_rate: of a group with factor 1."""
        for parameter, matrix in self._matrices:
            matrix.grad = None if parameter.grad is None else parameter.grad.reshape(matrix.shape)
        self.set_rate(learning_rate)
        for part in self._parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """AdamW's own state when it is alone, as it always was; else those of both by name."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        return states["adamw"] if len(states) == 1 else states

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over moments and counts; factors and weight decay stay those of this run's settings."""
        for name, part in self._parts.items():
            kept = [{key: group[key] for key in ("factor", "weight_decay")} for group in part.param_groups]
            part.load_state_dict(state if len(self._parts) == 1 else state[name])
            for group, values in zip(part.param_groups, kept, strict=True):
                group.update(values)
