"""How many bits the exact profile's weights and activations need: `python tools/integer_widths.py WEIGHTS --data DIR --calibrate PACK`.

Prints a Markdown table: the change of file sizes and of PSNR against the float profile, at the same quality settings (0, 50, 100), means
over the pictures. Weights are limited to narrower integers; activations are given fewer bits by larger margins of their units (residual
streams of the transforms have two bits more than the table says; channels whose units are as fine as units can be keep them).
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpcm_codec.bitstream.container import parse_header
from hpcm_codec.codec import Codec
from hpcm_codec.engines.exact import export, layers
from hpcm_codec.engines.exporting import balanced, exact_data
from hpcm_codec.images import read_picture
from hpcm_codec.images.fidelity import psnr
from hpcm_codec.training.data import PackedPictures, image_files
from hpcm_codec.weights.checkpoints import load_checkpoint

QUALITIES = (0, 50, 100)
WEIGHT_BITS = (16, 12, 10, 8)
ACTIVATION_BITS = (14, 13, 12, 11)
MARGINS = ("MARGIN", "STREAM_MARGIN", "BRANCH_MARGIN", "LATENT_MARGIN")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("--data", type=Path, required=True, help="pictures to code")
    parser.add_argument("--calibrate", type=Path, required=True, help="a file of `hpcm train pack`")
    parser.add_argument("--limit", type=int, default=8, help="how many pictures")
    options = parser.parse_args()
    os.environ["HPCM_OPS"] = "torch"  # the compiled operators make weights of 16 bits only

    calibration = PackedPictures(options.calibrate).sample(256, 24).split(1)
    source = balanced(load_checkpoint(options.weights), calibration)
    checkpoint = replace(source, weights={name: value.half() for name, value in source.weights.items()}, exact=None)
    files = image_files(options.data)
    pictures = [read_picture(path) for path in files[:: max(1, len(files) // options.limit)][: options.limit]]
    floating = Codec(checkpoint, "cpu")
    reference = measure(floating, pictures)
    margins = {name: getattr(export, name) for name in MARGINS}
    print("| weights, bits | activations, bits | bytes | PSNR, dB |\n|---:|---:|---:|---:|")
    settings = [(bits, 14) for bits in WEIGHT_BITS] + [(16, bits) for bits in ACTIVATION_BITS[1:]] + [(12, 12)]
    for weight_bits, activation_bits in settings:
        layers.LARGEST_WEIGHT = 2 ** (weight_bits - 1) - 1
        for name, margin in margins.items():
            setattr(export, name, margin * 2.0 ** (14 - activation_bits))
        data = exact_data(checkpoint, calibration)
        found = measure(Codec(replace(checkpoint, exact=data), "cpu", "exact"), pictures)
        sizes = np.mean([a / b - 1 for (a, _), (b, _) in zip(found, reference, strict=True)])
        decibels = np.mean([a - b for (_, a), (_, b) in zip(found, reference, strict=True)])
        print(f"| {weight_bits} | {activation_bits} | {100 * sizes:+.2f}% | {decibels:+.4f} |", flush=True)


def measure(codec: Codec, pictures: list) -> list[tuple[int, float]]:
    """Bytes and PSNR of every picture at every quality."""
    rows = []
    for picture in pictures:
        latents = codec.analyse(picture)
        for quality in QUALITIES:
            encoded = codec.encode_analysed(picture, latents, quality)
            shown = codec.reconstruct(encoded.latents, parse_header(encoded.data))
            rows.append((len(encoded.data), psnr(picture.pixels, shown)))
    return rows


if __name__ == "__main__":
    main()
