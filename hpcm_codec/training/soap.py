"""SOAP: Adam in the eigenbasis of each matrix's gradients.

Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (arXiv 2409.11321), algorithm 3. Zhang and Zhu (arXiv
2601.20769) found that learned image codecs need about a third of the steps with it.

For a weight matrix W (m×n) with gradient G, averages of G·Gᵀ and Gᵀ·G are kept. Their eigenvectors Q and R rotate the gradient into
QᵀGR; there Adam's squares are averaged, and the update is rotated back. Every `refresh` steps the eigenvectors follow by one step of
the power method. Matrices of one shape are computed together, as one batch, so that a step is a few hundred operations.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LARGEST_SIDE = 1024  # of a matrix that is rotated on that side; a longer side keeps its basis

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


class Soap(torch.optim.Optimizer):
    """For the weights of linear layers and convolutions; learning rates compare to AdamW's.

    betas:   of the averages of gradients, of their squares in the eigenbasis, and of G·Gᵀ and Gᵀ·G.
    refresh: steps between two changes of the eigenbasis; in the beginning it changes more often.

    A step is `prepare`, `change` and `refresh_bases`; from the third step on `change` can be captured as a CUDA graph.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.99, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        refresh: int = 10,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "refresh": refresh, "steps": 0}
        super().__init__(params, defaults)
        # what changes from step to step, where a captured `change` finds it: rate, correction of the squares, decay of the weights
        self._numbers = [torch.zeros(3, device=group["params"][0].device) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.prepare()
        self.change()
        self.refresh_bases()

    def prepare(self) -> None:
        """Count the step, and take over the learning rates."""
        for group, numbers in zip(self.param_groups, self._numbers, strict=True):
            mean_beta, square_beta, _ = group["betas"]
            group["steps"] += 1
            counted = max(1, group["steps"] - 1)  # the first step only starts the state
            rate = -group["lr"] / (1 - mean_beta**counted)
            values = rate, 1 / math.sqrt(1 - square_beta**counted), 1 - group["lr"] * group["weight_decay"]
            numbers.copy_(torch.tensor(values), non_blocking=True)

    @torch.no_grad()
    def change(self) -> None:
        """Change averages and weights by the gradients."""
        with _quick_products():
            for group, numbers in zip(self.param_groups, self._numbers, strict=True):
                parameters: list[Tensor] = []
                changes: list[Tensor] = []
                for alike in self._batches(group):
                    if (update := self._update(alike, group, numbers)) is not None:
                        parameters += alike
                        changes += [change.view(p.shape) for p, change in zip(alike, update, strict=True)]
                if not changes:
                    continue
                if group["weight_decay"]:
                    torch._foreach_mul_(parameters, numbers[2])
                torch._foreach_add_(parameters, changes)

    @torch.no_grad()
    def refresh_bases(self) -> None:
        """Let the eigenbases follow where it is time."""
        for group in self.param_groups:
            steps, refresh = group["steps"] - 1, group["refresh"]
            if steps and (steps % refresh == 0 or (steps < refresh and steps & (steps - 1) == 0)):
                for alike in self._batches(group):
                    state = self.state[alike[0]]
                    for side in ("rows", "columns"):
                        if f"{side}_basis" in state:
                            basis = state[f"{side}_basis"]
                            basis.copy_(power_step(state[f"{side}_products"], basis))

    def _batches(self, group: dict[str, Any]) -> list[list[nn.Parameter]]:
        """The parameters that have gradients, those of one shape together."""
        batches: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                batches[parameter.shape[0], parameter.numel() // parameter.shape[0]].append(parameter)
        return list(batches.values())

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any], numbers: Tensor) -> Tensor | None:
        """The changes of matrices of one shape, N×m×n; None for the first gradients, which only tell the basis."""
        gradients = torch.stack([p.grad.reshape(p.shape[0], -1) for p in parameters if p.grad is not None])
        state = self.state[parameters[0]]
        if not state:
            state.update(_start(gradients))
            return None
        mean_beta, square_beta, basis_beta = group["betas"]
        left, right = state.get("rows_basis"), state.get("columns_basis")
        state["mean"].lerp_(gradients, 1 - mean_beta)
        rotated = _rotated(gradients, left, right)
        state["square"].lerp_(rotated.square(), 1 - square_beta)
        deviation = (state["square"].sqrt() * numbers[1]).add_(group["eps"])
        update = _rotated_back(_rotated(state["mean"], left, right) / deviation, left, right).mul_(numbers[0])
        if left is not None:
            state["rows_products"].lerp_(gradients @ gradients.mT, 1 - basis_beta)
        if right is not None:
            state["columns_products"].lerp_(gradients.mT @ gradients, 1 - basis_beta)
        return update


@contextmanager
def _quick_products() -> Iterator[None]:
    """Matrix products of float32 in TF32 on GPUs that have it: their errors are far below the noise of gradients."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _start(gradients: Tensor) -> dict[str, Tensor]:
    """The state of a batch of matrices N×m×n, from their first gradients."""
    state = {"mean": torch.zeros_like(gradients), "square": torch.zeros_like(gradients)}
    for side, wide in (("rows", gradients), ("columns", gradients.mT)):
        if wide.shape[-2] <= LARGEST_SIDE:
            products = wide @ wide.mT
            state[f"{side}_products"] = products
            state[f"{side}_basis"] = torch.linalg.eigh(products).eigenvectors.flip(-1).contiguous()
    return state


def _rotated(x: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    x = x if left is None else left.mT @ x
    return x if right is None else x @ right


def _rotated_back(x: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    x = x if left is None else left @ x
    return x if right is None else x @ right.mT


def power_step(products: Tensor, basis: Tensor) -> Tensor:
    """The eigenvectors of symmetric matrices after a step of the power method, N×n×n: Q of the QR decomposition of products · basis.

    On a GPU by Cholesky's decomposition in float64, a batch at once; where rounding makes that fail, by reflections, one after the other.
    """
    if products.device.type != "cuda":
        return torch.linalg.qr(products @ basis).Q
    moved = products.double() @ basis.double()
    moved = moved / torch.linalg.vector_norm(moved, dim=-2, keepdim=True).clamp_min(1e-300)
    factor, failed = torch.linalg.cholesky_ex(moved.mT @ moved)
    ortho = torch.linalg.solve_triangular(factor.mT, moved, upper=True, left=False)
    bad = failed.bool() | ~(_disorder(ortho) < 1e-4)
    for index in bad.nonzero().flatten().tolist():
        ortho[index] = torch.linalg.qr(moved[index]).Q
    return ortho.to(basis.dtype)


def _disorder(basis: Tensor) -> Tensor:
    """How far each basis is from orthonormal: the largest entry of QᵀQ − 1."""
    return (basis.mT @ basis - torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device)).abs().amax((-2, -1))
