"""The estimator of training steps on a GPU computes what the estimator's port computes, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conftest import needs_cuda
from hpcm_codec.model import blocks
from hpcm_codec.model.hpcm import HPCM, EstimatorPort, MaskedEstimator, Noise
from test_hpcm_phase1 import SMALL


def coded(masked: bool, device: str = "cpu") -> tuple[Tensor, Tensor, list[Tensor]]:
    """Decoded latents, likelihoods and all gradients of a pass through the context model, in float64."""
    torch.manual_seed(0)
    model = HPCM(SMALL).double().train()
    channels = SMALL.latent_channels
    latents = (3 * torch.randn(2, channels, 8, 12, dtype=torch.float64)).requires_grad_()
    noise = torch.rand(2, channels, 8, 12, dtype=torch.float64) - 0.5
    params = torch.randn(2, 2 * channels, 8, 12, dtype=torch.float64).requires_grad_()
    rate = model.rate_at(torch.tensor([0.5, SMALL.rate_levels - 1.0]), 2)
    model.to(device)
    rate, moved, noise, context = rate.to(device), latents.to(device), noise.to(device), params.to(device)
    log_gain = model.latent_log_gain(rate)
    assert log_gain is not None
    if masked:
        estimator = MaskedEstimator(moved, noise, log_gain, model.masked_operations)
        decoded = model.context.walk_with(context, estimator.code, estimator.begin, rate)
        likelihoods = estimator.likelihoods()
    else:
        port = EstimatorPort(moved, noise)
        decoded = model.context.code_latents(context, port, rate, log_gain)
        likelihoods = port.likelihoods()
    (decoded.square().sum() - likelihoods.log2().sum()).backward()
    gradients = [p.grad for p in (*model.parameters(), latents, params) if p.grad is not None]
    return decoded.detach().cpu(), likelihoods.detach().cpu(), [gradient.cpu() for gradient in gradients]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_whole_planes_give_what_parts_of_planes_give(device: str) -> None:
    plain, masked = coded(False), coded(True, device)
    for one, other in zip(plain[:2], masked[:2], strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert len(plain[2]) == len(masked[2]) > 50
    for one, other in zip(plain[2], masked[2], strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-8 * float(one.abs().max()) + 1e-12)


@needs_cuda
def test_a_whole_training_step_is_the_same_on_both_devices() -> None:
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        model = HPCM(SMALL).train().to(memory_format=torch.channels_last).to(device)  # type: ignore[call-overload]
        x = torch.rand(2, 3, 128, 128).to(device)
        noise = Noise(torch.rand(2, SMALL.latent_channels, 8, 8) - 0.5, torch.rand(2, SMALL.hyper_channels, 2, 2) - 0.5)
        result = model(x, torch.tensor([0.0, 1.0]).to(device), Noise(*(part.to(device) for part in noise)))
        results.append([result["likelihoods"]["y"].log2().sum().item(), result["x_hat"].square().sum().item()])
    assert results[1] == pytest.approx(results[0], rel=2e-3)


@needs_cuda
def test_a_pixelwise_convolution_is_a_matrix_product_with_the_same_result() -> None:
    layer = torch.nn.Conv2d(24, 40, 1).cuda()
    x = torch.randn(2, 24, 6, 5).cuda().contiguous(memory_format=torch.channels_last)
    y = blocks.pixelwise(layer, x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y, layer(x), atol=1e-2)
