"""Residual blocks of integer layers, depthwise and partial, with and without factors. Planes are int16 h×w×C."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hpcm_codec.engines.exact.layers import LayerMaker, Longs, interpolated, window_rows
from hpcm_codec.ops import integer
from hpcm_codec.ops.integer import FACTOR_SHIFT, LIMIT, WIDE, Array, Linear

NARROW_BITS = 2  # between WIDE and LIMIT


class Narrow:
    """A plane within ±WIDE as one within ±LIMIT, in units four times as large: sums of many inputs then leave two bits more to weights."""

    def __init__(self, channels: int) -> None:
        self._factor: Array = np.full(channels, 1 << (FACTOR_SHIFT - NARROW_BITS), np.int16)

    def __call__(self, x: Array) -> Array:
        return integer.scale(x, self._factor)


class Depthwise:
    """A depthwise 3×3 convolution. units: of its results; wide: the stream stays within WIDE."""

    def __init__(self, make: LayerMaker, stream: Longs, name: str, *, wide: bool) -> None:
        self.units = make.fraction(name)
        kernel, bias = make.real(f"{name}.weight"), make.bias(name)
        self.weights = make.depthwise(kernel, bias, stream, self.units, name, bound=WIDE if wide else LIMIT)

    def __call__(self, x: Array) -> tuple[Array, ...]:
        return (integer.depthwise(x, self.weights),)


class PartialConvolution:
    """PartialConv: a dense 3×3 convolution over the first channels, in units of its own; the others stay in those of the stream.

    wide: the stream stays within WIDE, and all of it is narrowed first. units: of both parts, which are returned as two planes whose
    channels lie side by side.
    """

    def __init__(self, make: LayerMaker, stream: Longs, name: str, *, wide: bool) -> None:
        weight, bias = make.weights.real(f"{name}.conv.weight"), make.bias(f"{name}.conv")
        self._narrow = Narrow(len(stream)) if wide else None
        units = stream - NARROW_BITS if wide else stream
        self.active, found = weight.shape[0], make.fraction(name)
        around = np.tile(units[: self.active], weight.shape[2] * weight.shape[3])
        self.weights: Linear = make.matrix(window_rows(weight), bias, around, found, name)
        self.units = np.concatenate((found, units[self.active :]))

    def __call__(self, x: Array) -> tuple[Array, ...]:
        x = x if self._narrow is None else self._narrow(x)
        around = integer.padded(x[..., : self.active], 1)
        return integer.windows(around, self.weights, 3, 1), x[..., self.active :]


class Block:
    """ResidualBlock: x + factor · project(LeakyReLU(expand(spatial(x)))) on a stream of one set of units; without a factor, it is 1.

    wide: the stream stays within WIDE instead of LIMIT, what is inside the block within LIMIT. With factors, the branch is then in units
    of its own, in which they lie between ½ and 1 at the highest: no branch saturates before the stream does, and small factors keep
    their digits.
    """

    def __init__(self, make: LayerMaker, stream: Longs, name: str, *, wide: bool = False) -> None:
        spatial, hidden = f"{name}.spatial", make.fraction(f"{name}.expand")
        partial = f"{spatial}.conv.weight" in make.weights
        self.spatial = (PartialConvolution if partial else Depthwise)(make, stream, spatial, wide=wide)
        self.expand = make.linear(f"{name}.expand", self.spatial.units, hidden)
        scaled = f"{name}.factor.level_values" in make.weights
        change = make.headroom(f"{name}.factor") if wide and scaled else np.zeros_like(stream)
        self.project = make.linear(f"{name}.project", hidden, stream - change, limit=WIDE if wide else LIMIT)
        self.factor: Array | None = make.factor(f"{name}.factor", change) if scaled else None

    def __call__(self, x: Array, position: Array) -> Array:
        factor = None if self.factor is None else integer.narrow(interpolated(self.factor, position))
        return integer.branch(*self.spatial(x), expand=self.expand, project=self.project, factor=factor, added=x)


class Blocks:
    """Blocks one after the other, on one stream."""

    def __init__(self, make: LayerMaker, stream: Longs, names: Iterable[str], *, wide: bool = False) -> None:
        self._blocks = [Block(make, stream, name, wide=wide) for name in names]

    def __getitem__(self, number: int) -> Block:
        return self._blocks[number]

    def __call__(self, x: Array, position: Array) -> Array:
        for block in self._blocks:
            x = block(x, position)
        return x


assert (WIDE + 1) >> NARROW_BITS == LIMIT + 1
