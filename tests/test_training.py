"""The trainer: data that come out as they went in, a loss that falls, runs that survive being cut."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcm_codec.errors import FileError, UnsupportedError
from hpcm_codec.model.config import preset
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training.data import PackedPictures, pack_pictures
from hpcm_codec.training.growing import _old_channels, grow
from hpcm_codec.training.loop import Trainer
from hpcm_codec.training.losses import lambda_at, rate_distortion
from hpcm_codec.training.samples import draw_batch
from hpcm_codec.training.scoring import score
from hpcm_codec.training.settings import CropPhase, TrainSettings, crop_phase, schedule_factor
from hpcm_codec.weights.checkpoints import load_checkpoint
from test_hpcm_phase1 import SMALL

pytestmark = pytest.mark.usefixtures("small_scores")

QUICK = TrainSettings(
    steps=6, warmup_steps=2, crops=(CropPhase(0.0, 64, 2),), log_every=2, save_minutes=60, bfloat16=False
)


def test_packed_pictures_are_the_pictures(pictures: PackedPictures) -> None:
    assert [pictures[i].shape for i in range(4)] == [(150, 200, 3), (150, 201, 3), (150, 202, 3), (130, 140, 3)]
    assert (pictures[3] == 77).all()


def test_crops_are_seeded_and_never_from_pictures_that_are_too_small(pictures: PackedPictures) -> None:
    generators = [np.random.default_rng(3) for _ in range(2)]
    first, again = (torch.stack([pictures.crop(140, g) for _ in range(5)]) for g in generators)
    assert first.shape == (5, 3, 140, 140) and first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not (first == 77).all(dim=(1, 2, 3)).any()
    with pytest.raises(FileError, match="smaller crops"):
        pictures.crop(160, np.random.default_rng(0))


def test_crops_that_no_picture_holds_are_refused_before_the_run_begins(
    pictures: PackedPictures, tmp_path: Path
) -> None:
    late = (CropPhase(0.0, 64, 2), CropPhase(0.9, 192, 1))
    with pytest.raises(FileError, match="192 pixels"):
        Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, crops=late))


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no pictures"):
        pack_pictures(tmp_path, tmp_path / "x.pack")


def test_lambdas_are_log_spaced_between_the_published_ends() -> None:
    lambdas = lambda_at(torch.tensor([0.0, 3.5, 7.0], dtype=torch.float64), preset("phase1-lite").lambdas)
    assert lambdas[0] == pytest.approx(0.0018) and lambdas[2] == pytest.approx(0.0483)
    assert lambdas[1] == pytest.approx((0.0018 * 0.0483) ** 0.5)


def test_the_loss_is_the_sum_it_claims_to_be() -> None:
    x = torch.zeros(1, 3, 64, 64)
    likelihoods = {"y": torch.full((1, 4, 4, 4), 0.5), "z": torch.full((1, 2, 1, 1), 0.25)}
    outcome = rate_distortion({"x_hat": x + 0.1, "likelihoods": likelihoods}, x, torch.tensor([0.04]))  # type: ignore[typeddict-item]
    bpp = (64 + 4) / 4096
    assert float(outcome.bits_per_pixel) == pytest.approx(bpp)
    assert float(outcome.loss) == pytest.approx((0.04 * 255**2 * 0.01 + bpp) / 2, rel=1e-5)


def test_the_schedule_warms_up_holds_and_ends_at_zero() -> None:
    settings = dataclasses.replace(
        QUICK, warmup_steps=10, decay_start=0.5, crops=(CropPhase(0, 64, 2), CropPhase(0.6, 96, 1))
    )
    assert schedule_factor(0.0, 0, settings) == pytest.approx(0.1)
    assert schedule_factor(0.4, 100, settings) == 1
    assert schedule_factor(0.75, 100, settings) == pytest.approx(0.5)
    assert schedule_factor(1.0, 100, settings) == pytest.approx(0)
    assert [crop_phase(p, settings).edge for p in (0, 0.59, 0.6, 1)] == [64, 64, 96, 96]


def test_training_lowers_the_loss(pictures: PackedPictures, tmp_path: Path) -> None:
    crops = pictures.sample(edge=64, batch=8)
    settings = dataclasses.replace(QUICK, steps=40, log_every=10, learning_rate=3e-3)
    trainer = Trainer(SMALL, pictures, tmp_path, settings)
    before = score(trainer.model.eval(), crops)
    trainer.run()
    assert score(trainer.model.eval(), crops).value < 0.8 * before.value
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert load_checkpoint(str(tmp_path / "weights.safetensors")).training["steps"] == 40
    assert 0 < trainer.waited_share < 0.5


def test_a_run_that_was_interrupted_continues_where_it_stopped(pictures: PackedPictures, tmp_path: Path) -> None:
    trainer = Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, steps=3))
    trainer.run()
    resumed = Trainer(SMALL, pictures, tmp_path, QUICK)
    assert resumed.step == 3
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    assert resumed.average.updates == trainer.average.updates
    assert len(resumed.optimiser.state_dict()["state"]) == len(trainer.optimiser.state_dict()["state"]) > 0
    resumed.run()
    assert resumed.step == 6


def test_a_run_cut_and_resumed_ends_with_the_weights_of_an_uncut_one(pictures: PackedPictures, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, decay_start=1.0)  # a rate that does not depend on the run's length
    for folder, lengths in (("cut", (3, 6)), ("whole", (6,))):
        for steps in lengths:
            Trainer(SMALL, pictures, tmp_path / folder, dataclasses.replace(settings, steps=steps)).run()
    cut, whole = (load_checkpoint(str(tmp_path / folder / "weights.safetensors")) for folder in ("cut", "whole"))
    assert cut.identity == whole.identity


def test_a_run_of_another_model_is_not_continued(pictures: PackedPictures, tmp_path: Path) -> None:
    Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, steps=1)).run()
    with pytest.raises(FileError, match="another model"):
        Trainer(dataclasses.replace(SMALL, hyper_channels=16), pictures, tmp_path, QUICK)


def test_steps_with_gradients_that_are_not_finite_are_skipped_and_counted(
    pictures: PackedPictures, tmp_path: Path
) -> None:
    trainer = Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, steps=2))
    original = trainer.model.forward

    def poisoned(x, position, noise):
        result = original(x, position, noise)
        result["x_hat"] = result["x_hat"] * (float("nan") if trainer.step == 0 else 1.0)
        return result

    trainer.model.forward = poisoned  # type: ignore[method-assign, assignment]
    trainer.run()
    assert trainer.skipped == 1
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())


def trained_small() -> HPCM:
    """A small model whose weights are not the initial ones, in which some branches are silent."""
    torch.manual_seed(5)
    model = HPCM(SMALL).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def test_a_widened_model_computes_what_the_narrow_one_did() -> None:
    narrow, x = trained_small(), torch.rand(2, 3, 128, 128)
    wide = grow(narrow, dataclasses.replace(SMALL, latent_channels=32, name="wider"), x)
    old = _old_channels(16, 32)
    with torch.no_grad():
        before, after = narrow(x, 5.0), wide(x, 5.0)
        assert torch.allclose(narrow.analyse(x), wide.analyse(x)[:, old], atol=1e-5)
    assert torch.allclose(before["likelihoods"]["y"], after["likelihoods"]["y"][:, old], atol=1e-4)
    assert torch.allclose(before["likelihoods"]["z"], after["likelihoods"]["z"], atol=1e-5)


def test_a_grown_model_computes_what_the_small_one_did() -> None:
    small, x = trained_small(), torch.rand(2, 3, 128, 64)
    grown = grow(small, dataclasses.replace(SMALL, patch_kernel=16, patch_blocks=6, name="larger"), x)
    weights: Any = grown.state_dict()
    assert weights["g_a.0.weight"].shape[-2:] == weights[f"g_s.{len(grown.g_s) - 1}.weight"].shape[-2:] == (16, 16)
    with torch.no_grad():
        before, after = small(x, 5.0), grown(x, 5.0)
    assert torch.allclose(before["x_hat"], after["x_hat"], atol=1e-5)
    assert torch.allclose(before["likelihoods"]["y"], after["likelihoods"]["y"], atol=1e-5)


@pytest.mark.parametrize("change", [{"hyper_channels": 16}, {"patch_blocks": 3}, {"latent_channels": 8}])
def test_a_model_never_shrinks_and_grows_in_nothing_else(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="nothing else"):
        grow(HPCM(SMALL), dataclasses.replace(SMALL, **change), torch.rand(1, 3, 64, 64))


def test_the_rates_of_a_step_are_spread_over_the_whole_range(pictures: PackedPictures) -> None:
    for step in range(20):
        low, high = draw_batch(pictures, SMALL, QUICK, QUICK.crops[0], step).position.tolist()
        assert 0 <= low < 3.5 <= high < 7
