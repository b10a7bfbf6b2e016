"""Phases 2 to 4: settings of the one model, counted, trained, and coded with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import hpcm_codec
from conftest import few_extremes, small_photograph, some_in_every_run
from hpcm_codec.cli.info import command as info
from hpcm_codec.codec import load_codec
from hpcm_codec.engines.exporting import export_checkpoint
from hpcm_codec.model.cells import RWKVFusion
from hpcm_codec.model.complexity import complexity_by_part, total
from hpcm_codec.model.config import CellConfig, FusionConfig, ModelConfig, preset
from hpcm_codec.model.hpcm import HPCM, Noise
from hpcm_codec.model.priors import PriorRWKVBlock
from hpcm_codec.model.rwkv import SpatialMix
from hpcm_codec.ops.biwkv4 import biwkv4
from hpcm_codec.tiles.grid import TileGrid
from hpcm_codec.training.growing import grow
from hpcm_codec.training.losses import rate_distortion_loss
from hpcm_codec.weights.checkpoints import save_checkpoint
from test_hpcm_phase1 import SMALL, parameters_that_do_not_learn

PHASES = ("phase2", "phase3", "phase4")
# parameters of all and of the context model; kMAC/pixel of all, the cell after the last step left out
COUNTED = {
    "phase1": (73_469_147, 50_763_528, 1006.865),
    "phase2": (80_939_243, 58_233_624, 1019.521),
    "phase3": (92_509_179, 69_803_560, 1047.678),
    "phase4": (159_363_643, 136_658_024, 2103.640),
    "phase1-lite": (13_804_587, 7_517_256, 104.267),
    "phase2-lite": (13_653_563, 7_366_232, 106.683),
    "phase3-lite": (14_019_787, 7_732_456, 107.549),
    "phase4-lite": (15_731_187, 9_443_856, 133.473),
}
_RATES = (2.0, 3.0, 4.0)


def small(phase: str) -> ModelConfig:
    """A phase in the size of `SMALL`."""
    narrow: dict[str, Any] = {"kind": "rwkv", "width": 16, "residual": True}
    s1, s2, s3 = (CellConfig(hidden_rate=rate, **narrow) for rate in _RATES)
    fusion = FusionConfig(width=16, hidden_rate=2.0) if phase in ("phase3", "phase4") else None
    rate = 2.0 if phase == "phase4" else None
    return dataclasses.replace(
        SMALL, name=f"{phase}-small", cells=(s1, s2, s3), context_fusion=fusion, prior_rwkv_rate=rate
    )


def in_published_style(phase: str) -> ModelConfig:
    """A full-size phase with few channels: fixed rate, linear scales, no residual cells, staircase transforms."""
    return dataclasses.replace(preset(phase), latent_channels=16, hyper_channels=8)


@pytest.fixture(scope="module", params=PHASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of a phase with random weights, in a file."""
    config = small(request.param)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("phases") / f"{config.name}.safetensors"
    save_checkpoint(path, config, HPCM(config).state_dict(), {})
    return path


@pytest.mark.parametrize("name", some_in_every_run(COUNTED, ("phase1", "phase2-lite", "phase3-lite", "phase4-lite")))
def test_parameters_and_operations_are_counted(name: str) -> None:
    parts = complexity_by_part(preset(name))
    parameters, of_context, kmac = COUNTED[name]
    assert (total(parts).parameters, parts["context"].parameters) == (parameters, of_context)
    assert total(parts).kmac_per_pixel == pytest.approx(kmac, abs=0.001)
    shown = CliRunner().invoke(info, ["--model", name])
    assert shown.exit_code == 0 and f"{parameters:,}" in shown.output and f"{kmac:.1f}" in shown.output


