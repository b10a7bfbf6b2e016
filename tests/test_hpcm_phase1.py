"""The whole network: the published figures and outputs, its settings, and the walk's freedom from synchronisation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import ROOT, load_tool
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model import schedule
from hpcm_codec.model.config import PRESETS, CellConfig, ModelConfig, preset
from hpcm_codec.model.hpcm import HPCM, EstimatorPort
from hpcm_codec.model.transforms import PatchesOut
from hpcm_codec.weights.published import read_published

PUBLISHED_PARAMETERS = 68_505_299

SMALL = ModelConfig(
    name="small",
    latent_channels=16,
    hyper_channels=8,
    transform="patch",
    cells=(
        CellConfig(window=4, heads=2, width=16, residual=True),
        CellConfig(window=8, heads=2, width=16, residual=True),
        CellConfig(kind="rwkv", width=16, hidden_rate=2, residual=True),
    ),
    prior_width=24,
    prior_blocks_s12=(1, 1),
    prior_blocks_s3=(1, 1),
    prior_residual=True,
    phase_bias=True,
    scale_domain="log",
    rate_levels=8,
    residual_factors=True,
)


def count(model: HPCM) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_base_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count(HPCM(preset("hpcm-base"))) == PUBLISHED_PARAMETERS


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_survive_json(name: str) -> None:
    assert ModelConfig.from_json(preset(name).to_json()) == preset(name)


def test_unknown_configurations_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="phase9"):
        preset("phase9")
    newer = json.dumps({**json.loads(SMALL.to_json()), "tomorrow": 1})
    with pytest.raises(UnsupportedError, match="tomorrow"):
        ModelConfig.from_json(newer)


def golden_weights(reference: Path) -> dict[str, torch.Tensor]:
    """The seeded weights that the golden outputs were made with, float64, as a published file has them."""
    tool = load_tool(ROOT, "exact_against_float")
    return {name: torch.from_numpy(w) for name, w in tool.seeded_weights(reference / "hpcm_base_parameters.json")}


class RecordingPort(EstimatorPort):
    """An estimator that also keeps the integers and scales of every step."""

    def __init__(self, latents: torch.Tensor) -> None:
        super().__init__(latents)
        self.records: list[tuple] = []

    def exchange(self, step, scale, mean):
        symbols = super().exchange(step, scale, mean)
        self.records.append((self._scale_name, step, symbols, scale))
        return symbols

    def plane(self, column: int, like: torch.Tensor) -> torch.Tensor:
        """Column 2 (integers) or 3 (scales) of the records, on the full plane."""
        planes = {name: torch.zeros_like(plane) for name, plane in schedule.split(like).items()}
        for record in self.records:
            planes[record[0]] = record[1].place(record[column], planes[record[0]])
        return schedule.merge(planes)


def test_an_imported_checkpoint_reproduces_the_published_network(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with np.load(reference / "hpcm_base_golden.npz") as arrays:
        golden = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    path = tmp_path / "0.0483.pth.tar"
    torch.save(golden_weights(reference), path)
    published = read_published(path)
    with torch.device("meta"):
        model = HPCM(published.config)
    model.load_state_dict(published.weights, assign=True)
    model.eval()

    # The published scales are kept before their lower bound.
    unbounded: list[torch.Tensor] = []

    def remember(x: torch.Tensor, lowest: float, highest: float) -> torch.Tensor:
        unbounded.append(x)
        return x.clamp(lowest, highest)

    monkeypatch.setattr("hpcm_codec.model.context.bounded", remember)
    with torch.inference_mode():
        latents = model.analyse(golden["x"].double()[None] / 255)
        rate = model.rate_at(0.0).double()
        hyper = model.hyper_latents(latents, rate)
        _, mean = model.hyper_distribution(rate)
        hyper = (hyper - mean).round() + mean
        params = model.hyper_synthesis(hyper, rate)
        port = RecordingPort(latents)
        decoded = model.code_latents(hyper, rate, port)
        x_hat = model.synthesise(decoded, rate)

    def difference(ours: torch.Tensor, name: str) -> float:
        return float((ours - golden[name]).abs().max() / golden[name].abs().max())

    assert difference(latents, "y") < 1e-6
    assert difference(hyper, "z_hat") < 1e-6
    assert difference(params, "hyper_params") < 1e-6
    assert torch.equal(port.plane(2, latents).round().short(), golden["y_q"])
    port.records = [(*record[:3], scale) for record, scale in zip(port.records, unbounded, strict=True)]
    assert difference(port.plane(3, latents), "scales") < 1e-6
    assert difference(decoded, "y_hat") < 1e-6
    assert difference(x_hat, "x_hat") < 1e-6
    bits = -port.likelihoods().log2().sum()
    assert abs(float(bits / golden["bits_y"]) - 1) < 1e-4


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (128, 64), (192, 320)])
def test_forward_gives_pictures_and_likelihoods_of_the_right_shapes(size: tuple[int, int]) -> None:
    model = HPCM(SMALL)
    x = torch.rand(2, 3, *size)
    result = model(x, torch.tensor([0.0, 6.5]))
    assert result["x_hat"].shape == x.shape
    assert result["likelihoods"]["y"].shape == (2, 16, size[0] // 16, size[1] // 16)
    assert result["likelihoods"]["z"].shape == (2, 8, size[0] // 64, size[1] // 64)
    for part in result["likelihoods"].values():
        assert part.min() > 0 and part.max() <= 1


def parameters_that_do_not_learn(config: ModelConfig) -> list[str]:
    """The names of a network's parameters that get no gradient from rate and distortion."""
    torch.manual_seed(0)
    model = HPCM(config).train()
    # Branches that start at exactly zero would hide their inner gradients.
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    x = torch.rand(2, 3, 128, 128)
    result = model(x, torch.tensor([0.5, config.rate_levels - 1.0]))
    bits = sum(-part.log2().sum() for part in result["likelihoods"].values())
    (bits / x.numel() + 1000 * (result["x_hat"] - x).square().mean()).backward()
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, rate_levels=1, scale_domain="linear")])
def test_every_parameter_learns(config: ModelConfig) -> None:
    assert parameters_that_do_not_learn(config) == []


