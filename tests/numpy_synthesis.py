"""The exact profile's synthesis in plain numpy: from decoded latents to the pixels that every machine shows (docs/bitstream.md, 7.7)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.bitstream.container import parse_stream
from numpy_decoder import (
    FINE_BITS,
    LIMIT,
    WIDE,
    Ints,
    Model,
    decode_symbols,
    make_layer,
    neighbourhoods,
    round_divide,
    round_shift,
    saturate,
)
from numpy_network import partial_convolution

PATCH = 8
DRAWN_SHIFT = 5  # samples are drawn in units of 1/32 of a level


def narrow(x: Ints) -> Ints:
    """A plane within ±32767 in units four times as large, within ±8191: before sums of hundreds of channels."""
    return saturate(round_shift(x, 2))


def wide_block(model: Model, name: str, x: Ints, stream: Ints) -> Ints:
    """A residual block on a stream within ±32767; where it has factors, its branch is in units of its own."""
    hidden = model.units(f"{name}.expand")
    if model.has(f"{name}.spatial.conv.weight"):
        inner, units = partial_convolution(model, f"{name}.spatial", narrow(x), stream - 2)
    else:
        units = model.units(f"{name}.spatial")
        kernel, bias = model.real(f"{name}.spatial.weight")[:, 0], model.real(f"{name}.spatial.bias")
        around = neighbourhoods(x, 3)
        inner = np.empty_like(x)
        for c in range(x.shape[-1]):
            own = slice(c, c + 1)
            layer = make_layer(kernel[c].reshape(1, -1), bias[own], np.repeat(stream[own], 9), units[own], bound=WIDE)
            inner[..., own] = layer(around[..., c, :])
    inner = model.layer(f"{name}.expand", units, hidden)(inner)
    inner = np.where(inner < 0, round_shift(inner * 328, 15), inner)
    rows, bias = model.real(f"{name}.project.weight").reshape(len(stream), -1), model.real(f"{name}.project.bias")
    if not model.has(f"{name}.factor.level_values"):
        return np.clip(x + make_layer(rows, bias, hidden, stream, limit=WIDE)(inner), -WIDE, WIDE)
    factors = model.real(f"{name}.factor.level_values")
    # the power of two that brings a channel's largest factor between 1/2 and 1
    change = np.clip(-np.frexp(np.abs(factors).max(axis=0))[1].astype(np.int64), -3, 12)
    branch = make_layer(rows, bias, hidden, stream - change, limit=WIDE)(inner)
    factor = model.at_quality(np.rint(np.ldexp(factors, change) * 4096).astype(np.int64))
    scaled = np.clip(x + round_shift(branch * factor, 12), -WIDE, WIDE)
    return scaled


def enter(model: Model, latents: Ints) -> Ints:
    """Latents h×w×M in fine units → in those of the stream `g_s`."""
    exponent = (model.units("g_s") - model.units("latents") - FINE_BITS + 16) << 16
    correction = model.log2_gain("log_inverse_correction", model.channels)
    return np.clip(round_shift(latents * model.power_of_two(exponent + correction), 30), -WIDE, WIDE)


def double(model: Model, name: str, x: Ints, units_in: Ints, units_out: Ints, bound: int) -> Ints:
    """Twice the resolution, from a plane within ±bound to one within ±32767."""
    weight, bias = model.real(f"{name}.weight"), model.real(f"{name}.bias")
    doubled = np.empty((2 * x.shape[0], 2 * x.shape[1], weight.shape[1]), np.int64)
    for a in range(2):
        for b in range(2):
            layer = make_layer(weight[:, :, a, b].T, bias, units_in, units_out, bound=bound, limit=WIDE)
            doubled[a::2, b::2] = layer(x)
    return doubled


def synthesise(model: Model, latents: Ints) -> Ints:
    """Latents h×w×M in fine units → samples 16h×16w×3 in units of 1/32 of a level."""
    x, units = enter(model, latents), model.units("g_s")
    if model.config["transform"] == "patch":
        x, inner = wide_block(model, "g_s.0", x, units), model.units("g_s.inner")
        x = double(model, "g_s.1", x, units, inner, WIDE)
        blocks = int(model.config["patch_blocks"])
        for block in range(blocks):
            x = wide_block(model, f"g_s.{block + 2}", x, inner)
        return draw(model, f"g_s.{blocks + 2}", x, inner)
    number = 0
    for stream, blocks in (("eighth", int(model.config["staircase_blocks"])), ("quarter", 2), ("half", 2)):
        finer = model.units(f"g_s.{stream}")
        x, units = double(model, f"g_s.{number}", narrow(x), units - 2, finer, LIMIT), finer
        for _ in range(blocks):
            x = wide_block(model, f"g_s.{(number := number + 1)}", x, units)
        number += 1
    return draw_last(model, f"g_s.{number}", narrow(x), units - 2)


def draw_last(model: Model, name: str, x: Ints, units: Ints) -> Ints:
    """A transposed convolution 4×4 of stride 2 and padding 1: input i draws the pixels 2i − 1 … 2i + 2; beyond the border there is none."""
    weight, bias = model.real(f"{name}.weight"), model.real(f"{name}.bias")  # in×3×4×4
    height, width, _ = x.shape
    around = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    image = np.empty((2 * height, 2 * width, 3), np.int64)
    levels = np.full(3, DRAWN_SHIFT, np.int64)
    for row in range(2):
        for column in range(2):
            # pixel 2i + r of an axis: of input i + r − 1 the kernel's place 3 − r, and of input i + r its place 1 − r
            places = [(i, j) for i in range(2) for j in range(2)]
            rows = np.concatenate([weight[:, :, 3 - row - 2 * i, 3 - column - 2 * j].T for i, j in places], axis=1)
            layer = make_layer(255 * rows, 255 * bias, np.tile(units, 4), levels)
            seen = [around[row + i : row + i + height, column + j : column + j + width] for i, j in places]
            image[row::2, column::2] = layer(np.concatenate(seen, axis=-1))
    return image


def draw(model: Model, name: str, x: Ints, units: Ints) -> Ints:
    """Every patch draws k×k pixels, overlapping its neighbours' by k − 8; patches beyond the border repeat those at it."""
    weight, bias = model.real(f"{name}.weight"), model.real(f"{name}.bias")  # in×3×k×k
    size = weight.shape[-1]
    overlap, height, width = (size - PATCH) // 2, *x.shape[:2]
    image = np.empty((height * PATCH, width * PATCH, 3), np.int64)
    layers = {}
    for row in range(PATCH):
        for column in range(PATCH):
            # the patches that draw the pixels at this place in a block of the grid that patches' corners make
            places = [
                (first, second, row + PATCH * first, column + PATCH * second)
                for first in reversed(range(size // PATCH))
                for second in reversed(range(size // PATCH))
            ]
            rows = np.concatenate([weight[:, :, i, j].T for _, _, i, j in places], axis=1)
            inputs = np.tile(units, len(places))
            levels = np.full(3, DRAWN_SHIFT, np.int64)
            layers[row, column] = places, make_layer(255 * rows, 255 * bias, inputs, levels, bound=WIDE)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            top, left = i + overlap, j + overlap  # from the corner of the first patch
            places, layer = layers[top % PATCH, left % PATCH]
            patches = [
                x[min(max(top // PATCH - first, 0), height - 1), min(max(left // PATCH - second, 0), width - 1)]
                for first, second, _, _ in places
            ]
            image[i, j] = layer(np.concatenate(patches))
    return image


def to_pixels(samples: Ints, grey: bool) -> NDArray[np.uint8]:
    if grey:
        total = np.maximum(samples.sum(axis=-1, keepdims=True), 0)
        levels = round_divide(total, np.array(3 << DRAWN_SHIFT, np.int64))
    else:
        levels = round_shift(samples, DRAWN_SHIFT)
    return np.clip(levels, 0, 255).astype(np.uint8)


def decode_pixels(data: bytes, checkpoint: Path) -> NDArray[np.uint8]:
    """The picture of a file of the exact profile, H×W×3 or ×1."""
    header = parse_stream(data).header
    model = Model(checkpoint, header.quality_code)
    whole = np.empty((header.grid.latents.height, header.grid.latents.width, model.channels), np.int64)
    for tile, decoded in zip(header.grid, decode_symbols(data, checkpoint), strict=True):
        whole[tile.latents.slices] = decoded.latents
    samples = synthesise(model, whole)[: header.height, : header.width]
    return to_pixels(samples, header.grey)
