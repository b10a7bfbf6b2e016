"""Residual blocks of integer layers, depthwise and partial, with and without factors. Planes are int16 h×w×C."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hpcm_codec.engines.exact.layers import LayerMaker, Longs, interpolated, window_rows
from hpcm_codec.ops import integer
from hpcm_codec.ops.integer import LIMIT, WIDE, Array, Linear


class Depthwise:
    """A depthwise 3×3 convolution. units: of its results, which stay within `bound`."""

    bound = LIMIT

    def __init__(self, make: LayerMaker, stream: Longs, name: str, bound: int) -> None:
        self.units = make.fraction(name)
        kernel, bias = make.real(f"{name}.weight"), make.bias(name)
        self.weights = make.depthwise(kernel, bias, stream, self.units, name, bound=bound)

    def __call__(self, x: Array) -> tuple[Array, ...]:
        return (integer.depthwise(x, self.weights),)


class PartialConvolution:
    """PartialConv: a dense 3×3 convolution over the first channels, in units of its own; the others stay in those of the stream.

    units, bound: of both together, which are returned as two planes whose channels lie side by side.
    """

    def __init__(self, make: LayerMaker, stream: Longs, name: str, bound: int) -> None:
        weight, bias = make.weights.real(f"{name}.conv.weight"), make.bias(f"{name}.conv")
        self.active, self.bound = weight.shape[0], bound
        found, around = make.fraction(name), np.tile(stream[: self.active], weight.shape[2] * weight.shape[3])
        self.weights: Linear = make.matrix(window_rows(weight), bias, around, found, name, bound=bound)
        self.units = np.concatenate((found, stream[self.active :]))

    def __call__(self, x: Array) -> tuple[Array, ...]:
        around = integer.padded(x[..., : self.active], 1)
        return integer.windows(around, self.weights, 3, 1), x[..., self.active :]


class Block:
    """ResidualBlock: x + factor · project(LeakyReLU(expand(spatial(x)))) on a stream of one set of units; without a factor, it is 1.

    wide: the stream stays within WIDE instead of LIMIT, what is inside the block within LIMIT. With factors, the branch is then in units
    of its own, in which they lie between ½ and 1 at the highest: no branch saturates before the stream does, and small factors keep
    their digits.
    """

    def __init__(self, make: LayerMaker, stream: Longs, name: str, *, wide: bool = False) -> None:
        bound = WIDE if wide else LIMIT
        spatial, hidden = f"{name}.spatial", make.fraction(f"{name}.expand")
        partial = f"{spatial}.conv.weight" in make.weights
        self.spatial = (PartialConvolution if partial else Depthwise)(make, stream, spatial, bound)
        self.expand = make.linear(f"{name}.expand", self.spatial.units, hidden, bound=self.spatial.bound)
        scaled = f"{name}.factor.level_values" in make.weights
        change = make.headroom(f"{name}.factor") if wide and scaled else np.zeros_like(stream)
        self.project = make.linear(f"{name}.project", hidden, stream - change, limit=bound)
        self.factor: Array | None = make.factor(f"{name}.factor", change) if scaled else None

    def __call__(self, x: Array, position: Array) -> Array:
        hidden = integer.linear(*self.spatial(x), weights=self.expand, leaky=True)
        factor = None if self.factor is None else integer.narrow(interpolated(self.factor, position))
        return integer.linear(hidden, weights=self.project, factor=factor, added=x)


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