@pytest.mark.parametrize("suffix", ["", "-lite"])
def test_each_phase_is_the_one_before_and_a_change(suffix: str) -> None:
    first, second, third, fourth = (preset(f"phase{number}{suffix}") for number in (1, 2, 3, 4))
    assert [(cell.kind, cell.hidden_rate) for cell in second.cells] == [("rwkv", rate) for rate in _RATES]
    assert second == dataclasses.replace(first, name=second.name, cells=second.cells)
    assert third.context_fusion is not None and third.prior_rwkv_rate is None
    assert third == dataclasses.replace(second, name=third.name, context_fusion=third.context_fusion)
    assert fourth == dataclasses.replace(third, name=fourth.name, prior_rwkv_rate=fourth.prior_rwkv_rate)
    with torch.device("meta"):
        state, third_model, fourth_model = (HPCM(config) for config in (second, third, fourth))
    shared = state.state_dict().keys() & third_model.state_dict().keys()
    assert {name for name in state.state_dict() if name not in shared} == {
        f"context.context_nets.{i}.{part}" for i in range(2) for part in ("weight", "bias")
    }
    assert sum(isinstance(module, RWKVFusion) for module in third_model.modules()) == 5
    blocks = sum(fourth.prior_blocks_s12) + sum(fourth.prior_blocks_s3)
    assert sum(isinstance(module, PriorRWKVBlock) for module in fourth_model.modules()) == blocks


@pytest.mark.parametrize("style", [small, in_published_style])
@pytest.mark.parametrize("phase", PHASES)
def test_every_parameter_learns(phase: str, style: Any) -> None:
    assert parameters_that_do_not_learn(style(phase)) == []


