"""Analysis and synthesis, main and hyper, made of integer layers. Planes are int16 h×w×C.

The residual streams of all but the hyper synthesis stay within WIDE instead of LIMIT: their rounding is what shows in pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.engines.exact.layers import LayerMaker, Longs
from hpcm_codec.engines.exact.modules import Block, Blocks
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


def _window_rows(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """A convolution's weight N×C×k×k as rows N×(k·k·C)."""
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(weight.shape[0], -1)


class Halve:
    """down2: a 2×2 convolution of stride 2."""

    def __init__(
        self, make: LayerMaker, name: str, fraction_in: Longs, fraction_out: Longs, bound: int, limit: int
    ) -> None:
        rows, bias = _window_rows(make.weights.real(f"{name}.weight")), make.real(f"{name}.bias")
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

    def __init__(self, make: LayerMaker, context: Longs) -> None:
        inner = make.fraction("h_s.inner")
        self.first = Double(make, "h_s.0", make.fraction("h_s"), inner)
        self.blocks = Blocks(make, inner, ("h_s.1", "h_s.2"))
        self.second = Double(make, "h_s.3", inner, context)
        self.last = Block(make, context, "h_s.4")

    def __call__(self, x: Array, position: Array) -> Array:
        x = self.blocks(self.first(x), position)
        return self.last(self.second(x), position)


class Analysis:
    """g_a: pixels → latents, in the units of the fractions `g_a`."""

    def __init__(self, make: LayerMaker, config: ModelConfig) -> None:
        inner, self.fraction = make.fraction("g_a.inner"), make.fraction("g_a")
        weight = make.weights.real("g_a.0.weight")
        # Pixels enter less one half.
        bias = make.real("g_a.0.bias") + 0.5 * weight.astype(np.float64).sum(axis=(1, 2, 3))
        rows = _window_rows(weight)
        pixels = np.full(rows.shape[1], PIXEL_FRACTION, np.int64)
        self._kernel, self.table = config.patch_kernel, pixel_table()
        self.patches: Linear = make.matrix(rows, bias, pixels, inner, "g_a.0", limit=WIDE)
        self.blocks = Blocks(make, inner, (f"g_a.{i + 1}" for i in range(config.patch_blocks)), wide=True)
        number = config.patch_blocks + 1
        self.halve = Halve(make, f"g_a.{number}", inner, self.fraction, WIDE, WIDE)
        self.last = Block(make, self.fraction, f"g_a.{number + 1}", wide=True)

    def __call__(self, pixels: NDArray[np.uint8], position: Array) -> Array:
        """pixels: uint8 16h×16w×3 or ×1. Returns int16 h×w×M."""
        area = 0, 0, pixels.shape[0], pixels.shape[1]
        around = integer.pixels_in(pixels, area, (self._kernel - PATCH) // 2, self.table)
        x = integer.windows(around, self.patches, self._kernel, PATCH)
        x = self.blocks(x, position)
        return self.last(self.halve(x), position)


class HyperAnalysis:
    """h_a: latents in the units of `g_a` → hyper-latents in those of `h_a`."""

    def __init__(self, make: LayerMaker, latents: Longs) -> None:
        inner, self.fraction = make.fraction("h_a.inner"), make.fraction("h_a")
        self.first = Halve(make, "h_a.0", latents, inner, WIDE, WIDE)
        self.blocks = Blocks(make, inner, ("h_a.1", "h_a.2"), wide=True)
        self.last = Halve(make, "h_a.3", inner, self.fraction, WIDE, WIDE)

    def __call__(self, x: Array, position: Array) -> Array:
        x = self.blocks(self.first(x), position)
        return self.last(x)


class Synthesis:
    """g_s: latents → pixels."""

    def __init__(self, make: LayerMaker, config: ModelConfig) -> None:
        self.fraction, inner = make.fraction("g_s"), make.fraction("g_s.inner")
        self.first = Block(make, self.fraction, "g_s.0", wide=True)
        self.double = Double(make, "g_s.1", self.fraction, inner, WIDE, WIDE)
        self.blocks = Blocks(make, inner, (f"g_s.{i + 2}" for i in range(config.patch_blocks)), wide=True)
        name = f"g_s.{config.patch_blocks + 2}"
        self._across = config.patch_kernel // PATCH  # patches along an edge that draw a block of 8×8 pixels
        overlap = (config.patch_kernel - PATCH) // 2
        self._beyond = -(-overlap // PATCH)  # rings of patches outside the image that reach into it
        self._margin = overlap + PATCH * self._beyond - PATCH * (self._across - 1)
        weight = make.weights.real(f"{name}.weight")  # in×3×k×k
        cut = weight.reshape(weight.shape[0], 3, self._across, PATCH, self._across, PATCH)
        # The patch that comes first draws with the last part of its kernel.
        turned = cut[:, :, ::-1, :, ::-1].transpose(3, 5, 1, 2, 4, 0)  # 8×8×3×n×n×in
        rows = np.ascontiguousarray(turned).reshape(3 * PATCH**2, -1)
        levels = np.full(len(rows), DRAWN_SHIFT, np.int64)
        inputs = np.tile(inner, self._across**2)
        bias = 255 * np.tile(make.real(f"{name}.bias"), PATCH**2)
        self.draw: Linear = make.matrix(np.float32(255) * rows, bias, inputs, levels, name, bound=WIDE)

    def __call__(self, x: Array, position: Array, area: tuple[int, int, int, int], grey: bool) -> Any:
        """x: int16 h×w×M, in the units of `g_s`; area: top, left, height, width of the pixels that are wanted. Returns uint8 numpy."""
        x = self.blocks(self.double(self.first(x, position)), position)
        blocks = integer.windows(integer.bordered(x, self._beyond), self.draw, self._across, 1)
        top, left, height, width = area
        return integer.drawn_pixels(
            blocks, PATCH, (top + self._margin, left + self._margin, height, width), DRAWN_SHIFT, grey
        )


def refuse_coarse(latents: Longs, synthesis: Longs, fine_bits: int) -> None:
    """Raise UnsupportedError where decoded latents would have to be multiplied with more than 64 bits bear."""
    if (synthesis - latents - fine_bits > 0).any():
        raise UnsupportedError("the units of g_s are finer than the latents'", advice="export it again with --exact")
