"""Parameters and multiply-adds by part, against the published figures of HPCM-Base."""

from __future__ import annotations

import pytest

from conftest import some_in_every_run
from hpcm_codec.model.complexity import complexity_by_part, parameters_by_part, total
from hpcm_codec.model.config import PRESETS, preset


def test_hpcm_base_has_the_published_size_and_cost() -> None:
    parts = complexity_by_part(preset("hpcm-base"), as_published=True)
    whole = total(parts)
    assert whole.parameters == 68_505_299
    assert whole.kmac_per_pixel == pytest.approx(918.6, abs=0.1)
    published = {"g_a": 170.1, "g_s": 170.1, "hyper": 21.5, "context": 556.8}
    assert {name: part.kmac_per_pixel for name, part in parts.items()} == pytest.approx(published, abs=0.1)


def test_we_leave_out_the_cell_that_nothing_uses() -> None:
    published, ours = (complexity_by_part(preset("hpcm-base"), as_published=flag) for flag in (True, False))
    # four 1×1 convolutions of 640 channels and attention in windows of 64 latents, for each latent of 256 pixels
    cell = (4 * 640 * 640 + 2 * 64 * 640) / 256 / 1000
    assert published["context"].kmac_per_pixel - ours["context"].kmac_per_pixel == pytest.approx(cell)


def test_the_lite_model_keeps_to_its_budget() -> None:
    whole = total(complexity_by_part(preset("phase1-lite")))
    assert 90 < whole.kmac_per_pixel < 110
    assert whole.parameters <= 14e6  # at 11 bits a weight, a checkpoint stays below 20 MB


@pytest.mark.parametrize("name", some_in_every_run(PRESETS, ("hpcm-base", "phase1-lite", "phase4-lite")))
def test_cost_per_pixel_does_not_depend_on_the_pictures_size(name: str) -> None:
    small, large = (total(complexity_by_part(preset(name), edge)) for edge in (256, 512))
    # but for a little that is done once for each picture, and the patches beyond its border
    assert large.kmac_per_pixel == pytest.approx(small.kmac_per_pixel, rel=2e-3)


def test_no_parameter_is_forgotten() -> None:
    import torch

    from hpcm_codec.model.hpcm import HPCM

    with torch.device("meta"):
        model = HPCM(preset("phase1-lite"))
    assert sum(parameters_by_part(model).values()) == sum(p.numel() for p in model.parameters())
