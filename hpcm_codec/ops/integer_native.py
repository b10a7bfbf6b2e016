"""The integer operators in C++ (csrc/integer_cpu.cpp), for tensors of the CPU; the same numbers as `integer_reference`.

Shapes and dtypes are checked, as nothing else stands between them and raw pointers: ValueError and TypeError say what
does not fit. Strided tensors are copied. All tensors are non-empty; `build` compiles and loads the library.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional

from hpcm_codec.ops import build
from hpcm_codec.ops.integer_reference import (
    BLOCKS,
    GATE_REACH,
    AttentionScale,
    DepthwiseWeights,
    LinearWeights,
    NormWeights,
    PositionFactors,
)

KERNELS = (3, 5)  # sizes of a depthwise convolution
KEYS, HEAD = 64, 32  # of a window, and channels of a head, for which int32 holds every sum
PACKED = 16  # outputs that the matrix product takes together

CPU = torch.device("cpu")


def _checked(
    name: str, tensor: Tensor, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype = torch.int16
) -> Tensor:
    """The tensor, contiguous. Raises ValueError or TypeError unless it is what the C++ side reads."""
    if tensor.shape != shape or tensor.device != CPU:
        raise ValueError(f"{name}: expected {tuple(shape)} on the CPU, got {tuple(tensor.shape)} on {tensor.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}")
    return tensor.contiguous()


def _call(name: str, *arguments: Tensor | int | None) -> None:
    """Call a C function: tensors as pointers, None as a null pointer, integers as int64, and the number of threads."""
    passed = [
        ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(None if a is None else a.data_ptr())
        for a in arguments
    ]
    build.function("integer", f"hpcm_integer_{name}", CPU)(*passed, ctypes.c_int64(torch.get_num_threads()))


def _packed(weights: LinearWeights) -> list[Tensor]:
    """Weights, bias with the shift's rounding, and shift, as the C++ side reads them; made once per LinearWeights."""
    if not weights.packed:
        outputs, inputs = weights.weight.shape
        missing = -outputs % PACKED
        weight = _checked("weight", weights.weight, (outputs, inputs))
        bias = _checked("bias", weights.bias, (outputs,), torch.int32)
        shift = _checked("shift", weights.shift, (outputs,), torch.int32)
        packed = torch.empty((outputs + missing) * (inputs + inputs % 2), dtype=torch.int16)
        _call("pack", weight, packed, outputs, inputs)
        offset = bias + ((torch.ones_like(shift) << shift) >> 1)
        weights.packed[:] = [packed, *(functional.pad(x, (0, missing)) for x in (offset, shift))]
    return weights.packed


def linear(
    x: Tensor, weights: LinearWeights, *, leaky: bool = False, factor: Tensor | None = None, added: Tensor | None = None
) -> Tensor:
    outputs, inputs = weights.weight.shape
    x = _checked("x", x, (*x.shape[:-1], inputs))
    if inputs % 2:
        x = functional.pad(x, (0, 1))
    y = x.new_empty((*x.shape[:-1], outputs))
    if factor is not None:
        factor = _checked("factor", factor, (outputs,))
    if added is not None:
        added = _checked("added", added, y.shape)
    packed, offset, shift = _packed(weights)
    tokens, pairs = x.numel() // x.shape[-1], x.shape[-1] // 2
    _call("linear", x, packed, offset, shift, factor, added, y, tokens, pairs, outputs, int(leaky))
    return y


def depthwise(x: Tensor, weights: DepthwiseWeights) -> Tensor:
    height, width, channels = x.shape
    size = weights.kernel.shape[0]
    x = _checked("x", x, x.shape)
    kernel = _checked("kernel", weights.kernel, (size, size, channels))
    bias = _checked("bias", weights.bias, (channels,), torch.int32)
    shift = _checked("shift", weights.shift, (channels,), torch.int32)
    y = torch.empty_like(x)
    _call("depthwise", x, kernel, bias, shift, y, height, width, channels, size)
    return y


def scale(x: Tensor, factor: Tensor) -> Tensor:
    channels = x.shape[-1]
    x = _checked("x", x, x.shape)
    y = torch.empty_like(x)
    _call("scale", x, _checked("factor", factor, (channels,)), y, x.numel() // channels, channels)
    return y


def layer_norm(x: Tensor, weights: NormWeights) -> Tensor:
    channels = x.shape[-1]
    x = _checked("x", x, x.shape)
    gamma = _checked("gamma", weights.gamma, (channels,), torch.int32)
    beta = _checked("beta", weights.beta, (channels,), torch.int32)
    y = torch.empty_like(x)
    _call("layer_norm", x, gamma, beta, y, x.numel() // channels, channels, weights.shift, weights.epsilon)
    return y


def gate(control: Tensor, x: Tensor, table: Tensor) -> Tensor:
    x = _checked("x", x, x.shape)
    control = _checked("control", control, x.shape)
    y = torch.empty_like(x)
    _call("gate", control, x, _checked("table", table, (2 * GATE_REACH,)), y, x.numel())
    return y


def squared_relu(x: Tensor, shift: int) -> Tensor:
    x = _checked("x", x, x.shape)
    y = torch.empty_like(x)
    _call("squared_relu", x, y, x.numel(), shift)
    return y


def can_attend(query: Tensor, heads: int, window: int) -> bool:
    """Whether int32 holds the products and sums of attention with such windows and heads."""
    height, width, channels = query.shape
    return min(window, height) * min(window, width) <= KEYS and channels // heads <= HEAD


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, window: int, scores: AttentionScale, table: Tensor
) -> Tensor:
    height, width, channels = query.shape
    if channels % heads or not can_attend(query, heads, window):
        raise ValueError(f"cannot do windows of {window} and {heads} heads of {channels} channels")
    edges = min(window, height), min(window, width)
    q, k, v = (_checked(name, x, query.shape) for name, x in (("query", query), ("key", key), ("value", value)))
    table = _checked("table", table, table.shape)
    y = torch.empty_like(q)
    factors = scores.multiplier, scores.shift
    _call("window_attention", q, k, v, table, y, height, width, channels, heads, *edges, *factors, table.numel())
    return y


def bi_wkv(key: Tensor, value: Tensor, factors: PositionFactors, table: Tensor) -> Tensor:
    height, width, channels = key.shape
    length = factors.growth.shape[0]
    if height * width > BLOCKS * length:
        raise ValueError(f"{height * width} tokens, but position factors for at most {BLOCKS * length}")
    key, value = _checked("key", key, key.shape), _checked("value", value, key.shape)
    growth = _checked("growth", factors.growth, (length, channels), torch.int32)
    fading = _checked("fading", factors.fading, (length + 1, channels), torch.int32)
    itself = _checked("itself", factors.itself, (channels,), torch.int32)
    table = _checked("table", table, table.shape)
    y = torch.empty_like(key)
    sizes = height * width, channels, length, table.numel()
    _call("bi_wkv", key, value, growth, fading, itself, table, y, *sizes)
    return y
