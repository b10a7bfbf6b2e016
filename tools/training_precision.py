"""What bfloat16 does to the gradients of a training step: `python tools/training_precision.py --train PACK [--model NAME] [--device cuda]`.

The same batches are differentiated in float32 and under bfloat16 autocast, tensor by tensor. The measure is how much the float32 gradient
of a tensor varies from batch to batch (its standard deviation, over all its numbers). For each part of the network and kind of
tensor, the median tensor's

- shift: the mean of the difference over the batches. Weights follow it. Differences without a shift leave size / √batches;
- size: the root mean square of the difference in one batch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.light import load_weights
from hpcm_codec.training.losses import lambda_at, rate_distortion
from hpcm_codec.training.samples import Batch, draw_batch
from hpcm_codec.training.settings import CropPhase, TrainSettings

PARTS = ("g_a", "g_s", "h_a", "h_s", "context.adaptors", "context.prior", "context.cells")
KINDS = ("bias", "weight", "level_values")
Gradients = dict[str, Tensor]


def gradients(model: HPCM, batch: Batch, half: bool) -> Gradients:
    """Of all parameters, on the CPU."""
    model.zero_grad()
    x = batch.pixels.float().div(255)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        result = model(x, batch.position, batch.noise)
    rate_distortion(result, x, lambda_at(batch.position, model.config.lambdas)).loss.backward()
    return {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None}


def compared(model: HPCM, batches: Iterator[Batch]) -> dict[str, tuple[float, float]]:
    """Shift and size of every tensor's difference, in standard deviations of its gradient."""
    exact: dict[str, list[Tensor]] = {}
    differences: dict[str, list[Tensor]] = {}
    for batch in batches:
        wide, half = gradients(model, batch, False), gradients(model, batch, True)
        for name in wide:
            exact.setdefault(name, []).append(wide[name])
            differences.setdefault(name, []).append(half[name] - wide[name])
    found = {}
    for name in exact:
        deviation = float(torch.stack(exact[name]).var(dim=0).sum().sqrt())
        difference = torch.stack(differences[name])
        if deviation > 1e-9:  # a key's bias has no effect on attention: what is left is rounding
            shift = float(difference.mean(dim=0).norm())
            size = math.sqrt(float(difference.square().sum()) / len(difference))
            found[name] = shift / deviation, size / deviation
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="a file of `hpcm train pack`")
    parser.add_argument("--model", default="phase1-lite", help="weights, as --from of `hpcm train run` takes them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--crops", type=int, default=4, help="of 256×256 pixels in a batch")
    options = parser.parse_args()

    checkpoint = load_weights(options.model)
    model = checkpoint.build_model().requires_grad_().train().to(options.device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = TrainSettings(
        steps=options.batches, crops=(CropPhase(0, 256, options.crops),), smallest_scale=0.6, seed=11
    )
    pictures, device = PackedPictures(options.train), torch.device(options.device)
    batches = (
        draw_batch(pictures, model.config, settings, settings.crops[0], n).to(device) for n in range(options.batches)
    )
    found = compared(model, batches)
    print(f"{'part':18}{'tensors':14}{'shift':>8}{'size':>8}    by chance: size × {options.batches**-0.5:.2f}")
    for part in PARTS:
        for kind in KINDS:
            chosen = [value for name, value in found.items() if name.startswith(part) and name.endswith(kind)]
            if chosen:
                shift, size = np.median(chosen, axis=0)
                print(f"{part:18}{kind:14}{shift:8.3f}{size:8.3f}")


if __name__ == "__main__":
    main()
