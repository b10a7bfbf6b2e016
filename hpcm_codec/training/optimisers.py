"""The optimisers of a run behind one: AdamW, or Muon or SOAP for the matrices and AdamW for everything else.

Muon (in torch.optim since 2.9) orthogonalises the update of a matrix. A 1×1 convolution is a matrix too, and they are most of our
weights, so it is given them as matrices that share their memory. Its rate is matched to AdamW's (the update's root mean
square), so that one learning rate serves both. SOAP (see `soap`) takes the weights of all linear layers and convolutions but
the depthwise ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training.settings import TrainSettings
from hpcm_codec.training.soap import Soap


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter multiplies vectors: the weight of a linear layer or of a 1×1 convolution."""
    return has_two_sides(name, parameter) and all(n == 1 for n in parameter.shape[2:])


def has_two_sides(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is the weight of a linear layer or of a convolution that is not depthwise."""
    return name.endswith(".weight") and parameter.ndim >= 2 and min(parameter.shape[:2]) > 1


def is_decay(name: str) -> bool:
    """Whether a parameter is a decay or a boost of the Bi-WKV, which learn at a rate of their own."""
    return name.endswith((".decay", ".boost"))


class Optimiser:
    """All optimisers of a model; raises UnsupportedError for Muon where torch has none."""

    def __init__(self, model: HPCM, settings: TrainSettings) -> None:
        named = list(model.named_parameters())
        self._matrices: list[tuple[nn.Parameter, nn.Parameter]] = []
        if settings.optimiser == "muon":
            matrices = [p for name, p in named if is_matrix(name, p)]
            self._matrices = [(p, nn.Parameter(p.detach().view(p.shape[:2]))) for p in matrices]
        taken = {id(p) for p, _ in self._matrices}
        slow = [p for name, p in named if is_decay(name)]
        # A group of their own only where they need one: runs of before know two groups.
        apart = settings.patch_rate_factor != 1 and model.config.transform == "patch"
        patches = [*model.g_a[0].parameters(), *model.g_s[-1].parameters()] if apart else []
        taken |= {id(p) for p in (*slow, *patches)}
        lower = settings.transform_rate_factor != 1
        transforms = [p for p in (*model.g_a.parameters(), *model.g_s.parameters()) if lower and id(p) not in taken]
        taken |= {id(p) for p in transforms}
        groups: list[dict[str, Any]] = [
            {"params": [p for _, p in named if id(p) not in taken], "factor": 1.0},
            {"params": slow, "factor": settings.decay_rate_factor, "weight_decay": 0.0},
            {"params": patches, "factor": settings.patch_rate_factor},
            {"params": transforms, "factor": settings.transform_rate_factor},
        ]
        for_soap: list[dict[str, Any]] = []
        if settings.optimiser == "soap":
            wide = {id(p) for name, p in named if has_two_sides(name, p)}
            for_soap = [{**group, "params": [p for p in group["params"] if id(p) in wide]} for group in groups]
            groups = [{**group, "params": [p for p in group["params"] if id(p) not in wide]} for group in groups]
        shared: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        self._for_graphs = settings.cuda_graph
        adamw = torch.optim.AdamW(_filled(groups), fused=True, capturable=settings.cuda_graph, **shared)
        if settings.cuda_graph:  # a graph reads the rate from where it lies
            for group in adamw.param_groups:
                group["lr"] = torch.tensor(settings.learning_rate, device=group["params"][0].device)
        self._parts: dict[str, torch.optim.Optimizer] = {"adamw": adamw}
        self._soap = Soap(_filled(for_soap), refresh=settings.basis_refresh, **shared) if for_soap else None
        if self._soap is not None:
            self._parts["soap"] = self._soap
        if self._matrices:
            if not hasattr(torch.optim, "Muon"):
                raise UnsupportedError(f"torch {torch.__version__} has no Muon", advice="use torch 2.9 or newer")
            group = {"params": [matrix for _, matrix in self._matrices], "factor": 1.0}
            self._parts["muon"] = torch.optim.Muon([group], adjust_lr_fn="match_rms_adamw", **shared)

    @property
    def adamw_alone(self) -> torch.optim.Optimizer | None:
        """torch's AdamW when it has all weights; None otherwise."""
        return self._parts["adamw"] if len(self._parts) == 1 else None

    @property
    def can_be_captured(self) -> bool:
        """Whether `change` works inside a CUDA graph, after a few steps outside of it: as `cuda_graph` asks, but not for Muon."""
        return self._for_graphs and not self._matrices

    def set_rate(self, learning_rate: float) -> None:
        """The learning rate of the next step, of a group with factor 1."""
        for part in self._parts.values():
            for group in part.param_groups:
                rate = learning_rate * group["factor"]
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def step(self, learning_rate: float) -> None:
        """Change the weights by their gradients; learning_rate: of a group with factor 1."""
        self.prepare(learning_rate)
        self.change()
        self.refresh_bases()

    def prepare(self, learning_rate: float) -> None:
        """The part of a step that computes with numbers of this process."""
        self.set_rate(learning_rate)
        if self._soap is not None:
            self._soap.prepare()

    def change(self) -> None:
        """The part of a step that is the same operations on the same memory every time."""
        for parameter, matrix in self._matrices:
            matrix.grad = None if parameter.grad is None else parameter.grad.reshape(matrix.shape)
        for part in self._parts.values():
            if part is self._soap:
                self._soap.change()
            else:
                part.step()

    def refresh_bases(self) -> None:
        """The part of a step that is not needed in every one."""
        if self._soap is not None:
            self._soap.refresh_bases()

    def state_dict(self) -> dict[str, Any]:
        """AdamW's own state when it is alone, as it always was; else those of both by name."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        return states["adamw"] if len(states) == 1 else states

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over moments and counts; everything else stays as this run's settings have it."""
        for name, part in self._parts.items():
            own = ("factor", "weight_decay", "lr", "capturable", "refresh")
            kept = [{key: group[key] for key in own if key in group} for group in part.param_groups]
            part.load_state_dict(state if len(self._parts) == 1 else state[name])
            for group, values in zip(part.param_groups, kept, strict=True):
                group.update(values)


def _filled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups that have parameters."""
    return [group for group in groups if group["params"]]
