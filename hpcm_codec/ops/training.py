"""The operators of a training step in C++ (csrc/training_cpu.cpp), for tensors of the CPU: calls with raw pointers.

Planes are B×h×w×C and tokens …×C, contiguous, in bfloat16; what residual blocks add to, the stream, may be float32 instead.
Weights and their gradients are float32, and products add up in float32. Autograd is used in `fused`, not here. The reference in
the tests is what the network's blocks compute without these operators (tests/test_fused.py).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hpcm_codec.ops import build

CPU = torch.device("cpu")
BLOCK = 32  # edge of what matrix products compute at a time; packed weights are padded to it


def ready() -> bool:
    """Whether the compiled operators are available; compiles them at the first call. Raises as `build.use_compiled` does."""
    return build.use_compiled("training", CPU)


@cache
def _function(name: str, arguments: int) -> Any:
    function = build.function("training", f"hpcm_training_{name}", CPU)
    function.argtypes = [ctypes.c_int64] * arguments  # pointers are as wide
    function.restype = ctypes.c_int64
    return function


def call(name: str, *arguments: Tensor | int | None) -> int:
    """Call a C function: tensors as pointers, None as a null pointer, integers as int64, and the number of threads.

    Returns its result, which has no meaning for most.
    """
    passed = [a if isinstance(a, int) else 0 if a is None else a.data_ptr() for a in arguments]
    result: int = _function(name, len(passed) + 1)(*passed, torch.get_num_threads())
    return result


def _packed(inputs: int, outputs: int) -> Tensor:
    blocks = -(-inputs // BLOCK) * -(-outputs // BLOCK)
    return torch.empty(blocks * BLOCK * BLOCK, dtype=torch.bfloat16)


@dataclass(frozen=True)
class PackedWeight:
    """A weight outputs×inputs in bfloat16, in the orders in which products read it: for results and for gradients."""

    outputs: int
    inputs: int
    forward: Tensor
    backward: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> PackedWeight:
        """weight: float32, outputs×inputs, its rows contiguous; its present values are copied."""
        if weight.dtype != torch.float32 or weight.ndim != 2 or (weight.stride(1) != 1 and weight.shape[1] > 1):
            raise ValueError(f"a weight to pack is a float32 matrix with contiguous rows, not {tuple(weight.shape)}")
        outputs, inputs = weight.shape
        packed = cls(outputs, inputs, _packed(inputs, outputs), _packed(outputs, inputs))
        call("pack", weight, packed.forward, packed.backward, weight.stride(0), outputs, inputs)
        return packed


def linear(
    inputs: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    outputs: int,
    *,
    bias: Tensor | None = None,
    leaky: bool = False,
    added: Tensor | None = None,
    wide: bool = False,
) -> Tensor:
    """leaky(Σ x·Wᵀ + bias) + added, …×outputs, over one or two inputs …×width with their packed weights.

    added: as large as the result, or with a batch of 1. wide: the result is float32, and so is `added`.
    """
    first, second = inputs[0], inputs[1] if len(inputs) > 1 else None
    y = first.new_empty(*first.shape[:-1], outputs, dtype=torch.float32 if wide else torch.bfloat16)
    if added is not None and added.dtype != y.dtype:
        raise ValueError(f"what is added to {y.dtype} is {added.dtype}")
    tokens = first.numel() // first.shape[-1]
    call(
        "linear", first, weights[0], second, weights[1] if second is not None else None, bias, added, y,
        tokens, first.shape[-1], 0 if second is None else second.shape[-1], outputs, int(leaky),
        tokens if added is None else added.numel() // outputs, int(wide),
    )  # fmt: skip
    return y


def weight_gradient(g: Tensor, x: Tensor, gradient: Tensor, sums: Tensor | None = None, *, added: bool = False) -> None:
    """Write gᵀ·x into `gradient` (outputs×inputs, float32, rows contiguous), or add it, and write g's column sums into `sums`."""
    outputs, inputs = g.shape[-1], x.shape[-1]
    tokens = g.numel() // outputs
    call("weight_gradient", g, x, gradient, sums, tokens, outputs, inputs, gradient.stride(0), int(added))


def depthwise(
    x: Tensor, taps: Tensor, *, bias: Tensor | None = None, added: Tensor | None = None, flipped: bool = False
) -> Tensor:
    """A depthwise convolution of B×h×w×C with taps size²×C (size 3 or 5), zeros outside; plus bias and a plane.

    flipped: with the kernel turned by 180°, as the gradient of x needs it.
    """
    y = torch.empty_like(x)
    call("depthwise", x, taps, bias, added, y, _size(taps), int(flipped), *x.shape)
    return y


