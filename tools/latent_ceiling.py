"""How well 16×16 blocks can be drawn from a number of latents: `python tools/latent_ceiling.py --train PACK --data DIR [--model NAME]`.

Prints the PSNR (dB, mean over the pictures) of the best linear transform for each number of latents, which is the projection on as
many principal components of training blocks, and that of a model without its context: at its lowest, middle and highest rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcm_codec.images import read_picture
from hpcm_codec.model.rate import spread_positions
from hpcm_codec.training.data import PackedPictures, image_files
from hpcm_codec.weights.checkpoints import load_checkpoint

BLOCK = 16
COUNTS = (128, 192, 256, 320, 384)


def blocks_of(pixels: np.ndarray) -> Tensor:
    """uint8 H×W×3 → blocks n×768 in [0, 1], what is left over at the borders cut off."""
    height, width = (side // BLOCK * BLOCK for side in pixels.shape[:2])
    x = torch.from_numpy(pixels[:height, :width].copy()).float() / 255
    return x.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).transpose(1, 2).reshape(-1, 3 * BLOCK**2)


def decibels(errors: Iterable[Tensor]) -> float:
    """Mean PSNR of pictures, from their errors."""
    return float(torch.stack([-10 * error.square().mean().log10() for error in errors]).mean())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True, help="a file of `hpcm train pack`")
    parser.add_argument("--data", type=Path, required=True, help="pictures to measure on, at least 64 pixels a side")
    parser.add_argument("--model", default="phase1-lite")
    parser.add_argument("--pictures", type=int, default=300, help="how many training pictures")
    options = parser.parse_args()

    packed = PackedPictures(options.train)
    chosen = np.random.default_rng(0).choice(len(packed), min(options.pictures, len(packed)), replace=False)
    train = torch.cat([blocks_of(packed[int(number)]) for number in chosen])
    mean = train.mean(dim=0)
    _, vectors = torch.linalg.eigh(((train - mean).T @ (train - mean)).double())
    pictures = [read_picture(path).pixels for path in image_files(options.data)]
    tested = [blocks_of(pixels) - mean for pixels in pictures]
    for count in COUNTS:
        basis = vectors[:, -count:].float()
        print(f"{count} principal components: {decibels(x - x @ basis @ basis.T for x in tested):.2f} dB")

    model = load_checkpoint(options.model).build_model()
    tensors = [torch.from_numpy(p[: p.shape[0] // 64 * 64, : p.shape[1] // 64 * 64].copy()) for p in pictures]
    for position in spread_positions(model.config.rate_levels):
        rate, plain, rounded = model.rate_at(position), [], []
        gain = model.latent_log_gain(rate)
        steps = torch.ones(1) if gain is None else gain.exp()
        for pixels in tensors:
            x = pixels.permute(2, 0, 1)[None].float() / 255
            latents = model.analyse(x)
            plain.append(model.synthesise(latents, rate).clamp(0, 1) - x)
            rounded.append(model.synthesise((latents * steps).round() / steps, rate).clamp(0, 1) - x)
        print(f"{options.model} at rate {position:g}: {decibels(plain):.2f} dB, rounded {decibels(rounded):.2f} dB")


if __name__ == "__main__":
    main()
