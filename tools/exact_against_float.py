"""How far the exact profile of a network is from its float profile, on full-size networks whose trained weights are nobody's to ship.

    python tools/exact_against_float.py hpcm-base phase1 --data ../shared/data/kodak --calibrate ../shared/data/valid

Weights are seeded: those of the golden outputs of HPCM-Base wherever a preset has tensors of the same name, else the initial ones. Every
network is exported with an exact profile, and codes the pictures at its middle quality in both profiles. Prints a Markdown table: bytes in
float and in integers; symbols that differ, and by how much at most; pixels that differ by more than 1 of 255 where both draw the same
latents, and by how much at most.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcm_codec.bitstream.container import parse_header, parse_stream
from hpcm_codec.codec import Codec
from hpcm_codec.engines.exporting import export_checkpoint
from hpcm_codec.images import Picture, read_picture
from hpcm_codec.model.config import ModelConfig, preset
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.published import our_name
from hpcm_codec.training.data import image_files
from hpcm_codec.weights.checkpoints import load_checkpoint, save_checkpoint

PARAMETERS = Path(__file__).resolve().parents[2] / "shared" / "reference" / "hpcm_base_parameters.json"
CALIBRATION_EDGE = 256
QUALITY = 50


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="presets")
    parser.add_argument("--data", type=Path, required=True, help="a folder of pictures to code")
    parser.add_argument("--calibrate", type=Path, required=True, help="a folder of pictures that find the units")
    parser.add_argument("--limit", type=int, default=3, help="how many pictures to code")
    parser.add_argument("--pictures", type=int, default=8, help="how many to calibrate with, cut to 256×256")
    parser.add_argument("--parameters", type=Path, default=PARAMETERS, help="names and shapes of a published HPCM-Base")
    parser.add_argument("--keep", type=Path, help="a folder for the checkpoints that are made")
    options = parser.parse_args(arguments)
    pictures = [read_picture(path) for path in image_files(options.data)[: options.limit]]
    calibration = [crop(read_picture(path)) for path in image_files(options.calibrate)[: options.pictures]]
    print("| network | bytes, float | exact | symbols that differ | at most | pixels off by more than 1 | at most |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.networks:
            checkpoint = exported(name, options.parameters, options.keep or Path(temporary), calibration)
            print(row(name, checkpoint, pictures), flush=True)
    return 0


def seeded_weights(parameters: Path) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """The weights that the golden outputs were made with, as a published file names and shapes them.

    parameters: JSON, name → shape, of a published HPCM-Base.
    """
    published: dict[str, list[int]] = json.loads(parameters.read_text())
    for name, shape in published.items():
        values = np.random.default_rng([1, zlib.crc32(name.encode())]).standard_normal(shape)
        if name.startswith("adaptive_params_list"):
            values = 1 + 0.1 * values
        elif name == "scales_hyper":
            values = 0.5 + np.abs(values)
        elif len(shape) == 1 or name == "means_hyper":
            values = 0.02 * values
        else:
            values = 0.8 * values / np.sqrt(np.prod(shape[1:]))
        yield name, values


def seeded_network(config: ModelConfig, parameters: Path) -> dict[str, Tensor]:
    """A network's weights: seeded ones wherever HPCM-Base has a tensor of that name and size, else initial ones."""
    torch.manual_seed(0)
    weights = dict(HPCM(config).state_dict())
    for name, values in seeded_weights(parameters):
        ours = our_name(name)
        if ours in weights and weights[ours].numel() == values.size:
            weights[ours] = torch.from_numpy(values).reshape(weights[ours].shape)
    return weights


def exported(name: str, parameters: Path, folder: Path, calibration: list[Tensor]) -> Path:
    """A preset with an exact profile; HPCM-Base as it was published."""
    config = preset(name)
    if name == "hpcm-base":
        config = dataclasses.replace(config, hyper_gather="published")
    folder.mkdir(parents=True, exist_ok=True)
    source, target = folder / f"{name}-float.safetensors", folder / f"{name}.safetensors"
    save_checkpoint(source, config, seeded_network(config, parameters), {})
    export_checkpoint(str(source), target, calibration=calibration)
    source.unlink()
    return target


def crop(picture: Picture) -> Tensor:
    """The middle of a picture, 1×3×256×256 in [0, 1]."""
    top, left = ((side - CALIBRATION_EDGE) // 2 for side in picture.pixels.shape[:2])
    part = picture.pixels[top : top + CALIBRATION_EDGE, left : left + CALIBRATION_EDGE]
    return torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None] / 255


def row(name: str, checkpoint: Path, pictures: list[Picture]) -> str:
    """A network's line of the table."""
    loaded = load_checkpoint(str(checkpoint))
    floating, exact = (Codec(loaded, "cpu", profile) for profile in ("float", "exact"))
    sizes, symbols, different, largest, pixels, off, furthest = np.zeros(2), 0, 0, 0, 0, 0, 0
    for picture in pictures:
        files = [codec.encode(picture, QUALITY) for codec in (floating, exact)]
        sizes += [len(data) for data in files]
        expected, found = (symbols_of(*both) for both in zip((floating, exact), files, strict=True))
        distance = np.abs(found - expected)
        symbols, different, largest = (
            symbols + distance.size,
            different + np.count_nonzero(distance),
            max(largest, int(distance.max())),
        )
        change = drawn_alike(floating, exact, picture)
        pixels, off, furthest = (
            pixels + change.size,
            off + np.count_nonzero(change > 1),
            max(furthest, int(change.max())),
        )
    parts = (
        f"{sizes[0]:,.0f}",
        f"{100 * (sizes[1] / sizes[0] - 1):+.2f}%",
        f"{100 * different / symbols:.2f}%",
        f"{largest}",
        f"{100 * off / pixels:.3f}%",
        f"{furthest}",
    )
    return f"| `{name}` | {' | '.join(parts)} |"


def symbols_of(codec: Codec, data: bytes) -> NDArray[np.int64]:
    """All symbols of a file, in coding order."""
    read: list[NDArray[Any]] = []
    stream = parse_stream(data)
    for tile in stream.header.grid:
        codec._decode_tile(tile, stream, read.append)
    return np.concatenate(read).astype(np.int64)


def drawn_alike(floating: Codec, exact: Codec, picture: Picture) -> NDArray[np.int64]:
    """The distances between what both draw of the exact profile's latents."""
    encoded = exact.encode_with_latents(picture, QUALITY)
    network: Any = exact.engine.network  # type: ignore[attr-defined]
    tokens = np.ascontiguousarray(np.moveaxis(np.asarray(encoded.latents[0]), 0, -1))
    latents = torch.from_numpy(np.ascontiguousarray(network.real_latents(tokens)))
    height, width, _ = picture.pixels.shape
    area = slice(0, height), slice(0, width)
    expected = floating.engine.synthesise(latents, 2 * QUALITY, area, grey=False)
    shown = exact.reconstruct(encoded.latents, parse_header(encoded.data))
    return np.abs(shown.astype(np.int64) - expected)


if __name__ == "__main__":
    sys.exit(main())
