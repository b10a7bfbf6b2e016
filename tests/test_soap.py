"""SOAP: bases that follow the gradients, steps that curvature cannot slow down, and runs that resume with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import needs_cuda
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.loop import Trainer
from hpcm_codec.training.optimisers import Optimiser, has_two_sides
from hpcm_codec.training.soap import Soap, power_step
from hpcm_codec.weights.checkpoints import load_checkpoint
from test_hpcm_phase1 import SMALL
from test_training import QUICK
from test_training_runs import check_exact_resuming

pytestmark = pytest.mark.usefixtures("small_scores")

SETTINGS = dataclasses.replace(QUICK, optimiser="soap", basis_refresh=3, decay_start=1.0)


def stretched(size: int, seed: int) -> Tensor:
    """A symmetric matrix whose eigenvalues go from 1 down to 1/1000, in directions that have nothing to do with the axes."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    return basis @ torch.logspace(0, -3, size).diag() @ basis.mT


def loss_after(steps: int, make: Callable[..., torch.optim.Optimizer], **options: Any) -> float:
    """What is left of a loss that falls steeply in some directions and hardly in others."""
    weight = nn.Parameter(torch.zeros(16, 24))
    aim = torch.randn(16, 24, generator=torch.Generator().manual_seed(2))
    left, right = stretched(16, 0), stretched(24, 1)
    optimiser = make([weight], lr=0.03, **options)

    def loss() -> Tensor:
        return (left @ (weight - aim) @ right).square().sum()

    before = float(loss().detach())
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    return float(loss().detach()) / before


def test_directions_that_no_axis_follows_are_learnt_faster_than_with_adam() -> None:
    soap, adam = loss_after(150, Soap), loss_after(150, torch.optim.AdamW, weight_decay=0.0)
    assert soap < adam / 3


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_steps_of_the_power_method_find_the_eigenvectors(device: str) -> None:
    products = torch.stack([stretched(12, seed) for seed in range(3)]).to(device)
    basis = torch.eye(12, device=device).expand(3, 12, 12).contiguous()
    for _ in range(60):
        basis = power_step(products, basis)
    diagonal = basis.mT @ products @ basis
    off = diagonal - torch.diag_embed(diagonal.diagonal(dim1=-2, dim2=-1))
    assert float(off.abs().max()) < 1e-4
    assert torch.allclose(basis.mT @ basis, torch.eye(12, device=device).expand(3, 12, 12), atol=1e-5)


@needs_cuda
def test_products_without_full_rank_still_give_a_basis() -> None:
    thin = torch.randn(2, 40, 3, device="cuda")
    basis = power_step(thin @ thin.mT, torch.eye(40, device="cuda").expand(2, 40, 40).contiguous())
    assert torch.allclose(basis.mT @ basis, torch.eye(40, device="cuda").expand(2, 40, 40), atol=1e-3)


def test_soap_has_the_weights_with_two_sides() -> None:
    named = dict(HPCM(SMALL).named_parameters())
    taken = {name for name, parameter in named.items() if has_two_sides(name, parameter)}
    assert {"context.cells.0.inner.query.weight", "g_a.0.weight"} <= taken
    assert not any(name.endswith(("bias", "level_values", "spatial.weight", "decay", "phase_bias")) for name in taken)


def test_a_long_side_keeps_its_basis() -> None:
    torch.manual_seed(0)
    weight, gradient = nn.Parameter(torch.zeros(2, 1500)), torch.randn(2, 1500)
    optimiser = Soap([weight], lr=0.1)
    for _ in range(2):
        weight.grad = gradient
        optimiser.step()
    assert "rows_basis" in optimiser.state[weight] and "columns_basis" not in optimiser.state[weight]
    size = weight.detach().square().mean().sqrt()
    assert float(size) == pytest.approx(0.1, rel=1e-3), (
        "a gradient that stays moves by the rate, in every direction of its basis"
    )


def test_weights_decay_and_gradients_may_be_missing() -> None:
    weights = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))]
    optimiser = Soap(weights, lr=0.1, weight_decay=0.5)
    for _ in range(3):
        weights[0].grad = torch.zeros(3, 4)
        optimiser.step()
    assert torch.allclose(weights[0].detach(), torch.full((3, 4), 0.95**2))
    assert torch.equal(weights[1].detach(), torch.ones(3, 4))


def test_runs_with_soap_resume_exactly(pictures: PackedPictures, tmp_path: Path) -> None:
    check_exact_resuming(pictures, tmp_path, SETTINGS, 4)


@needs_cuda
@pytest.mark.parametrize("optimiser", ["adamw", "soap"])
def test_captured_updates_are_plain_ones(optimiser: str, pictures: PackedPictures, tmp_path: Path) -> None:
    ends = []
    for graph in (False, True):
        settings = dataclasses.replace(SETTINGS, steps=14, bfloat16=False, cuda_graph=graph, optimiser=optimiser)  # type: ignore[arg-type]
        trainer = Trainer(SMALL, pictures, tmp_path / str(graph), settings, "cuda")
        trainer.run()
        ends.append(load_checkpoint(str(tmp_path / str(graph) / "weights.safetensors")).weights)
    assert getattr(trainer.update, "_graph", None) is not None
    for name, value in ends[0].items():
        assert torch.allclose(ends[1][name], value, rtol=2e-2, atol=2e-4), name


@needs_cuda
def test_a_captured_run_resumes(pictures: PackedPictures, tmp_path: Path) -> None:
    for steps in (8, 16):
        trainer = Trainer(
            SMALL, pictures, tmp_path, dataclasses.replace(SETTINGS, steps=steps, cuda_graph=True), "cuda"
        )
        trainer.run()
    assert trainer.step == 16 and trainer.skipped == 0


def test_the_parts_of_a_step_are_a_step() -> None:
    ends = []
    for whole in (True, False):
        torch.manual_seed(0)
        model = HPCM(SMALL)
        optimiser = Optimiser(model, SETTINGS)
        for _ in range(5):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            if whole:
                optimiser.step(1e-3)
            else:
                optimiser.prepare(1e-3)
                optimiser.change()
                optimiser.refresh_bases()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)
