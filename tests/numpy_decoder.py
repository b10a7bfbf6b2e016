"""The exact profile's decoder in plain numpy: from a file's bytes to its symbols and latents, as the executable specification.

Written from docs/bitstream.md and the contract of the operators, to be read: every latent has its (channel, row, column), all arithmetic is
int64, nothing is fast. It shares nothing with the package but the container parser, which knows bytes only; no torch takes part.
`hpcm_codec` must arrive at the same integers.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from hpcm_codec.bitstream.container import parse_stream
from hpcm_codec.constants import SCALES
from hpcm_codec.entropy.symbol_check import SYMBOL_CHECK_START, update_symbol_check

Ints = NDArray[np.int64]
Position = tuple[int, int, int]  # channel, row, column

LIMIT = 8191  # activations are integers within ±LIMIT …
WIDE = 32767  # … and the streams of the transforms within ±WIDE
FINE_BITS = 6  # decoded latents have 6 bits more than what the context model sees
SCALE_FRACTION = 10  # logarithms of scales are in units of 2^-10

# ---- arithmetic: the only three ways in which anything is rounded


def saturate(x: Ints) -> Ints:
    return np.clip(x, -LIMIT, LIMIT)


def round_shift(x: Ints, shift: Any) -> Ints:
    """x / 2^shift, halves towards +∞."""
    shift = np.asarray(shift, np.int64)
    return (x + ((np.int64(1) << shift) >> 1)) >> shift


def round_divide(a: Ints, b: Ints) -> Ints:
    """floor((2a + b) / 2b), b > 0."""
    return (2 * a + b) // (2 * b)


# ---- the rANS coder (docs/bitstream.md, section 7.3)


class RansDecoder:
    """Reads symbols of one stream; rows: the cumulative frequencies of every table, offsets: their first symbols."""

    def __init__(self, stream: bytes, rows: list[list[int]], offsets: list[int]) -> None:
        self._words = iter(struct.unpack(f"<{len(stream) // 4}I", stream))
        self._rows, self._offsets = rows, offsets
        self._state = next(self._words) | next(self._words) << 32

    def _refill(self) -> None:
        if self._state < 1 << 31:
            self._state = self._state << 32 | next(self._words)

    def _four_bits(self) -> int:
        bits = self._state & 15
        self._state >>= 4
        self._refill()
        return bits

    def symbol(self, table: int) -> int:
        row, offset = self._rows[table], self._offsets[table]
        low = self._state & 0xFFFF
        j = int(np.searchsorted(row, low, side="right")) - 1
        self._state = (row[j + 1] - row[j]) * (self._state >> 16) + low - row[j]
        self._refill()
        escape = len(row) - 2
        if j < escape:
            return j + offset
        digits = (part := self._four_bits())
        while part == 15:
            digits += (part := self._four_bits())
        raw = sum(self._four_bits() << (4 * place) for place in range(digits))
        return -((raw + 1) // 2) + offset if raw & 1 else raw // 2 + escape + offset


# ---- where the latents of a step lie (section 7.5)

GROUP_STEPS = (
    "24603571",
    "35712460",
    "46025713",
    "57134602",
    "60247135",
    "71356024",
)  # pair of positions, by step and group
PAIRS = ("00 22", "02 20", "11 33", "13 31", "01 23", "03 21", "10 32", "12 30")
S2_IN_S3 = ((0, 0), (1, 1), (0, 1), (1, 0))  # by group modulo 4
S1_IN_S2 = ((0, 0), (0, 1), (1, 0), (1, 1))  # by quarter of the channels
S2_STEPS = ((3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))
# Of networks that were published: by group, the place of a 4×4 cell that the hyperprior's gather for s2 leaves out.
PUBLISHED_LEFT_OUT = ((0, 0), (1, 1), (0, 1), (1, 0), (0, 2), (1, 3), (0, 3), (1, 2))
DIAGONALS = (((0, 0), (1, 1)), ((0, 1), (1, 0)))


def positions(scale: int, step: int, channels: int, height: int, width: int) -> Iterator[Position]:
    """The latents that a step of s1, s2 or s3 (0, 1, 2) codes, in coding order, on that scale's own plane of height×width."""
    parts, stride = ((2, 2), (4, 2), (8, 4))[scale]
    size = channels // parts
    for part in range(parts):
        starts: tuple[tuple[int, int], ...]
        if scale == 0:
            starts = DIAGONALS[(part + step) % 2]
        elif scale == 1:
            starts = (S1_IN_S2[S2_STEPS[step][part]],)
        else:
            pair = PAIRS[int(GROUP_STEPS[step][part])].split()
            starts = tuple((int(at[0]), int(at[1])) for at in pair)
        for top, left in starts:
            for channel in range(part * size, (part + 1) * size):
                for row in range(top, height, stride):
                    for column in range(left, width, stride):
                        yield channel, row, column