def depthwise_gradient(x: Tensor, g: Tensor, taps: Tensor, bias: Tensor | None = None) -> None:
    """Write the gradients of `depthwise`'s taps and bias, from that of its result."""
    call("depthwise_gradient", x, g, taps, bias, _size(taps), *x.shape)


def _size(taps: Tensor) -> int:
    return {9: 3, 25: 5}[taps.shape[0]]


def residual(
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    expand: PackedWeight,
    expand_bias: Tensor,
    project: PackedWeight,
    project_bias: Tensor,
    factor: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """A residual block on B×h×w×C, a stream; factor: R×C, R being 1 or B.

    Returns y, a stream like x, and (shifted, hidden, branch) in bfloat16 for the gradients.
    """
    y = torch.empty_like(x)
    shifted = torch.empty_like(x, dtype=torch.bfloat16)
    hidden = shifted.new_empty(*x.shape[:-1], expand.outputs)
    branch = None if factor is None else torch.empty_like(shifted)
    call(
        "residual", x, taps, taps_bias, expand.forward, expand_bias, project.forward, project_bias, factor,
        shifted, hidden, branch, y, 0 if factor is None else factor.shape[0], *x.shape, expand.outputs, _wide(x),
    )  # fmt: skip
    return y, shifted, hidden, branch


def residual_backward(
    g: Tensor,
    x: Tensor,
    shifted: Tensor,
    hidden: Tensor,
    branch: Tensor | None,
    taps: Tensor,
    expand: PackedWeight,
    project: PackedWeight,
    factor: Tensor | None,
    expand_gradient: Tensor,
    project_gradient: Tensor,
    added: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, taps, taps_bias, expand_bias, project_bias and factor, in that order; g and that of x are streams like x.

    Those of expand and project (float32, contiguous) are written into what is given, or added to it where `added` says so.
    """
    channels, hidden_channels = x.shape[-1], hidden.shape[-1]
    x_gradient, taps_gradient = torch.empty_like(x), torch.empty_like(taps)
    factor_gradient = None if factor is None else torch.zeros_like(factor)
    biases = [taps.new_empty(size) for size in (channels, hidden_channels, channels)]
    call(
        "residual_backward", g, x, shifted, hidden, branch, taps, expand.backward, project.backward, factor,
        x_gradient, taps_gradient, biases[0], expand_gradient,
        biases[1], project_gradient, biases[2], factor_gradient, 0 if factor is None else factor.shape[0],
        *x.shape, hidden_channels, *map(int, added), _wide(x, g),
    )  # fmt: skip
    return x_gradient, taps_gradient, biases[0], biases[1], biases[2], factor_gradient


def _wide(*streams: Tensor) -> int:
    """Whether streams, all of one dtype, are float32."""
    (dtype,) = {stream.dtype for stream in streams}
    return {torch.float32: 1, torch.bfloat16: 0}[dtype]


def take_patches(
    image: Tensor, patches: Tensor, edge: int, stride: int, first: int, *, beyond: int = 0, repeat: bool
) -> None:
    """Write the patches of an image B×3×H×W (float32) into `patches`, B×rows×columns×(3·edge²).

    first: where the first of rows×columns patches begins, in pixels, 0 or less.
    repeat: outside, the border is repeated; else there are zeros.
    beyond: rings of patches around these; each is added to the nearest of them.
    """
    batch, _, height, width = image.shape
    sizes = (batch, height, width, *patches.shape[1:3], edge, stride, first, beyond)
    call("take_patches", image, patches, int(repeat), *sizes)


def add_patches(
    patches: Tensor, bias: Tensor, size: tuple[int, ...], edge: int, stride: int, first: int, *, beyond: int = 0
) -> Tensor:
    """The image B×3×size (float32) that patches add up to, and a bias for each colour.

    beyond: rings of patches around these, which repeat the outermost ones.
    """
    batch, rows, columns, _ = patches.shape
    image = torch.empty(batch, 3, *size)
    call("add_patches", patches, bias, image, batch, *size, rows, columns, edge, stride, first, beyond)
    return image


def gated_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor | None:
    """σ(r)·BiWKV4(w, u, k, v) of tokens B×T×C; w, u: C, float32. None where exponents reach too far for plain sums."""
    y = torch.empty_like(k)
    return y if call("gated_wkv", w, u, k, v, r, y, *k.shape) else None


def gated_wkv_backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, r: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v and r."""
    parameters = [w.new_empty(k.shape[0], k.shape[2]) for _ in range(2)]
    tokens = [torch.empty_like(k) for _ in range(3)]
    call("gated_wkv_backward", w, u, k, v, r, g, *parameters, *tokens, *k.shape)
    return parameters[0].sum(dim=0), parameters[1].sum(dim=0), tokens[0], tokens[1], tokens[2]
