"""Analysis and synthesis, main and hyper, made of integer layers, for both kinds of transform. Planes are int16 h×w×C.

The residual streams of all but the hyper synthesis stay within WIDE instead of LIMIT: their rounding is what shows in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.engines.exact.blocks import NARROW_BITS, Block, Blocks, Narrow
from hpcm_codec.engines.exact.layers import LayerMaker, Longs, window_rows
from hpcm_codec.engines.exact.streams import hyper_synthesis_blocks, layers_of
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model.config import PATCH, ModelConfig
from hpcm_codec.ops import integer
from hpcm_codec.ops.integer import LIMIT, WIDE, Array, Linear

PIXEL_FRACTION = 14  # pixels less one half, in units of 2^-14
DRAWN_SHIFT = 5  # drawn samples are in units of 1/32 of a level
GAIN_SHIFT = 30  # of what decoded latents are multiplied with before the synthesis


def pixel_table() -> NDArray[np.int16]:
    """What the 256 levels enter the analysis as: (p/255 − 1/2) in units of 2^-14, rounded, within ±LIMIT."""
    level = np.arange(256, dtype=np.int64)
    doubled = ((2 * level - 255) << PIXEL_FRACTION) + 255  # over 510, and a half of it to round
    return np.clip(doubled // 510, -LIMIT, LIMIT).astype(np.int16)


class Halve:
    """down2: a 2×2 convolution of stride 2."""

    def __init__(
        self, make: LayerMaker, name: str, fraction_in: Longs, fraction_out: Longs, bound: int, limit: int
    ) -> None:
        rows, bias = window_rows(make.weights.real(f"{name}.weight")), make.real(f"{name}.bias")
        self.weights: Linear = make.matrix(
            rows, bias, np.tile(fraction_in, 4), fraction_out, name, bound=bound, limit=limit
        )

    def __call__(self, x: Array) -> Array:
        return integer.windows(x, self.weights, 2, 2)


class Double:
    """up2: a 2×2 transposed convolution of stride 2 is one matrix product and a shuffle of pixels."""

    def __init__(
        self,
        make: LayerMaker,
        name: str,
        fraction_in: Longs,
        fraction_out: Longs,
        bound: int = LIMIT,
        limit: int = LIMIT,
    ) -> None:
        weight = make.weights.real(f"{name}.weight")
        rows = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(-1, weight.shape[0])  # (2·2·out)×in
        bias, units = np.tile(make.real(f"{name}.bias"), 4), np.tile(fraction_out, 4)
        self.weights: Linear = make.matrix(rows, bias, fraction_in, units, name, bound=bound, limit=limit)

    def __call__(self, x: Array) -> Array:
        return integer.doubled(x, self.weights)


class HyperSynthesis:
    """h_s: hyper-latents → context parameters."""

    def __init__(self, make: LayerMaker, config: ModelConfig, context: Longs) -> None:
        inner, blocks = make.fraction("h_s.inner"), hyper_synthesis_blocks(config)
        self.first = Double(make, "h_s.0", make.fraction("h_s"), inner)
        self.blocks = Blocks(make, inner, (f"h_s.{i + 1}" for i in range(blocks)))
        self.second = Double(make, f"h_s.{blocks + 1}", inner, context)
        self.last = Block(make, context, f"h_s.{blocks + 2}")

    def __call__(self, x: Array, position: Array) -> Array:
        x = self.blocks(self.first(x), position)
        return self.last(self.second(x), position)


class Layers:
    """Layers of a transform one after the other: residual blocks, and what changes the resolution between two streams.

    named: the layers with their streams, as `streams.layers_of` gives them; entry: the units of what enters; change: the kind of layer
    that changes the resolution; narrows: its inputs are narrowed first.
    """

    def __init__(
        self,
        make: LayerMaker,
        named: Iterable[tuple[str, str]],
        entry: Longs,
        change: type[Halve] | type[Double],
        *,
        narrows: bool,
    ) -> None:
        self._layers: list[Block | Halve | Double | Narrow] = []
        for name, stream in named:
            units = make.fraction(stream)
            if f"{name}.expand.weight" in make.weights:
                self._layers.append(Block(make, units, name, wide=True))
            elif narrows:
                self._layers += [Narrow(len(entry)), change(make, name, entry - NARROW_BITS, units, LIMIT, WIDE)]
            else:
                self._layers.append(change(make, name, entry, units, WIDE, WIDE))
            entry = units
        self.fraction = entry  # of what leaves

    def __call__(self, x: Array, position: Array) -> Array:
        for layer in self._layers:
            x = layer(x, position) if isinstance(layer, Block) else layer(x)
        return x


class Analysis:
    """g_a: pixels → latents, in the units of the fractions `g_a`."""

    def __init__(self, make: LayerMaker, config: ModelConfig) -> None:
        (first, stream), *rest = layers_of(config, "g_a")
        weight = make.weights.real(f"{first}.weight")
        # Pixels enter less one half.
        bias = make.real(f"{first}.bias") + 0.5 * weight.astype(np.float64).sum(axis=(1, 2, 3))
        rows, inner = window_rows(weight), make.fraction(stream)
        pixels = np.full(rows.shape[1], PIXEL_FRACTION, np.int64)
        self._kernel, self._step, self.table = weight.shape[-1], _block_edge(config), pixel_table()
        self._black = int(self.table[0]) if _is_staircase(config) else None
        self.first: Linear = make.matrix(rows, bias, pixels, inner, first, limit=WIDE)
        self.layers = Layers(make, rest, inner, Halve, narrows=_is_staircase(config))
        self.fraction = self.layers.fraction

    def __call__(self, pixels: NDArray[np.uint8], position: Array) -> Array:
        """pixels: uint8 16h×16w×3 or ×1. Returns int16 h×w×M."""
        area, margin = (0, 0, pixels.shape[0], pixels.shape[1]), (self._kernel - self._step) // 2
        if self._black is None:
            around = integer.pixels_in(pixels, area, margin, self.table)
        else:
            around = integer.padded(integer.pixels_in(pixels, area, 0, self.table), margin, self._black)
        return self.layers(integer.windows(around, self.first, self._kernel, self._step), position)


class HyperAnalysis:
    """h_a: latents in the units of `g_a` → hyper-latents in those of `h_a`."""

    def __init__(self, make: LayerMaker, config: ModelConfig) -> None:
        named, entry = layers_of(config, "h_a"), make.fraction("g_a")
        self.layers = Layers(make, named, entry, Halve, narrows=_is_staircase(config))
        self.fraction = self.layers.fraction

    def __call__(self, x: Array, position: Array) -> Array:
        return self.layers(x, position)


class Synthesis:
    """g_s: latents → pixels."""

    def __init__(self, make: LayerMaker, config: ModelConfig) -> None:
        self.fraction, named = make.fraction("g_s"), layers_of(config, "g_s")
        staircase = _is_staircase(config)
        self.layers = Layers(make, named, self.fraction, Double, narrows=staircase)
        inner = self.layers.fraction
        self._narrow = Narrow(len(inner)) if staircase else None
        name, self._edge = f"g_s.{len(named)}", _block_edge(config)
        weight = make.weights.real(f"{name}.weight")  # in×3×k×k
        kernel, edge = weight.shape[-1], self._edge
        self._across = kernel // edge  # inputs along an edge that draw a block of edge×edge pixels
        overlap = (kernel - edge) // 2
        self._beyond = -(-overlap // edge)  # rings of inputs outside the plane that reach into the image
        self._margin = overlap + edge * self._beyond - edge * (self._across - 1)
        cut = weight.reshape(weight.shape[0], 3, self._across, edge, self._across, edge)
        # The input that comes first draws with the last part of its kernel.
        turned = cut[:, :, ::-1, :, ::-1].transpose(3, 5, 1, 2, 4, 0)  # edge×edge×3×n×n×in
        rows = np.ascontiguousarray(turned).reshape(3 * edge**2, -1)
        levels = np.full(len(rows), DRAWN_SHIFT, np.int64)
        units, bound = (inner - NARROW_BITS, LIMIT) if staircase else (inner, WIDE)
        bias = 255 * np.tile(make.real(f"{name}.bias"), edge**2)
        inputs = np.tile(units, self._across**2)
        self.draw: Linear = make.matrix(np.float32(255) * rows, bias, inputs, levels, name, bound=bound)

    def __call__(self, x: Array, position: Array, area: tuple[int, int, int, int], grey: bool) -> Any:
        """x: int16 h×w×M, in the units of `g_s`; area: top, left, height, width of the pixels that are wanted. Returns uint8 numpy."""
        x = self.layers(x, position)
        rings = self._beyond
        around = integer.bordered(x, rings) if self._narrow is None else integer.padded(self._narrow(x), rings)
        blocks = integer.windows(around, self.draw, self._across, 1)
        top, left, height, width = area
        moved = (top + self._margin, left + self._margin, height, width)
        return integer.drawn_pixels(blocks, self._edge, moved, DRAWN_SHIFT, grey)


def _is_staircase(config: ModelConfig) -> bool:
    """Whether the resolution is halved four times by convolutions of hundreds of channels. Zeros are then around all planes, pixels too."""
    return config.transform == "staircase"


def _block_edge(config: ModelConfig) -> int:
    """Pixels along an edge of the blocks in which the transforms take and draw them: the stride of their outermost layers."""
    return 2 if _is_staircase(config) else PATCH


def refuse_coarse(latents: Longs, synthesis: Longs, fine_bits: int) -> None:
    """Raise UnsupportedError where decoded latents would have to be multiplied with more than 64 bits bear."""
    if (synthesis - latents - fine_bits > 0).any():
        raise UnsupportedError("the units of g_s are finer than the latents'", advice="export it again with --exact")
