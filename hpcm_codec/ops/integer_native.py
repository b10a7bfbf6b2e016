"""The integer operators in C++ (csrc/integer_cpu.cpp), for numpy arrays; the same numbers as `integer_reference`.

Shapes and dtypes are checked here, since C++ gets raw pointers and cannot check them: ValueError and TypeError name what
does not fit. Strided arrays are copied, but for some channels of a plane that enter a matrix product. `build` compiles and
loads the library; `integer_weights` makes the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.ops.integer_calls import Plane, call, checked
from hpcm_codec.ops.integer_layers import (
    BLOCKS,
    EXP_SHIFT,
    GATE_REACH,
    LIMIT,
    AttentionScale,
    DepthwiseWeights,
    Linear,
    LinearScales,
    NormWeights,
    PositionFactors,
    Scales,
    round_shift,
)
from hpcm_codec.ops.integer_weights import PACKED, packed_linear

KERNELS = (3, 5)  # sizes of a depthwise convolution
KEYS, HEAD = 64, 32  # of a window, and channels of a head, for which int32 holds every sum
FUSED_PLACES = 2048  # of a plane: of smaller ones, threads share out the outputs too
SEGMENTS = 16  # runs of inputs that it takes at most


def _with_runs(name: str, plane: Plane, shape: tuple[int, int, int]) -> Plane:
    """`checked`, but some of a plane's channels need not be copied: the channels of a place lie side by side."""
    if plane.shape == shape and plane.dtype == np.int16 and plane.strides[2] == plane.itemsize and plane.flags.aligned:
        return plane
    return checked(name, plane, shape)


