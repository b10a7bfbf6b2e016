"""The fused update of training and torch's: the same losses, and states that either goes on from."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training import loop, shared, updating
from hpcm_codec.training.averaging import Averaged
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.loop import Trainer
from hpcm_codec.training.optimisers import Optimiser
from hpcm_codec.training.processes import Processes
from hpcm_codec.training.updating import FusedUpdate, TorchUpdate, Update
from test_hpcm_phase1 import SMALL
from test_training import QUICK
from test_training_runs import rows_of, trained_in
from test_update import needs_compiler

pytestmark = pytest.mark.usefixtures("small_scores")

SETTINGS = dataclasses.replace(QUICK, log_every=1, decay_start=1.0, weight_decay=0.01, decay_rate_factor=0.25)


def rows_with(kinds: tuple[type, ...], pictures: PackedPictures, folder: Path, monkeypatch: Any) -> list[float]:
    """Losses of a run that is cut into as many parts of three steps as there are kinds of updates."""
    for part, kind in enumerate(kinds, start=1):
        monkeypatch.setattr(loop, "updating", kind)
        trainer = Trainer(SMALL, pictures, folder, dataclasses.replace(SETTINGS, steps=3 * part))
        trainer.run()
        assert isinstance(trainer.update, kind)
    return [row["loss"] for row in rows_of(folder)]


@needs_compiler
def test_runs_go_on_with_the_other_update_and_lose_the_same(
    pictures: PackedPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_with((TorchUpdate, TorchUpdate), pictures, tmp_path / "torch", monkeypatch)
    state = torch.load(tmp_path / "torch" / "state.pt", weights_only=True)
    for name, kinds in (("there", (FusedUpdate, TorchUpdate)), ("back", (TorchUpdate, FusedUpdate))):
        assert rows_with(kinds, pictures, tmp_path / name, monkeypatch) == pytest.approx(whole, rel=1e-4), name
        other = torch.load(tmp_path / name / "state.pt", weights_only=True)
        assert other.keys() == state.keys()
        for groups in (state["optimiser"]["param_groups"], other["optimiser"]["param_groups"]):
            assert [group["factor"] for group in groups] == [1.0, 0.25]
        assert {k: v["step"] for k, v in other["optimiser"]["state"].items()} == dict.fromkeys(
            state["optimiser"]["state"], torch.tensor(6.0)
        )
        for key, moments in state["optimiser"]["state"].items():
            for moment in ("exp_avg", "exp_avg_sq"):
                got = other["optimiser"]["state"][key][moment]
                assert got.stride() == moments[moment].stride()
                assert torch.allclose(got, moments[moment], rtol=1e-2, atol=1e-4)
        for key, value in state["average"].items():
            assert torch.allclose(other["average"][key], value, atol=1e-4), key


class Model(nn.Module):
    """A matrix, a convolution that lies in memory otherwise than its shape says, and a weight that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.matrix = nn.Parameter(torch.randn(5, 7))
        self.convolution = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
        self.unused = nn.Parameter(torch.ones(9))

    def loss(self) -> torch.Tensor:
        weights = torch.arange(48.0).view(4, 3, 2, 2)
        return (self.matrix.sum() * self.convolution * weights).sum() / 1000


class Rates(Optimiser):
    def __init__(self, model: nn.Module) -> None:
        self._matrices, self._soap, self._for_graphs = [], None, False
        groups = [{"params": list(model.parameters()), "factor": 1.0, "weight_decay": 0.1}]
        self._parts = {"adamw": torch.optim.AdamW(groups, fused=True)}


def updated(kind: type) -> tuple[Model, Averaged, list[float]]:
    model = Model()
    average = Averaged(model, 0.9)
    update: Update = kind(model, Rates(model), average, Processes(torch.device("cpu")))
    norms = []
    for step in range(4):
        update.backward(model.loss())
        norms.append(update.norm())
        if step == 2:
            update.skip()
        else:
            update.apply(0.01, updating.clipping(norms[-1], 0.5))
    return model, average, norms


@pytest.mark.parametrize("operators", ["auto", "torch"])
def test_norm_clipping_skipping_and_a_weight_without_gradient_are_as_with_torch(
    operators: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCM_OPS", operators)
    (fused, fused_average, norms), (plain, plain_average, expected) = (updated(k) for k in (FusedUpdate, TorchUpdate))
    assert norms == pytest.approx(expected, rel=1e-5)
    assert fused.convolution.stride() == plain.convolution.stride() == (12, 1, 6, 3)
    assert torch.equal(fused.unused, torch.ones(9))
    for name, value in plain.named_parameters():
        assert torch.allclose(fused.get_parameter(name), value, rtol=1e-5), name
        assert torch.allclose(fused_average.values[name], plain_average.values[name], rtol=1e-5), name
    assert fused_average.updates == 3


@needs_compiler
def test_the_fused_update_is_for_adamw_on_the_cpu_where_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(optimiser: str = "adamw") -> type:
        model = HPCM(SMALL)
        settings = dataclasses.replace(QUICK, optimiser=optimiser)  # type: ignore[arg-type]
        return type(
            updating.updating(model, Optimiser(model, settings), Averaged(model, 0.9), Processes(torch.device("cpu")))
        )

    assert chosen() is FusedUpdate
    assert chosen("muon") is TorchUpdate
    monkeypatch.setenv("HPCM_OPS", "torch")
    assert chosen() is TorchUpdate


class Two(Processes):
    """Process 0 of two, whose other one is nowhere."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.world = 2


def test_without_shared_memory_gradients_are_sent_and_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError("not here")

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    model = HPCM(SMALL)
    with pytest.warns(RuntimeWarning, match="not here"):
        update = updating.updating(model, Optimiser(model, QUICK), Averaged(model, 0.9), Two())
    assert isinstance(update, TorchUpdate)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # of two on two machines
    assert isinstance(updating.updating(model, Optimiser(model, QUICK), Averaged(model, 0.9), Two()), TorchUpdate)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")
def test_shared_memory_is_zeros_and_outlives_its_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    memory = shared.shared_memory(Processes(torch.device("cpu")), 5000)
    array = torch.frombuffer(memory, dtype=torch.float32, count=1250, offset=shared.HEAD)
    assert torch.equal(array, torch.zeros(1250))
    del memory, array
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(pictures: PackedPictures, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    settings = dataclasses.replace(QUICK, log_every=1, crops=(dataclasses.replace(QUICK.crops[0], batch=4),))
    Trainer(SMALL, pictures, tmp_path, dataclasses.replace(settings, steps=3)).run()
    sums = trained_in(2, 2, pictures, tmp_path)
    assert sums[0] == sums[1]
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    resumed = Trainer(SMALL, pictures, tmp_path, settings)
    assert float(sum(p.detach().double().sum() for p in resumed.model.parameters())) == pytest.approx(
        float(sums[0]), abs=1e-6
    )