@pytest.mark.parametrize("phase", PHASES)
def test_recomputed_activations_change_no_gradient(phase: str) -> None:
    config = small(phase)
    gradients, kept = [], []
    x = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    for recompute in (False, True):
        torch.manual_seed(0)
        model = HPCM(dataclasses.replace(config, use_checkpoint=recompute)).train()
        torch.manual_seed(2)
        sizes: list[int] = []

        def count(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            result = model(x, 3.0)
        kept.append(sum(sizes))
        (result["x_hat"].square().mean() - result["likelihoods"]["y"].log2().mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert kept[1] < kept[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("phase", PHASES)
def test_a_fused_step_agrees_with_a_plain_one(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 on a CPU blocks are operators of C++ with gradients of their own, where those can be compiled."""
    torch.manual_seed(0)
    model = HPCM(small(phase)).train()
    x = torch.rand(2, 3, 64, 128)
    noise = Noise(torch.rand(2, 16, 4, 8) - 0.5, torch.rand(2, 8, 1, 2) - 0.5)
    losses, gradients = [], []
    for ops in ("torch", "auto"):
        monkeypatch.setenv("HPCM_OPS", ops)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            result = model(x, 5.0, noise)
        loss = rate_distortion_loss(result["x_hat"], x, result["likelihoods"])
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert (gradients[1] - gradients[0]).norm() < 0.15 * gradients[0].norm()


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_grows_and_computes_what_it_did(phase: str) -> None:
    torch.manual_seed(0)
    narrow, x = HPCM(small(phase)).eval(), torch.rand(1, 3, 64, 64)
    wide = grow(narrow, dataclasses.replace(small(phase), latent_channels=32, name="wider"), x)
    old = torch.arange(32).reshape(8, 4)[:, :2].flatten()
    with torch.no_grad():
        torch.testing.assert_close(wide.analyse(x)[:, old], narrow.analyse(x), atol=1e-4, rtol=1e-4)
        before, after = (model(x, 3.0)["likelihoods"]["y"] for model in (narrow, wide))
    torch.testing.assert_close(after[:, old], before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (17, 70), (64, 128), (130, 96)])
def test_pictures_are_coded_and_decoded(saved: Path, size: tuple[int, int]) -> None:
    codec = load_codec(str(saved), device="cpu")
    pixels = small_photograph(*size)
    for quality in (0, 62.5):
        data = codec.encode(hpcm_codec.Picture(pixels), quality)
        decoded = load_codec(str(saved), device="cpu").decode(data).pixels
        assert decoded.shape == pixels.shape
        assert np.array_equal(decoded, codec.decode(data).pixels)


def test_tiles_and_regions_are_those_of_the_whole_picture(saved: Path) -> None:
    codec = load_codec(str(saved), device="cpu")
    width, height = 1300, 200
    data = codec.encode(hpcm_codec.Picture(small_photograph(width, height)), 50)
    assert len(TileGrid(width, height)) > 1
    whole = codec.decode(data).pixels
    for x, y, w, h in ((0, 0, width, height), (1000, 20, 200, 90), (5, 190, 3, 10)):
        assert np.array_equal(codec.decode_region(data, (x, y, w, h)).pixels, whole[y : y + h, x : x + w])


@pytest.mark.parametrize("phase", PHASES)
def test_a_full_size_phase_codes_with_few_channels(phase: str, tmp_path: Path) -> None:
    config = in_published_style(phase)
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, config, HPCM(config).state_dict(), {})
    data = hpcm_codec.encode(small_photograph(), model=str(path))
    assert hpcm_codec.decode(data, model=str(path), output="numpy").shape == small_photograph().shape


def test_files_of_the_exact_profile_are_as_large_as_those_in_floating_point(saved: Path, tmp_path: Path) -> None:
    pixels = torch.from_numpy(small_photograph(128, 128)).permute(2, 0, 1)[None] / 255
    target = tmp_path / "exact.safetensors"
    with few_extremes():
        export_checkpoint(str(saved), target, calibration=[pixels])
    exact, floating = (load_codec(str(target), device="cpu", profile=profile) for profile in ("exact", "float"))
    picture = hpcm_codec.Picture(small_photograph(128, 96))
    sizes = [len(codec.encode(picture, 50)) for codec in (exact, floating)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    assert exact.engine.profile == "exact"
    assert exact.decode(exact.encode(picture, 50)).pixels.shape == (96, 128, 3)


def by_formula(w: torch.Tensor, u: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Bi-WKV4 as `ops.biwkv4` defines it, token by token."""
    tokens = k.shape[1]
    distance = (torch.arange(tokens)[:, None] - torch.arange(tokens)[None]).abs()
    exponent = k[:, None] - w * (distance[None, :, :, None] - 1)
    exponent = torch.where((distance == 0)[None, :, :, None], u + k[:, None], exponent)
    return (exponent.softmax(dim=2) * v[:, None]).sum(dim=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (64, 64)])
def test_the_spatial_mix_is_its_formula_on_the_shortest_and_the_longest_lattices(size: tuple[int, int]) -> None:
    """s1 of a picture of 64×64 pixels is 1×1, of 64×128 pixels 1×2; a tile's s3 is at most 64×64."""
    torch.manual_seed(0)
    mix = SpatialMix(3).double()
    x = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    tokens = mix.shift(x).flatten(2).transpose(1, 2)
    length = tokens.shape[1]
    k, v, r = mix.key(tokens), mix.value(tokens), mix.receptance(tokens)
    with torch.no_grad():
        expected = mix.output(torch.sigmoid(r) * by_formula(mix.decay / length, mix.boost / length, k, v))
    y = mix(x)
    torch.testing.assert_close(y.flatten(2).transpose(1, 2), expected)
    y.square().sum().backward()
    for parameter in (x, mix.boost, *([mix.decay] if length > 2 else [])):
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    if length > 1:
        assert mix.boost.grad is not None and mix.boost.grad.abs().sum() > 0


@pytest.mark.parametrize("tokens", [1, 2, 4096])
def test_no_decay_overflows_on_the_shortest_and_the_longest_lattices(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    k, v = (50 * torch.randn(1, tokens, 4, generator=generator) for _ in range(2))
    w = torch.tensor([-60.0, -1.0, 1.0, 60.0])
    y = biwkv4(w, torch.full((4,), 80.0), k, v)
    assert y.isfinite().all() and y.abs().max() <= v.abs().max() * (1 + 1e-5)