def in_finer(scale: int, channels: int, place: Position) -> Position:
    """Where a latent of s1 or s2 lies on the plane of the next finer scale."""
    channel, row, column = place
    top, left = S1_IN_S2[channel // (channels // 4)] if scale == 0 else S2_IN_S3[channel // (channels // 8) % 4]
    return channel, 2 * row + top, 2 * column + left


def to_finer(scale: int, channels: int, coarse: Ints, fine: Ints) -> Ints:
    """`fine` with the values of a coarser plane at their places. Planes are h×w×C, C a multiple of the latent channels."""
    merged = fine.copy()
    height, width, total = coarse.shape
    for at in range(total):
        _, top, left = in_finer(scale, channels, (at % channels, 0, 0))
        merged[top : top + 2 * height : 2, left : left + 2 * width : 2, at] = coarse[..., at]
    return merged


def to_coarser(scale: int, channels: int, fine: Ints) -> Ints:
    """What a finer plane holds at the places of the next coarser one, s1 or s2 (scale 0, 1)."""
    height, width, total = fine.shape
    taken = np.empty((height // 2, width // 2, total), np.int64)
    for at in range(total):
        _, top, left = in_finer(scale, channels, (at % channels, 0, 0))
        taken[..., at] = fine[top::2, left::2, at]
    return taken


def published_gather(channels: int, full: Ints, on_s2: Ints) -> Ints:
    """What s2 has of the hyperprior in networks whose `hyper_gather` is "published" (section 7.5): changed where s1 has coded nothing."""
    result = on_s2.copy()
    height, width, total = full.shape
    for at in range(total):
        channel = at % channels
        group, quarter = channel // (channels // 8), channel // (channels // 4)
        top, left = S2_IN_S3[group % 4]
        sources = (
            (i, j)
            for i in range(top, height, 2)
            for j in range(left, width, 2)
            if (i % 4, j % 4) != PUBLISHED_LEFT_OUT[group]
        )
        for row in range(height // 2):
            for column in range(width // 2):
                if (row % 2, column % 2) != S1_IN_S2[quarter]:
                    result[row, column, at] = full[(*next(sources), at)]
    return result


# ---- layers: weights are float16 numbers, that is integers times powers of two


@dataclass(frozen=True)
class Layer:
    """Integer weights (outputs × inputs), biases and shifts: output = saturate(round_shift(weights · input + bias, shift))."""

    weights: Ints
    bias: Ints
    shift: Ints
    limit: int = LIMIT

    def __call__(self, x: Ints) -> Ints:
        return np.clip(round_shift(x @ self.weights.T + self.bias, self.shift), -self.limit, self.limit)


def make_layer(
    rows: NDArray[np.float64],
    bias: NDArray[np.float64] | None,
    units_in: Ints,
    units_out: Ints,
    bound: int = LIMIT,
    limit: int = LIMIT,
) -> Layer:
    """Rows outputs×inputs of real weights, inputs in units of 2^-units_in, outputs in units of 2^-units_out.

    bound: of the inputs' magnitudes; limit: of the outputs'.
    The shift of a row: with bound · Σ|row| + |bias| = m · 2^e, ½ ≤ m < 1, it is 31 − e − unit within 0 … 30, less one as long as the
    largest possible sum reaches 2^31 or a weight 2^15.
    """
    rows = rows * np.exp2(-units_in.astype(np.float64))
    bias = np.zeros(len(rows)) if bias is None else bias.astype(np.float64)
    weights, biases, shifts = [], [], []
    for row, offset, unit in zip(rows, bias, units_out.tolist(), strict=True):
        exponent = math.frexp(bound * math.fsum(np.abs(row)) + abs(offset))[1]
        shift = min(30, max(0, 31 - exponent - unit))
        while True:
            integers = np.rint(np.ldexp(row, shift + unit)).astype(np.int64)
            added = round(math.ldexp(offset, shift + unit))
            largest = bound * int(np.abs(integers).sum()) + abs(added) + (1 << shift) // 2
            if largest < 1 << 31 and int(np.abs(integers).max()) < 1 << 15:
                break
            shift -= 1
        weights.append(integers)
        biases.append(added)
        shifts.append(shift)
    return Layer(np.array(weights), np.array(biases, np.int64), np.array(shifts, np.int64), limit)


def neighbourhoods(x: Ints, size: int) -> Ints:
    """h×w×C → h×w×C×size², row-major, zero outside the plane."""
    height, width, _ = x.shape
    reach = size // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)))
    parts = [padded[i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return np.stack(parts, axis=-1)


def unpacked(stored: NDArray[np.uint8], exponents: NDArray[np.int8], bits: int) -> NDArray[np.float64]:
    """Rows of integers of so many bits, as packed in a checkpoint: low bytes first, then planes of one, two or four bits."""
    length = stored.shape[1] * 8 // bits
    integers, at, done = stored[:, :length].astype(np.int64), length, 8
    for width in {9: (1,), 10: (2,), 11: (2, 1), 12: (4,)}[bits]:
        plane = stored[:, at : (at := at + length * width // 8)].astype(np.int64)
        digits = [plane >> shift & (2**width - 1) for shift in range(0, 8, width)]
        integers += np.concatenate(digits, axis=1) << done
        done += width
    signed = np.where(integers >= 2 ** (bits - 1), integers - 2**bits, integers)
    return np.ldexp(signed.astype(np.float64), exponents.astype(np.int64)[:, None])


class Model:
    """A checkpoint as numbers: tensors by name, the units of activations, the stored functions, and what one quality makes of the rates."""

    def __init__(self, path: Path, quality_code: int) -> None:
        with safe_open(path, framework="np") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata()
        self.config: dict[str, Any] = json.loads(metadata["config"])
        if "packed" in metadata:
            packing = json.loads(metadata["packed"])
            for name, shape in packing["shapes"].items():
                stored, exponents = self.tensors[f"packed.{name}"], self.tensors[f"exponents.{name}"]
                self.tensors[name] = unpacked(stored, exponents, packing["bits"]).reshape(shape)
        self.quality_code = quality_code
        self.channels = int(self.config["latent_channels"])
        self.exponential = self.tensors["exact.tables.exponential"].astype(np.int64)
        self.sigmoid = self.tensors["exact.tables.sigmoid"].astype(np.int64)
        self.power = self.tensors["exact.tables.power"].astype(np.int64)
        latents = self.units("latents")
        self.linear = self.config["scale_domain"] == "linear"
        self.scale_units = self.units("scales") if self.linear else np.full_like(latents, SCALE_FRACTION)
        self.context_units = np.concatenate((self.scale_units, latents))

    def real(self, name: str) -> NDArray[np.float64]:
        return self.tensors[name].astype(np.float64)

    def has(self, name: str) -> bool:
        return name in self.tensors

    def units(self, name: str) -> Ints:
        return self.tensors[f"exact.fractions.{name}"].astype(np.int64)

    def layer(self, name: str, units_in: Ints, units_out: Ints, factor: NDArray[np.float64] | None = None) -> Layer:
        """A 1×1 convolution or linear layer, its rows multiplied by `factor` first."""
        rows = self.real(f"{name}.weight").reshape(len(units_out), -1)
        rows = rows if factor is None else rows * factor[:, None]
        return make_layer(rows, self.real(f"{name}.bias") if self.has(f"{name}.bias") else None, units_in, units_out)

    def at_quality(self, levels: Ints) -> Ints:
        """Integer values of the rate levels, L×C, at the quality: floor((a·(200 − r) + b·r + 100) / 200)."""
        last = len(levels) - 1
        level, rest = divmod(self.quality_code * last, 200)
        return (levels[level] * (200 - rest) + levels[min(level + 1, last)] * rest + 100) // 200

    def factor(self, name: str) -> Ints:
        """Factors of channels at the quality, in units of 2^-12."""
        return self.at_quality(np.rint(self.real(f"{name}.level_values") * 4096).astype(np.int64))

    def power_of_two(self, exponent: Ints) -> Ints:
        """2^(exponent / 2^16) in units of 2^-14."""
        whole, part = exponent >> 16, self.power[(exponent & 0xFFFF) >> 4]
        return np.where(whole >= 0, part << np.maximum(whole, 0), round_shift(part, np.clip(-whole, 0, 40)))

    def exponentials(self, distance: Ints) -> Ints:
        """e^(−distance / 256) in units of 2^-14; 0 past the table's end."""
        inside = distance < len(self.exponential)
        return np.where(inside, self.exponential[np.minimum(distance, len(self.exponential) - 1)], 0)

    def gains(self, name: str, channels: int) -> NDArray[np.float64]:
        """Natural logarithms of the rate control, L×C; a network of one rate has none, and its gains are 1."""
        return self.real(f"rate_control.{name}") if self.has(f"rate_control.{name}") else np.zeros((1, channels))

    def log2_gain(self, name: str, channels: int) -> Ints:
        """The same at the quality, as binary logarithms in units of 2^-16."""
        return self.at_quality(np.rint(self.gains(name, channels) * (1.4426950408889634 * 65536)).astype(np.int64))

    def table_index(self, scale: Ints, units: Ints, log_gain: Ints) -> Ints:
        """The rANS coder's table of a scale in units of 2^-units: of its logarithm (units 10) after a gain, or of itself."""
        if not self.linear:
            return np.clip(round_shift((scale + log_gain + 2171) * 642, 16), 0, 63)
        thresholds = self.tensors["exact.tables.thresholds"]  # in units of 2^-12
        return (np.asarray(scale << (12 - units))[..., None] >= thresholds).sum(axis=-1)


# ---- a tile: from its streams to its symbols and latents (sections 7.4 and 7.5)


@dataclass(frozen=True)
class DecodedTile:
    """symbols: of hyper, s1, s2, s3, in coding order; latents: h×w×M in units of 2^-(fraction + 6); fractions: M.

    check: over all symbols, as the file has it.
    """

    symbols: dict[str, list[int]]
    latents: Ints
    fractions: Ints
    check: int


class TileDecoder:
    """Reads one tile. Sizes are in latents."""

    def __init__(self, model: Model, streams: dict[str, bytes], height: int, width: int) -> None:
        self._model, self._height, self._width = model, height, width
        sizes = model.tensors["tables.sizes"].tolist()
        ends = np.cumsum(sizes).tolist()
        cumulative = model.tensors["tables.cumulative"]
        rows = [cumulative[end - size : end].tolist() for end, size in zip(ends, sizes, strict=True)]
        offsets = model.tensors["tables.offsets"].tolist()
        self._readers = {name: RansDecoder(stream, rows, offsets) for name, stream in streams.items()}
        self.symbols: dict[str, list[int]] = {name: [] for name in SCALES}
        # Quantisation steps → units of decoded latents, in units of 2^-14.
        fine = (model.units("latents") + FINE_BITS) << 16
        self._inverse_gain = model.power_of_two(fine - model.log2_gain("log_gain", model.channels))
        self._log_gain = model.at_quality(np.rint(model.gains("log_gain", model.channels) * 1024).astype(np.int64))

    def _read(self, scale: str, table: int) -> int:
        symbol = self._readers[scale].symbol(table)
        self.symbols[scale].append(symbol)
        return symbol

    def hyper_latents(self) -> Ints:
        """The hyper-latents as h_s takes them, h/4×w/4×N."""
        model = self._model
        units = 12 if model.linear else SCALE_FRACTION
        scales = np.rint(np.ldexp(model.real("hyper_scale.level_values"), units)).astype(np.int64)
        tables = model.table_index(model.at_quality(scales), np.array(units), np.array(0))
        mean = model.at_quality(np.rint(model.real("hyper_mean.level_values") * 256).astype(np.int64))
        unit = (model.units("h_s") - 8) << 16
        gain = model.power_of_two(unit - model.log2_gain("log_hyper_gain", len(mean)))
        symbols = np.empty((self._height // 4, self._width // 4, len(mean)), np.int64)
        for channel in range(len(mean)):
            for row in range(symbols.shape[0]):
                for column in range(symbols.shape[1]):
                    symbols[row, column, channel] = self._read("hyper", int(tables[channel]))
        return saturate(round_shift((symbols * 256 + mean) * gain, 14))

    def _code(self, scale: int, step: int, params: Ints, latents: Ints) -> None:
        """Read a step's latents into `latents` (in fine units)."""
        model, channels = self._model, self._model.channels
        tables = model.table_index(params[..., :channels], model.scale_units, self._log_gain)
        for channel, row, column in positions(scale, step, channels, *latents.shape[:2]):
            mean = params[row, column, channels + channel]
            symbol = self._read(SCALES[scale + 1], int(tables[row, column, channel]))
            decoded = (int(mean) << FINE_BITS) + round_shift(np.int64(symbol) * self._inverse_gain[channel], 14)
            latents[row, column, channel] = np.clip(decoded, -(2**30), 2**30)

    def latents(self) -> Ints:
        """All latents, h×w×M, in fine units."""
        from numpy_network import cell, context_net, hyper_synthesis, parameters

        model, channels = self._model, self._model.channels
        on_s3 = hyper_synthesis(model, self.hyper_latents())
        on_s2 = to_coarser(1, channels, on_s3)
        context = to_coarser(0, channels, on_s2)
        if model.config["hyper_gather"] == "published":
            on_s2 = published_gather(channels, on_s3, on_s2)
        latents = np.zeros((*context.shape[:2], channels), np.int64)
        for scale, hyper in enumerate((None, on_s2, on_s3)):
            if hyper is not None:
                context = context_net(model, scale - 1, to_finer(scale - 1, channels, context, hyper))
                latents = to_finer(scale - 1, channels, latents, np.zeros((*context.shape[:2], channels), np.int64))
            else:
                self._code(0, 0, context, latents)  # its parameters come from the hyperprior
            steps = (1, 3, 6)[scale]
            for step in range(steps):
                seen = saturate(round_shift(latents, FINE_BITS))
                params = parameters(model, scale, step, context, seen)
                self._code(scale, step + 1 if scale == 0 else step, params, latents)
                if (scale, step) != (2, steps - 1):
                    context = cell(model, scale, params, context)
        return latents


def decode_symbols(data: bytes, checkpoint: Path) -> list[DecodedTile]:
    """Decode all tiles of a file of the exact profile; raises ValueError when a tile's symbol check does not agree."""
    stream = parse_stream(data)
    model = Model(checkpoint, stream.header.quality_code)
    tiles = []
    for place, tile in zip(stream.header.grid, stream.tiles, strict=True):
        payloads = {name: payload for name, payload in zip(SCALES, tile.payloads, strict=True) if payload is not None}
        decoder = TileDecoder(model, payloads, place.latents.height, place.latents.width)
        latents = decoder.latents()
        check = SYMBOL_CHECK_START
        for name in SCALES:
            check = update_symbol_check(check, np.array(decoder.symbols[name], np.int32))
        if check != tile.symbol_check:
            raise ValueError(f"tile {place.index}: the symbols' check is {check}, the file says {tile.symbol_check}")
        tiles.append(DecodedTile(decoder.symbols, latents, model.units("latents"), check))
    return tiles
