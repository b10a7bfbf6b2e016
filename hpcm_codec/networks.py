"""Networks to train with a loop of your own.

`build` makes a network of a preset: `hpcm-base`, `hpcm-large`, `phase1` to `phase4`, `phase1-slim`, and those of the phases that
end in `-lite`. It is a `torch.nn.Module`; called with images B×3×H×W in [0, 1], H and W multiples of 64, it returns a dictionary:
`x_hat` (B×3×H×W, not clamped) and `likelihoods` of the latents (`y`, B×M×H/16×W/16) and of the hyper-latents (`z`,
B×N×H/64×W/64).

>>> import torch
>>> from hpcm_codec.networks import build, parameter_groups, rate_distortion_loss
>>> model = build("phase1", M=320, N=256, hidden_rate=2, use_checkpoint=True)
>>> optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-4, decay_lr=1e-5))
>>> images = torch.rand(1, 3, 64, 64)
>>> with torch.autocast("cpu", dtype=torch.bfloat16):
...     output = model(images)
>>> x_hat, likelihoods = output["x_hat"], output["likelihoods"]
>>> loss = rate_distortion_loss(x_hat, images, likelihoods, lmbda=0.013)
>>> loss.backward()
>>> optimizer.step()
>>> x_hat.shape, likelihoods["y"].shape, likelihoods["z"].shape
(torch.Size([1, 3, 64, 64]), torch.Size([1, 320, 4, 4]), torch.Size([1, 256, 1, 1]))

The `-lite` networks have several rates in one: they take a position in [0, 7] as a second argument (a number, or a tensor of B
of them), and `lambda_at(position, model.config.lambdas)` is the λ that belongs to it. `save` makes a trained network a checkpoint,
which `hpcm_codec.encode(image, model="mine.safetensors")` and the commands take. `hpcm train run` is our own loop.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hpcm_codec.errors import UsageError
from hpcm_codec.model.config import ModelConfig, preset
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training.losses import lambda_at, rate_distortion_loss
from hpcm_codec.training.optimisers import is_decay
from hpcm_codec.weights.checkpoints import save_checkpoint

__all__ = ["build", "lambda_at", "parameter_groups", "rate_distortion_loss", "save"]


def build(
    name: str = "phase1",
    *,
    M: int | None = None,
    N: int | None = None,
    hidden_rate: float | None = None,
    use_checkpoint: bool = False,
) -> HPCM:
    """A preset's network with initial weights, in training mode.

    name: of the preset; `hpcm info --model NAME` says how large it is and what it costs.
    M, N: channels of latents and hyper-latents; None leaves them as they are (320 and 256; `-lite`: 320 and 96). M is a multiple of 16.
    hidden_rate: expansion of the channel mix in every RWKV block; None leaves it (2, 3 and 4 in the cells of s1, s2 and s3).
    use_checkpoint: compute the activations of cells and RWKV blocks again in the backward pass instead of keeping them.
    Raises UnsupportedError for an unknown name, UsageError for numbers that do not fit.
    """
    config = preset(name)
    changes: dict[str, Any] = {"use_checkpoint": use_checkpoint}
    if M is not None:
        changes["latent_channels"] = M
    if N is not None:
        changes["hyper_channels"] = N
    if hidden_rate is not None:
        changes |= _with_hidden_rate(config, hidden_rate)
    if any(value is not None and value <= 0 for value in (M, N, hidden_rate)):
        raise UsageError("M, N and hidden_rate must be larger than 0")
    try:
        return HPCM(replace(config, **changes))
    except ValueError as error:
        raise UsageError(f"no such {name}: {error}") from error


def _with_hidden_rate(config: ModelConfig, rate: float) -> dict[str, Any]:
    """The settings of all RWKV blocks with another expansion."""
    fusion = config.context_fusion
    return {
        "cells": tuple(replace(cell, hidden_rate=rate) if cell.kind == "rwkv" else cell for cell in config.cells),
        "context_fusion": None if fusion is None else replace(fusion, hidden_rate=rate),
        "prior_rwkv_rate": None if config.prior_rwkv_rate is None else rate,
    }


def parameter_groups(model: nn.Module, lr: float, decay_lr: float) -> list[dict[str, Any]]:
    """Two groups for an optimiser of `torch.optim`: decay and boost of the Bi-WKV with a learning rate of their own, and all others.

    lr: of all others; decay_lr: of decay and boost, which get no weight decay.
    """
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if not is_decay(name)], "lr": lr},
        {"params": [p for name, p in named if is_decay(name)], "lr": decay_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def save(model: HPCM, path: str | os.PathLike[str]) -> str:
    """Write a network as a checkpoint, replacing an older one; returns its identity, 16 hexadecimal digits.

    Raises FileError when that is not possible; an older file is then as it was.
    """
    return save_checkpoint(Path(path), model.config, model.state_dict(), {}).hex()
