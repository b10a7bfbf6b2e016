"""Training steps replayed as a CUDA graph are plain steps, only faster."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from conftest import needs_cuda
from hpcm_codec.errors import UnsupportedError, UsageError
from hpcm_codec.training.captured import CapturedStep
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.loop import Trainer
from hpcm_codec.training.losses import RateDistortion
from hpcm_codec.training.samples import Batch
from hpcm_codec.training.settings import CropPhase
from hpcm_codec.weights.checkpoints import load_checkpoint
from test_hpcm_phase1 import SMALL
from test_training import QUICK


@needs_cuda
def test_cuda_graph_steps_train_as_plain_steps_do(pictures: PackedPictures, tmp_path: Path) -> None:
    crops = (CropPhase(0, 64, 2), CropPhase(0.5, 128, 2))  # a second shape is captured anew
    ends = []
    for name, graph in (("plain", False), ("graph", True)):
        settings = dataclasses.replace(QUICK, steps=12, crops=crops, bfloat16=False, cuda_graph=graph)
        Trainer(SMALL, pictures, tmp_path / name, settings, "cuda").run()
        ends.append(load_checkpoint(str(tmp_path / name / "weights.safetensors")).weights)
    for name, value in ends[0].items():
        assert torch.allclose(ends[1][name], value, rtol=1e-2, atol=1e-4), name


@needs_cuda
def test_a_step_that_waits_for_the_device_is_refused_by_name(pictures: PackedPictures, tmp_path: Path) -> None:
    trainer = Trainer(SMALL, pictures, tmp_path, QUICK, "cuda")
    trainer._prepare_update()

    def waiting(batch: Batch) -> RateDistortion:
        outcome = trainer._plain_losses(batch)
        float(outcome.loss)
        return outcome

    with pytest.raises(UnsupportedError, match="cannot be captured"):
        CapturedStep(waiting)(trainer._draw(0.0))
    trainer.samples.close()


@needs_cuda
def test_an_error_of_the_compiler_keeps_its_own_advice(pictures: PackedPictures, tmp_path: Path) -> None:
    trainer = Trainer(SMALL, pictures, tmp_path, QUICK, "cuda")
    trainer._prepare_update()

    def refusing(batch: Batch) -> RateDistortion:
        raise UnsupportedError("torch.compile does not work here", advice="leave --compile out")

    with pytest.raises(UnsupportedError, match="leave --compile out"):
        CapturedStep(refusing)(trainer._draw(0.0))
    trainer.samples.close()


def test_a_cuda_graph_on_another_device_is_refused(pictures: PackedPictures, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CUDA device"):
        Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, cuda_graph=True), "cpu")
