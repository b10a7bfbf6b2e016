"""The rate-distortion loss of a variable-rate model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hpcm_codec.model.hpcm import ForwardResult

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
    pixels = x.shape[-2] * x.shape[-1]
    bits = sum(-part.flatten(1).log2().sum(dim=1) for part in (result["likelihoods"]["y"], result["likelihoods"]["z"]))
    bpp = torch.as_tensor(bits) / pixels
    error = (result["x_hat"].float() - x).square().flatten(1).mean(dim=1)
    loss = ((weight * 255**2 * error + bpp) / (weight / REFERENCE_LAMBDA).sqrt()).mean()
    return RateDistortion(loss, bpp.detach(), error.detach())
