"""Samples drawn ahead by other processes are those that the step would have drawn itself, whatever happens to the processes."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from conftest import needs_cuda
from hpcm_codec.errors import FileError
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.loop import Trainer
from hpcm_codec.training.prefetch import OnDevice, Prefetcher
from hpcm_codec.training.samples import Batch, draw_batch
from hpcm_codec.training.settings import CropPhase
from hpcm_codec.weights.checkpoints import load_checkpoint
from test_hpcm_phase1 import SMALL
from test_training import QUICK

pytestmark = pytest.mark.usefixtures("one_thread", "small_scores")
PHASE = CropPhase(0, 64, 2)


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(ours, theirs) for ours, theirs in zip(one.tensors(), other.tensors(), strict=True))


def test_batches_are_those_of_their_steps_also_after_jumps_changes_and_the_end_of_a_process(
    pictures: PackedPictures,
) -> None:
    draw = partial(draw_batch, pictures, SMALL, QUICK)
    ahead = Prefetcher(draw, 1)
    larger = CropPhase(0.5, 128, 1)
    for phase, step in ((PHASE, 3), (PHASE, 4), (larger, 5), (larger, 6), (larger, 2)):
        assert same(ahead.take(phase, step), draw(phase, step)), (phase, step)
    with pytest.raises(FileError, match="640 pixels"):
        ahead.take(CropPhase(0, 640, 1), 3)
    assert ahead._pool is not None
    for number in ahead._pool._processes:
        os.kill(number, signal.SIGKILL)
    with pytest.warns(UserWarning, match="draws its samples itself"):
        for step in range(3, 9):  # what was drawn before the death may still be there
            assert same(ahead.take(larger, step), draw(larger, step))
    ahead.close()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_batches_that_a_thread_copies_to_the_device_are_those_of_their_steps(
    pictures: PackedPictures, device: str
) -> None:
    draw = partial(draw_batch, pictures, SMALL, QUICK)
    samples = OnDevice(Prefetcher(draw, 1), torch.device(device), ahead=True)
    larger = CropPhase(0.5, 128, 1)
    for phase, step in ((PHASE, 3), (PHASE, 4), (larger, 5), (larger, 6), (larger, 2)):
        batch = samples.take(phase, step)
        assert batch.pixels.device.type == device
        assert same(batch.to(torch.device("cpu")), draw(phase, step)), (phase, step)
    samples.close()


def test_pictures_travel_to_another_process_by_name(pictures: PackedPictures) -> None:
    data = pickle.dumps(pictures)
    assert len(data) < 500 and len(pickle.loads(data)) == len(pictures)


def test_a_run_with_loaders_that_is_cut_ends_as_one_without(pictures: PackedPictures, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, steps=None, minutes=60.0)
    for folder, loaders, cuts in (("plain", 0, (4,)), ("ahead", 1, (2, 4))):
        for steps in cuts:
            trainer = Trainer(SMALL, pictures, tmp_path / folder, dataclasses.replace(settings, loaders=loaders))
            trainer.run(asked_to_stop=lambda trainer=trainer, steps=steps: trainer.step == steps)  # type: ignore[misc]
            assert trainer.samples._samples._pool is None
    plain, ahead = (load_checkpoint(str(tmp_path / name / "weights.safetensors")) for name in ("plain", "ahead"))
    assert plain.identity == ahead.identity
