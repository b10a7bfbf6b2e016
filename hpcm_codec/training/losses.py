"""The rate-distortion loss: as HPCM is trained, and as a variable-rate model is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hpcm_codec.model.hpcm import ForwardResult, Likelihoods

# Divides each sample's loss: sqrt(λ/0.01) keeps λ·255²·MSE + bpp of one size over the whole range of λ (both terms
# grow like it, see docs/training.md), so that neither end is neglected.
REFERENCE_LAMBDA = 0.01


class RateDistortion(NamedTuple):
    """loss: scalar; bits_per_pixel, squared_error: per sample, B, detached (squared error on the [0, 1] scale)."""

    loss: Tensor
    bits_per_pixel: Tensor
    squared_error: Tensor


def lambda_at(position: Tensor, lambdas: tuple[float, ...]) -> Tensor:
    """λ at rate positions in [0, L-1]: log-spaced, so one ratio holds between all neighbours."""
    if len(lambdas) == 1:
        return torch.full_like(position, lambdas[0])
    return lambdas[0] * (lambdas[1] / lambdas[0]) ** position


def rate_distortion(result: ForwardResult, x: Tensor, weight: Tensor) -> RateDistortion:
    """mean over samples of (λ·255²·MSE + bpp)/√(λ/0.01).

    x: B×3×H×W in [0, 1]; weight: λ of each sample, B.
    """
    bpp, error = _rate_and_distortion(result["x_hat"], x, result["likelihoods"])
    loss = ((weight * 255**2 * error + bpp) / (weight / REFERENCE_LAMBDA).sqrt()).mean()
    return RateDistortion(loss, bpp.detach(), error.detach())


def rate_distortion_loss(
    x_hat: Tensor, images: Tensor, likelihoods: Likelihoods, lmbda: float | Tensor = 0.013
) -> Tensor:
    """The loss that HPCM is trained with: λ·255²·MSE + bpp, the mean over the pictures; a scalar, float32.

    x_hat, images: B×3×H×W, images in [0, 1].
    likelihoods: of latents and hyper-latents, as the network returns them.
    lmbda: λ, a number or one for each picture (B); HPCM's are 0.0018, 0.0035, 0.0067, 0.013, 0.025 and 0.0483.
    """
    bpp, error = _rate_and_distortion(x_hat, images, likelihoods)
    return (lmbda * 255**2 * error + bpp).mean()


def _rate_and_distortion(x_hat: Tensor, x: Tensor, likelihoods: Likelihoods) -> tuple[Tensor, Tensor]:
    """Bits per pixel and mean squared error of each picture, B each, float32."""
    pixels = x.shape[-2] * x.shape[-1]
    return bits_of(likelihoods) / pixels, (x_hat.float() - x).square().flatten(1).mean(dim=1)


def bits_of(likelihoods: Likelihoods) -> Tensor:
    """Bits of the latents and hyper-latents of each picture, B, float32."""
    return torch.as_tensor(sum(-part.flatten(1).log2().sum(dim=1) for part in (likelihoods["y"], likelihoods["z"])))