def test_lite_starts_as_a_transform_codec() -> None:
    torch.manual_seed(0)
    model = HPCM(preset("phase1-lite")).eval()
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=(128, 128), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        x_hat = model(x, 7.0)["x_hat"]
    assert -10 * torch.log10((x_hat - x).square().mean()) > 30


def test_higher_rate_positions_spend_more_bits_and_lose_less() -> None:
    torch.manual_seed(0)
    model = HPCM(preset("phase1-lite")).eval()
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 32, 32), size=(128, 128), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        results = [model(x, float(position)) for position in range(8)]
    errors = [float((result["x_hat"] - x).square().mean()) for result in results]
    bits = [float(-result["likelihoods"]["y"].log2().sum()) for result in results]
    assert errors == sorted(errors, reverse=True)
    assert bits == sorted(bits)


class _OperatorLog(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


SYNCHRONISING = {
    "masked_select",
    "nonzero",
    "index",
    "index_put",
    "index_put_",
    "_local_scalar_dense",
    "item",
    "unique",
}


def test_the_walk_never_selects_by_mask_or_waits_for_the_device() -> None:
    model = HPCM(SMALL).eval()
    with torch.no_grad(), _OperatorLog() as log:
        model(torch.rand(1, 3, 128, 192), 3.0)
    assert "convolution" in log.names
    assert log.names & SYNCHRONISING == set()


@pytest.mark.parametrize("kernel", [8, 16, 24])
def test_patches_are_drawn_as_a_transposed_convolution_would(kernel: int) -> None:
    layer = PatchesOut(kernel).double()
    x = torch.randn(2, 192, 5, 3, dtype=torch.float64)
    beyond = {8: 0, 16: 1, 24: 1}[kernel]
    extended = functional.pad(x, (beyond,) * 4, mode="replicate")
    drawn = functional.conv_transpose2d(extended, layer.weight, layer.bias, stride=8)
    margin = (kernel - 8) // 2 + 8 * beyond
    expected = drawn[..., margin : margin + 40, margin : margin + 24]
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-12)
