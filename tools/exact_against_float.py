"""How far the exact profile of a network is from its float profile, on full-size networks whose trained weights are nobody's to ship.

    python tools/exact_against_float.py hpcm-base phase1 --data ../shared/data/kodak --calibrate ../shared/data/valid

Weights are seeded: those of the golden outputs of HPCM-Base wherever a preset has tensors of the same name, else the initial ones. Every
network is exported with an exact profile, and codes the pictures at its middle quality in both profiles. Prints a Markdown table:

- bytes in floating point, and by how much those of the exact profile differ;
- symbols of the two files that differ, and by how much at most;
- with floating point's symbols given to both: the mean distance of the means, in quantisation steps, and the table indexes that differ;
- pixels that differ by more than 1 of 255 where both draw the same latents, and by how much at most;
- processor seconds of encoding and decoding one picture, in floating point and in integers, measured in turns: the least of `--runs`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
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
from hpcm_codec.entropy.distributions import sigma_index
from hpcm_codec.images import Picture, read_picture
from hpcm_codec.model import schedule
from hpcm_codec.model.config import ModelConfig, preset
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.published import our_name
from hpcm_codec.model.rate import quality_to_position
from hpcm_codec.model.schedule import Lattice, Scale
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
    parser.add_argument("--runs", type=int, default=2, help="how often the first picture is coded for the times")
    parser.add_argument("--parameters", type=Path, default=PARAMETERS, help="names and shapes of a published HPCM-Base")
    parser.add_argument("--keep", type=Path, help="a folder for the checkpoints that are made")
    options = parser.parse_args(arguments)
    pictures = [read_picture(path) for path in image_files(options.data)[: options.limit]]
    calibration = [crop(read_picture(path)) for path in image_files(options.calibrate)[: options.pictures]]
    columns = (
        *(
            "network",
            "bytes, float",
            "bytes, exact against float",
            "symbols that differ",
            "at most",
            "distance of means",
            "other tables",
        ),
        *("pixels off", "at most", "encoding, s: float", "exact", "decoding, s: float", "exact"),
    )
    print(f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.networks:
            checkpoint = exported(name, options.parameters, options.keep or Path(temporary), calibration)
            print(row(name, checkpoint, pictures, options.runs), flush=True)
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


def row(name: str, checkpoint: Path, pictures: list[Picture], runs: int) -> str:
    """A network's line of the table."""
    loaded = load_checkpoint(str(checkpoint))
    floating, exact = (Codec(loaded, "cpu", profile) for profile in ("float", "exact"))
    sizes = np.zeros(2)
    found: dict[str, list[NDArray[Any]]] = {"symbols": [], "means": [], "tables": [], "pixels": []}
    for picture in pictures:
        files = [codec.encode(picture, QUALITY) for codec in (floating, exact)]
        sizes += [len(data) for data in files]
        symbols, others = (symbols_of(*both) for both in zip((floating, exact), files, strict=True))
        found["symbols"].append(np.abs(others - symbols))
        means, tables = walked_alike(floating, exact, picture)
        found["means"].append(means)
        found["tables"].append(tables)
        found["pixels"].append(drawn_alike(floating, exact, picture).ravel())
    distance = {what: np.concatenate(parts) for what, parts in found.items()}
    shown = (
        f"{sizes[0]:,.0f}",
        f"{100 * (sizes[1] / sizes[0] - 1):+.2f}%",
        f"{100 * np.mean(distance['symbols'] > 0):.2f}%",
        f"{distance['symbols'].max()}",
        f"{distance['means'].mean():.4f}",
        f"{100 * np.mean(distance['tables'] > 0):.2f}%",
        f"{100 * np.mean(distance['pixels'] > 1):.3f}%",
        f"{distance['pixels'].max()}",
        *(f"{seconds:.2f}" for seconds in timed(floating, exact, pictures[0], runs)),
    )
    return f"| `{name}` | {' | '.join(shown)} |"


def timed(floating: Codec, exact: Codec, picture: Picture, runs: int) -> tuple[float, ...]:
    """Processor seconds, the least of several runs: encoding in floating point and in integers, decoding in both."""
    taken: list[tuple[float, ...]] = []
    for _ in range(runs):
        encoding, decoding = [], []
        for codec in (floating, exact):
            started = time.process_time()
            data = codec.encode(picture, QUALITY)
            encoded = time.process_time()
            codec.decode(data)
            encoding.append(encoded - started)
            decoding.append(time.process_time() - encoded)
        taken.append((*encoding, *decoding))
    return tuple(map(min, zip(*taken, strict=True)))


class Given:
    """A symbol port that keeps table indexes and means, and gives the symbols it was made with; without any, those of the latents.

    latents: 1×M×h×w, in quantisation steps.
    """

    def __init__(self, latents: Tensor, given: list[NDArray[np.int32]] | None = None) -> None:
        self._planes, self._given = schedule.split(latents), given
        self._scale_name = ""
        self.symbols: list[NDArray[np.int32]] = []
        self.indexes: list[NDArray[np.int64]] = []
        self.means: list[NDArray[np.float32]] = []

    def begin(self, scale: Scale, number: int) -> None:
        self._scale_name = scale.name

    def exchange(self, step: Lattice, sigma: Any, mean: Any) -> Any:
        indexes = sigma_index(sigma) if isinstance(sigma, Tensor) else sigma
        self.indexes.append(np.asarray(indexes, np.int64).ravel())
        self.means.append(np.asarray(mean).ravel())
        if self._given is not None:
            return self._given[len(self.means) - 1]
        rounded = (step.take(self._planes[self._scale_name]) - mean).round()
        self.symbols.append(rounded.numpy().astype(np.int32).ravel())
        return rounded


@torch.inference_mode()
def walked_alike(floating: Codec, exact: Codec, picture: Picture) -> tuple[NDArray[Any], NDArray[Any]]:
    """With the same symbols: the distances between the means, in quantisation steps, and between the table indexes of all latents."""
    model: HPCM = floating.engine.model  # type: ignore[attr-defined]
    network: Any = exact.engine.network  # type: ignore[attr-defined]
    image = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None] / 255
    rate = model.rate_at(quality_to_position(QUALITY, model.config.rate_levels))
    latents, log_gain = model.analyse(image), model.latent_log_gain(rate)
    hyper, (_, hyper_mean) = model.hyper_latents(latents, rate), model.hyper_distribution(rate)
    symbols = (hyper - hyper_mean).round()
    in_floats = Given(latents if log_gain is None else latents * log_gain.exp())
    model.code_latents(symbols + hyper_mean, rate, in_floats)
    in_integers = Given(latents, in_floats.symbols)
    network.code_latents(symbols.numpy().astype(np.int32), network.position(2 * QUALITY), in_integers)
    means, indexes = (
        np.abs(np.concatenate(ours) - np.concatenate(theirs))
        for ours, theirs in ((in_integers.means, in_floats.means), (in_integers.indexes, in_floats.indexes))
    )
    return means, indexes


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
