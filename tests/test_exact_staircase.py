"""The exact profile of models with staircase transforms: the same integers by every implementation, and close to floating point."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import numpy_synthesis
from conftest import digests_by_threads_and_operators, exported_exactly, small_photograph
from hpcm_codec.codec import Codec, load_codec
from hpcm_codec.engines.exact.streams import layer_streams
from hpcm_codec.engines.integer import IntegerEngine
from hpcm_codec.images import Picture, write_picture
from hpcm_codec.model.config import PRESETS, ModelConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.tiles.grid import HALO_LATENTS
from test_hpcm_phase1 import SMALL
from test_numpy_decoder import check_same

STAIRCASE = dataclasses.replace(SMALL, name="small-staircase", transform="staircase", staircase_blocks=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights, loud enough that every branch of the transforms matters."""
    folder = tmp_path_factory.mktemp("staircase")
    torch.manual_seed(7)
    model = HPCM(STAIRCASE).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("g_a", "h_a", "h_s", "g_s")) and parameter.ndim > 1:
            parameter.data *= 1.5
    return exported_exactly(model, folder)


@pytest.fixture(scope="module")
def codec(saved: Path) -> Codec:
    return load_codec(str(saved), "cpu", "exact")


@pytest.mark.parametrize("config", [STAIRCASE, SMALL, *PRESETS.values()], ids=lambda config: config.name)
def test_every_layer_but_the_one_that_draws_has_a_stream(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = HPCM(config)
    layers = [f"{part}.{i}" for part in ("g_a", "h_a", "g_s") for i in range(len(getattr(model, part)))]
    assert [*layer_streams(config), f"g_s.{len(model.g_s) - 1}"] == layers


def test_the_numpy_decoder_reads_the_same_symbols(saved: Path) -> None:
    symbols = check_same(saved, Picture(small_photograph(70, 60, seed=1)), 60)
    assert len(set(symbols)) > 5, "a picture of which nothing is coded shows nothing"


@pytest.mark.parametrize("grey", [False, True])
def test_the_numpy_synthesis_shows_the_same_pixels(saved: Path, codec: Codec, grey: bool) -> None:
    pixels = small_photograph(65, 33)[..., :1].copy() if grey else small_photograph(65, 33)
    data = codec.encode(Picture(pixels), 70)
    shown = numpy_synthesis.decode_pixels(data, saved)
    assert shown.shape == pixels.shape and len(np.unique(shown)) > 3
    assert np.array_equal(codec.decode(data).pixels, shown)


def test_bytes_and_pixels_are_those_of_other_threads_and_of_torch(saved: Path, tmp_path: Path) -> None:
    write_picture(Picture(small_photograph(200, 70, seed=2)), tmp_path / "a.png")
    assert len(digests_by_threads_and_operators(str(saved), "a.png", tmp_path)) == 1


def test_transforms_are_close_to_those_in_floating_point(saved: Path, codec: Codec) -> None:
    """Latents and hyper-latents within a fraction of a quantisation step, pixels within ±1 of what the same latents draw."""
    assert isinstance(codec.engine, IntegerEngine)
    network, floating = codec.engine.network, load_codec(str(saved), "cpu", "float")
    model = floating.engine.model  # type: ignore[attr-defined]
    pixels = small_photograph(128, 64, seed=3)
    position = network.position(100)
    latents = network.analyse(pixels, position)
    hyper = network.hyper_latents(latents, position)
    with torch.inference_mode():
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        real = model.analyse(image)
        real_hyper = model.h_a(real, model.rate_at(3.5))
    for found, expected, fraction in (
        (latents, real, network.analysis.fraction),
        (hyper, real_hyper, network.hyper_analysis.fraction),
    ):
        distance = np.abs(np.ldexp(found.astype(float), -fraction) - expected[0].permute(1, 2, 0).numpy())
        assert distance.max() < 0.02 * float(expected.abs().max()), distance.max()
    encoded = codec.encode_with_latents(Picture(pixels), 50)
    tokens = np.moveaxis(np.asarray(encoded.latents[0]), 0, -1)
    drawn = floating.engine.synthesise(
        torch.from_numpy(np.ascontiguousarray(network.real_latents(tokens))), 100, (slice(0, 64), slice(0, 128)), False
    )
    shown = codec.decode(encoded.data).pixels
    assert np.abs(shown.astype(int) - drawn).max() <= 1 and shown.std() > 5


def test_tiles_leave_no_seam(codec: Codec) -> None:
    """The halo reaches as far as the transforms do: what lies beyond it changes no pixel, and no latent."""
    assert isinstance(codec.engine, IntegerEngine)
    network, position = codec.engine.network, codec.engine.network.position(100)
    random = np.random.default_rng(0)
    latents = random.integers(-20000, 20000, (4, 2 * HALO_LATENTS + 4, STAIRCASE.latent_channels)).astype(np.int32)
    whole = network.synthesise(latents, position, (0, 0, 64, 16 * latents.shape[1]), False)
    seen = network.synthesise(latents[:, HALO_LATENTS:], position, (0, 0, 64, 16 * (HALO_LATENTS + 4)), False)
    assert np.array_equal(whole[:, 32 * HALO_LATENTS :], seen[:, 16 * HALO_LATENTS :])
    pixels = random.integers(0, 256, (64, 16 * latents.shape[1], 3)).astype(np.uint8)
    analysed = network.analyse(pixels, position)
    part = network.analyse(pixels[:, 16 * HALO_LATENTS :], position)
    assert np.array_equal(analysed[:, 2 * HALO_LATENTS :], part[:, HALO_LATENTS:])


def test_the_halo_covers_the_deepest_staircase() -> None:
    """In floating point, whose tiles are the same: which latents a row of pixels depends on, and which pixels a row of latents does."""
    config = dataclasses.replace(PRESETS["hpcm-large"], latent_channels=16, hyper_channels=8)
    torch.manual_seed(0)
    model, middle, rows = HPCM(config), HALO_LATENTS + 1, 2 * HALO_LATENTS + 3
    latents = torch.randn(1, 16, rows, 1, requires_grad=True)
    model.g_s(latents)[:, :, 16 * middle : 16 * middle + 16].square().sum().backward()
    pixels = torch.rand(1, 3, 16 * rows, 16, requires_grad=True)
    model.g_a(pixels)[:, :, middle].square().sum().backward()
    for x, unit in ((latents, 1), (pixels, 16)):
        assert x.grad is not None
        seen = x.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten() // unit
        assert 4 <= max(middle - int(seen.min()), int(seen.max()) - middle) <= HALO_LATENTS