def _product(
    segments: Sequence[tuple[int, int, int, int]],
    weights: Linear,
    size: tuple[int, int],
    *,
    parts: int = 1,
    leaky: bool = False,
    factor: Plane | None = None,
    added: Plane | None = None,
    cell: int = 0,
) -> Plane:
    """segments: address, inputs, row and column strides each, as csrc/integer_linear.h takes them."""
    layer = packed_linear(weights)
    if sum(inputs for _, inputs, _, _ in segments) != layer.inputs + layer.inputs % 2 or len(segments) > SEGMENTS:
        raise ValueError(f"the inputs are not the {layer.inputs} of the weights")
    outputs, (height, width) = layer.outputs, size
    if parts == 2 and outputs % (2 * PACKED):
        raise ValueError(f"cannot double to {outputs} outputs")
    y = np.empty((height * parts, width * parts, outputs // parts**2), np.int16)
    if factor is not None:
        factor = checked("factor", factor, (outputs,))
    if added is not None:
        added = checked("added", added, (cell or height, cell or width, outputs))
    runs = np.array(segments, np.int64)
    form = layer.packed, layer.offset, layer.shift
    if y.size:
        call(
            *("integer_linear", runs, len(segments), *form, factor, added, cell, y),
            *(height, width, outputs, parts, int(leaky), layer.limit),
        )
    return y


def _side_by_side(inputs: Sequence[Plane]) -> tuple[list[Plane], list[tuple[int, int, int, int]]]:
    """Planes whose channels lie side by side as `_product` takes them: segments, and the planes that they point into."""
    if len(inputs) > 1 and any(x.shape[2] % 2 for x in inputs):
        inputs = (np.concatenate(inputs, axis=2),)
    height, width, _ = inputs[0].shape
    planes: list[Plane] = []
    for x in inputs:
        plane = _with_runs("x", x, (height, width, x.shape[2]))
        planes.append(np.pad(plane, ((0, 0), (0, 0), (0, 1))) if plane.shape[2] % 2 else plane)
    strides = [[stride // plane.itemsize for stride in plane.strides] for plane in planes]
    return planes, [
        (p.ctypes.data, p.shape[2], row, column) for p, (row, column, _) in zip(planes, strides, strict=True)
    ]


def linear(
    inputs: Sequence[Plane],
    weights: Linear,
    *,
    leaky: bool = False,
    factor: Plane | None = None,
    added: Plane | None = None,
    repeated: bool = False,
) -> Plane:
    if inputs[0].ndim == 2:
        tokens = None if added is None else added[None]
        planes = [x[None] for x in inputs]
        return linear(planes, weights, leaky=leaky, factor=factor, added=tokens)[0]
    planes, segments = _side_by_side(inputs)
    height, width, _ = planes[0].shape
    cell = added.shape[0] if repeated and added is not None else 0
    return _product(segments, weights, (height, width), leaky=leaky, factor=factor, added=added, cell=cell)


def branch(inputs: Sequence[Plane], expand: Linear, project: Linear, *, factor: Plane | None, added: Plane) -> Plane:
    height, width, outputs = added.shape
    if height * width < FUSED_PLACES or expand.outputs % 2:
        return linear((linear(inputs, expand, leaky=True),), project, factor=factor, added=added)
    planes, segments = _side_by_side([_in_a_row(x) for x in inputs])
    first, second = packed_linear(expand), packed_linear(project)
    if any(plane.shape[:2] != (height, width) for plane in planes) or second.inputs != first.outputs:
        raise ValueError(f"the planes and layers of a branch do not fit {added.shape}")
    if sum(plane.shape[2] for plane in planes) != first.inputs + first.inputs % 2 or second.outputs != outputs:
        raise ValueError(f"the inputs are not the {first.inputs} of the weights, or the outputs not {outputs}")
    if factor is not None:
        factor = checked("factor", factor, (outputs,))
    added, y = checked("added", added, added.shape), np.empty(added.shape, np.int16)
    runs = np.array(segments, np.int64)
    expanding = first.packed, first.offset, first.shift, first.outputs, first.limit
    projecting = second.packed, second.offset, second.shift, factor, added, y
    call("integer_branch", runs, len(runs), *expanding, *projecting, height * width, outputs, second.limit)
    return y


def _in_a_row(plane: Plane) -> Plane:
    """The plane, copied unless its places follow each other at one distance."""
    return plane if plane.strides[0] == plane.shape[1] * plane.strides[1] else np.ascontiguousarray(plane)


def together(x: Plane, layers: Sequence[Linear]) -> tuple[Plane, ...]:
    return tuple(linear((x,), weights) for weights in layers)


def windows(x: Plane, weights: Linear, size: int, step: int) -> Plane:
    height, width, channels = x.shape
    if size > SEGMENTS:
        raise ValueError(f"cannot do windows of {size}×{size}×{channels}")
    plane = checked("x", x, x.shape)
    rows, columns = (height - size) // step + 1, (width - size) // step + 1
    if size * channels % 2:  # a run of neighbours is not made of pairs
        starts = [(i, j) for i in range(size) for j in range(size)]
        around = [x[i : i + step * rows : step, j : j + step * columns : step] for i, j in starts]
        return linear((np.concatenate([part[:rows, :columns] for part in around], axis=2),), weights)
    segments = [
        (plane.ctypes.data + 2 * row * width * channels, size * channels, step * width * channels, step * channels)
        for row in range(size)
    ]
    return _product(segments, weights, (rows, columns))


def doubled(x: Plane, weights: Linear) -> Plane:
    height, width, channels = x.shape
    plane = checked("x", x, x.shape)
    if weights.outputs % (2 * PACKED) or channels % 2:
        quads = linear((plane,), weights).reshape(height, width, 2, 2, -1)
        return quads.transpose(0, 2, 1, 3, 4).reshape(2 * height, 2 * width, -1)
    return _product([(plane.ctypes.data, channels, width * channels, channels)], weights, (height, width), parts=2)


def depthwise(x: Plane, weights: DepthwiseWeights) -> Plane:
    height, width, channels = x.shape
    size = weights.kernel.shape[0]
    if size not in KERNELS:
        raise ValueError(f"cannot do depthwise kernels of {size}×{size}")
    x = checked("x", x, x.shape)
    kernel = checked("kernel", weights.kernel, (size, size, channels))
    bias = checked("bias", weights.bias, (channels,), np.int32)
    shift = checked("shift", weights.shift, (channels,), np.int32)
    y = np.empty_like(x)
    call("integer_depthwise", x, kernel, bias, shift, y, height, width, channels, size, weights.limit)
    return y


def scale(x: Plane, factor: Plane) -> Plane:
    channels = x.shape[-1]
    x = checked("x", x, x.shape)
    y = np.empty_like(x)
    call("integer_scale", x, checked("factor", factor, (channels,)), y, x.size // channels, channels)
    return y


def add(x: Plane, other: Plane) -> Plane:
    total = checked("x", x, x.shape).astype(np.int32) + checked("other", other, x.shape)
    return total.clip(-LIMIT, LIMIT).astype(np.int16)


def rescale(x: NDArray[np.int32], factor: NDArray[np.int64] | None, shift: int, limit: int) -> Plane:
    channels = x.shape[-1]
    x = checked("x", x, x.shape, np.int32)
    if factor is not None:
        factor = checked("factor", factor, (channels,), np.int64)
    y = np.empty(x.shape, np.int16)
    call("integer_rescale", x, factor, y, x.size // channels, channels, shift, limit)
    return y


def layer_norm(x: Plane, weights: NormWeights) -> Plane:
    channels = x.shape[-1]
    x = checked("x", x, x.shape)
    gamma = checked("gamma", weights.gamma, (channels,), np.int32)
    beta = checked("beta", weights.beta, (channels,), np.int32)
    y = np.empty_like(x)
    tokens = x.size // channels
    call("integer_layer_norm", x, gamma, beta, y, tokens, channels, weights.shift, weights.epsilon)
    return y


def gate(control: Plane, x: Plane, table: NDArray[np.int16], added: Plane | None = None) -> Plane:
    x = checked("x", x, x.shape)
    control = checked("control", control, x.shape)
    if added is not None:
        added = checked("added", added, x.shape)
    y = np.empty_like(x)
    call("integer_gate", control, x, checked("table", table, (2 * GATE_REACH,)), added, y, x.size)
    return y


def squared_relu(x: Plane, shift: int) -> Plane:
    x = checked("x", x, x.shape)
    y = np.empty_like(x)
    call("integer_squared_relu", x, y, x.size, shift)
    return y


def can_attend(channels: int, heads: int, window: int) -> bool:
    """Whether int32 holds the products and sums of attention with windows of window×window places and such heads."""
    return window**2 <= KEYS and channels % heads == 0 and channels // heads <= HEAD


def window_attention(
    query: Plane, key: Plane, value: Plane, heads: int, window: int, scores: AttentionScale, table: NDArray[np.int16]
) -> Plane:
    height, width, channels = query.shape
    edges = min(window, height), min(window, width)
    if channels % heads or edges[0] * edges[1] > KEYS or channels // heads > HEAD:
        raise ValueError(f"cannot do windows of {window} and {heads} heads of {channels} channels")
    q, k, v = (checked(name, x, query.shape) for name, x in (("query", query), ("key", key), ("value", value)))
    table = checked("table", table, table.shape)
    y = np.empty_like(q)
    factors = scores.multiplier, scores.shift
    sizes = height, width, channels, heads, *edges, *factors, table.size
    call("integer_window_attention", q, k, v, table, y, *sizes)
    return y


def bi_wkv(key: Plane, value: Plane, factors: PositionFactors, table: NDArray[np.int16]) -> Plane:
    height, width, channels = key.shape
    length = factors.growth.shape[0]
    if height * width > BLOCKS * length:
        raise ValueError(f"{height * width} tokens, but position factors for at most {BLOCKS * length}")
    key, value = checked("key", key, key.shape), checked("value", value, key.shape)
    growth = checked("growth", factors.growth, (length, channels), np.int32)
    fading = checked("fading", factors.fading, (length + 1, channels), np.int32)
    itself = checked("itself", factors.itself, (channels,), np.int32)
    table = checked("table", table, table.shape)
    y = np.empty_like(key)
    sizes = height * width, channels, length, table.size
    call("integer_bi_wkv", key, value, growth, fading, itself, table, y, *sizes)
    return y


# ---- steps and pixels


def _pieces(step: Any) -> NDArray[np.int64]:
    return np.array([(p.first, p.last, p.row, p.column, p.stride) for p in step.pieces], np.int64)


def index_of(scale: NDArray[np.int64], scales: Scales) -> NDArray[np.int64]:
    if isinstance(scales, LinearScales):
        return np.searchsorted(scales.thresholds, scale << scales.shift, side="right")
    return round_shift((scale + scales.gain + scales.offset) * scales.multiplier, scales.shift).clip(0, scales.highest)


def step_parameters(
    step: Any, params: Plane, scales: Scales, unit: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], Plane, NDArray[np.float32]]:
    height, width, channels = params.shape[0], params.shape[1], params.shape[2] // 2
    count = step.count(height, width)
    levels, means, real = np.empty(count, np.uint8), np.empty(count, np.int16), np.empty(count, np.float32)
    params = checked("params", params, (height, width, 2 * channels))
    unit = checked("unit", unit, (channels,), np.float32)
    pieces = _pieces(step)
    outputs = levels, means, real
    rest = (unit, *outputs, height, width, channels)
    if isinstance(scales, LinearScales):
        shift = checked("shift", scales.shift, (channels,), np.int64)
        thresholds = checked("thresholds", scales.thresholds, scales.thresholds.shape, np.int32)
        call("step_parameters_linear", pieces, len(pieces), params, shift, *rest, thresholds, len(thresholds))
        return outputs
    gain = checked("gain", scales.gain, (channels,), np.int64)
    index = scales.offset, scales.multiplier, scales.shift, scales.highest
    call("step_parameters", pieces, len(pieces), params, gain, *rest, *index)
    return outputs


def decoded(
    step: Any,
    symbols: NDArray[np.int32],
    means: Plane,
    inverse_gain: NDArray[np.int64],
    latents: NDArray[np.int32],
    fine: int,
) -> NDArray[np.int32]:
    height, width, channels = latents.shape
    count = step.count(height, width)
    symbols = checked("symbols", symbols, (count,), np.int32)
    means = checked("means", means, (count,))
    inverse_gain = checked("inverse_gain", inverse_gain, (channels,), np.int64)
    if not latents.flags.c_contiguous or latents.dtype != np.int32:
        raise ValueError("latents: expected a contiguous plane of int32, which is changed")
    pieces = _pieces(step)
    sizes = height, width, channels, EXP_SHIFT, fine
    call("step_place", pieces, len(pieces), symbols, means, inverse_gain, latents, *sizes)
    return latents


def pixels_in(
    pixels: NDArray[np.uint8], area: tuple[int, int, int, int], margin: int, table: NDArray[np.int16]
) -> Plane:
    rows, columns, colours = pixels.shape
    top, left, height, width = area
    if colours not in (1, 3) or not (0 <= top < rows and 0 <= left < columns):
        raise ValueError(f"there is no area at {top}, {left} of {pixels.shape}")
    pixels = checked("pixels", pixels, pixels.shape, np.uint8)
    y = np.empty((height + 2 * margin, width + 2 * margin, 3), np.int16)
    call("pixels_in", pixels, rows, columns, colours, *area, margin, checked("table", table, (256,)), y)
    return y


def drawn_pixels(
    blocks: Plane, edge: int, area: tuple[int, int, int, int], shift: int, grey: bool
) -> NDArray[np.uint8]:
    rows, columns, samples = blocks.shape
    top, left, height, width = area
    inside = top >= 0 and top + height <= rows * edge and left >= 0 and left + width <= columns * edge
    if samples != 3 * edge * edge or not inside:
        raise ValueError(f"blocks of {blocks.shape} do not draw {area}")
    blocks = checked("blocks", blocks, blocks.shape)
    pixels = np.empty((height, width, 1 if grey else 3), np.uint8)
    call("pixels_out", blocks, columns, edge, *area, shift, int(grey), pixels)
    return pixels


# ---- what else torch calls by other names


def bordered(x: Plane, rings: int) -> Plane:
    rows, columns = (np.clip(np.arange(-rings, size + rings), 0, size - 1) for size in x.shape[:2])
    return np.ascontiguousarray(x[rows[:, None], columns[None, :]]) if rings else x


def padded(x: Plane, rings: int, value: int) -> Plane:
    height, width, channels = x.shape
    y = np.full((height + 2 * rings, width + 2 * rings, channels), value, np.int16)
    y[rings : rings + height, rings : rings + width] = x
    return y


def converted(x: NDArray[Any], dtype: str) -> NDArray[Any]:
    return x.astype(dtype)


def scaled(x: NDArray[Any], exponent: NDArray[np.int64]) -> NDArray[np.float32]:
    factor = np.ldexp(1.0, exponent).astype(np.float32)
    return x.astype(np.float32) * factor


def inverse(x: NDArray[Any], exponent: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.ldexp(1 / x.astype(np.float64), exponent).astype(np.float32)


def counted(count: int, like: NDArray[Any]) -> NDArray[np.int64]:
    return np.arange(count, dtype=np.int64)


def in_capture(x: NDArray[Any]) -> bool:
    return False


def stacked(planes: Sequence[Plane]) -> Plane:
    return np.stack(planes)


def zeros(shape: tuple[int, ...], dtype: str, like: NDArray[Any]) -> NDArray[Any]:
    return np.zeros(shape, dtype)


def moved_axis(x: NDArray[Any], source: int, target: int) -> NDArray[Any]:
    return np.moveaxis(x, source, target)
