"""The exact profile of every kind of network: the same symbols by every implementation, and what floating point codes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import exported_exactly, few_extremes, small_photograph, some_in_every_run
from hpcm_codec.codec import Codec, load_codec
from hpcm_codec.engines.exact.export import calibrate
from hpcm_codec.engines.exporting import import_published
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.images import Picture
from hpcm_codec.model.config import CellConfig, ModelConfig, preset
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.weights.checkpoints import load_checkpoint
from test_hpcm_phase1 import SMALL, golden_weights
from test_numpy_decoder import check_same, symbols_of
from test_phases import small


def published_style(name: str, **changes: object) -> ModelConfig:
    """A full-size preset with few channels: one rate, linear scales, no residual cells and priors, staircase transforms."""
    few = {"latent_channels": 16, "hyper_channels": 8, "staircase_blocks": 1}
    return dataclasses.replace(preset(name), **few, **changes)  # type: ignore[arg-type]


def cells(**settings: object) -> tuple[CellConfig, CellConfig, CellConfig]:
    one, two, three = (CellConfig(window=edge, heads=2, **settings) for edge in (4, 8, 8))  # type: ignore[arg-type]
    return one, two, three


STYLES = {
    "published": published_style("hpcm-base", hyper_gather="published"),
    "hpcm-large": published_style("hpcm-large"),
    **{name: published_style(name) for name in ("phase1", "phase1-slim", "phase2", "phase3", "phase4")},
    **{f"{phase}-lite": small(phase) for phase in ("phase3", "phase4")},
    "linear scales at several rates": dataclasses.replace(SMALL, scale_domain="linear"),
    "logarithms at one rate": dataclasses.replace(SMALL, rate_levels=1),
    "wide residual cells": dataclasses.replace(SMALL, cells=cells(residual=True)),
    "narrow cells without residual": dataclasses.replace(SMALL, cells=cells(width=16)),
}


VARIANTS = ("hpcm-large", "phase1-slim", "phase4", "phase3-lite")  # of styles that are in every run


@pytest.fixture(scope="module", params=some_in_every_run(STYLES, STYLES.keys() - VARIANTS))
def style(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights with an exact profile, loud enough that symbols and scales vary."""
    torch.manual_seed(5)
    model = HPCM(STYLES[request.param]).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("h_s", "context", "hyper")):
            spread = 0.3 if parameter.ndim > 1 else 0.1
            parameter.data += spread * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5
    if model.config.transform == "staircase":  # whose random latents are small
        torch.nn.init.normal_(model.get_parameter(f"g_a.{len(model.g_a) - 1}.weight"), std=0.5)
    return exported_exactly(model, tmp_path_factory.mktemp("style"))


@pytest.fixture
def picture() -> Picture:
    return Picture(small_photograph(128, 64, seed=8))


def test_the_numpy_decoder_reads_the_same_symbols(style: Path, picture: Picture) -> None:
    symbols = check_same(style, picture, 60)
    assert len(set(symbols)) > 5, "a picture of which nothing is coded shows nothing"


def test_pytorchs_operators_give_the_same_file(style: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = load_codec(str(style), "cpu", "exact")
    data = compiled.encode(picture, 60)
    monkeypatch.setenv("HPCM_OPS", "torch")
    plain = load_codec(str(style), "cpu", "exact")
    assert plain.encode(picture, 60) == data
    assert np.array_equal(plain.decode(data).pixels, compiled.decode(data).pixels)


def test_symbols_and_rate_are_nearly_those_of_floating_point(style: Path, picture: Picture) -> None:
    exact, floating = (Codec(load_checkpoint(str(style)), "cpu", profile) for profile in ("exact", "float"))
    files = [codec.encode(picture, 60) for codec in (exact, floating)]
    found, expected = (np.array(symbols_of(*both)[0]) for both in zip((exact, floating), files, strict=True))
    assert len(files[0]) == pytest.approx(len(files[1]), rel=0.02, abs=8)
    # Means move by small parts of a step, so few latents are rounded to the neighbouring integer; and then the means that depend on them.
    assert (found != expected).mean() < 0.1 and np.abs(found - expected).max() <= 2


def test_a_checkpoint_without_thresholds_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = exported_exactly(HPCM(STYLES["linear scales at several rates"]).eval(), tmp_path)
    checkpoint = load_checkpoint(str(path))
    assert checkpoint.exact is not None and checkpoint.exact.tables.thresholds is not None
    tables = dataclasses.replace(checkpoint.exact.tables, thresholds=None)
    bare = dataclasses.replace(checkpoint, exact=dataclasses.replace(checkpoint.exact, tables=tables))
    with pytest.raises(UnsupportedError, match="thresholds"):
        Codec(bare, "cpu")


def test_models_of_logarithms_store_nothing_new() -> None:
    """Their identities are what they were: no thresholds, no units of scales."""
    torch.manual_seed(0)
    model = HPCM(SMALL).eval()
    with few_extremes():
        found = calibrate(model, [torch.rand(1, 3, 64, 64)])
    assert "scales" not in found and found["latents"].shape == (16,)


@pytest.mark.exhaustive
def test_the_published_network_at_full_size(reference: Path, tmp_path: Path) -> None:
    """HPCM-Base with the weights of its golden outputs, imported with an exact profile."""
    torch.save(golden_weights(reference), tmp_path / "0.0483.pth.tar")
    pixels = [small_photograph(128, 128, seed) for seed in range(2)]
    pictures = [torch.from_numpy(p).permute(2, 0, 1)[None] / 255 for p in pixels]
    with few_extremes():
        import_published(tmp_path / "0.0483.pth.tar", tmp_path / "exact.safetensors", pictures)
    exact, floating = (
        load_codec(str(tmp_path / "exact.safetensors"), "cpu", profile) for profile in ("exact", "float")
    )
    picture = Picture(small_photograph(192, 128, seed=8))
    files = [codec.encode(picture, 50) for codec in (exact, floating)]
    found, expected = (np.array(symbols_of(*both)[0]) for both in zip((exact, floating), files, strict=True))
    assert len(files[0]) == pytest.approx(len(files[1]), rel=0.005)
    assert (found != expected).mean() < 0.1 and np.abs(found - expected).max() <= 1
    assert exact.decode(files[0]).pixels.shape == (128, 192, 3)
