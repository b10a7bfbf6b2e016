"""The integer operators of the exact profile: what they compute, in plain PyTorch, and the choice of a faster equal.

Contract, for every operator here and every other implementation of it (csrc/integer_cpu.cpp, the numpy interpreter of the tests):

- Activations are int16 within ±LIMIT = ±8191. Weights are int16, biases int32. Every result is clamped to ±LIMIT (`saturate`).
- No sum can overflow: |sum of weight × LIMIT| + |bias| + rounding < 2^31 is checked when a layer is made, so the order of summation does
  not matter and int32, int64 and float64 accumulators all hold the same number.
- `a >> n` is the arithmetic shift: floor(a / 2^n). `round_shift(a, n)` is (a + 2^(n-1)) >> n, and a itself for n = 0. Divisions are
  floor((2a + b) / 2b), b > 0. Nothing else rounds.

Planes are h×w×C, on one device; tokens T = h·w in row-major order. HPCM_OPS chooses the implementation as for Bi-WKV4: `integer_native`
(C++) for tensors of the CPU where it can be compiled, `integer_reference` (plain PyTorch) otherwise. Both copy strided inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from hpcm_codec.ops import build, integer_native, integer_reference
from hpcm_codec.ops.integer_reference import (
    BLOCKS,
    EXP_SHIFT,
    FACTOR_SHIFT,
    GATE_REACH,
    GATE_SHIFT,
    LEAKY_NUMERATOR,
    LEAKY_SHIFT,
    LIMIT,
    NORM_SHIFT,
    POSITION_SHIFT,
    AttentionScale,
    DepthwiseWeights,
    LinearWeights,
    NormWeights,
    PositionFactors,
    round_divide,
    round_shift,
    saturate,
)

__all__ = [
    "BLOCKS",
    "EXP_SHIFT",
    "FACTOR_SHIFT",
    "GATE_REACH",
    "GATE_SHIFT",
    "LEAKY_NUMERATOR",
    "LEAKY_SHIFT",
    "LIMIT",
    "NORM_SHIFT",
    "POSITION_SHIFT",
    "AttentionScale",
    "DepthwiseWeights",
    "LinearWeights",
    "NormWeights",
    "PositionFactors",
    "bi_wkv",
    "depthwise",
    "gate",
    "layer_norm",
    "linear",
    "round_divide",
    "round_shift",
    "saturate",
    "scale",
    "squared_relu",
    "together",
    "window_attention",
]


def _chosen(x: Tensor, *, able: bool = True) -> ModuleType:
    """The implementation for x, given that the compiled one is able to do what is asked."""
    compiled = able and x.numel() > 0 and x.device.type == "cpu" and build.use_compiled("integer")
    return integer_native if compiled else integer_reference


def linear(
    x: Tensor, weights: LinearWeights, *, leaky: bool = False, factor: Tensor | None = None, added: Tensor | None = None
) -> Tensor:
    """saturate(added + factor · leaky(saturate(round_shift(W·x + b)))), h×w×K → h×w×N.

    factor: int16 N, in units of 2^-12, or None for 1. added: int16 h×w×N, or None for 0.
    """
    result: Tensor = _chosen(x).linear(x, weights, leaky=leaky, factor=factor, added=added)
    return result


def together(x: Tensor, layers: Sequence[LinearWeights]) -> tuple[Tensor, ...]:
    """`linear` of one input through several layers: one matrix product on a GPU, where each costs a dozen launches.

    On the CPU the compiled operators take them one by one: a joint result would be copied to be taken apart, 8% of its time.
    """
    if _chosen(x) is integer_native:
        return tuple(linear(x, weights) for weights in layers)
    return integer_reference.together(x, layers)


def depthwise(x: Tensor, weights: DepthwiseWeights) -> Tensor:
    """saturate(round_shift(sum over the k×k neighbourhood, zero outside the plane, + b)), h×w×C → h×w×C."""
    result: Tensor = _chosen(x, able=weights.kernel.shape[0] in integer_native.KERNELS).depthwise(x, weights)
    return result


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """saturate(round_shift(x · factor, 12)); factor: int16 C."""
    result: Tensor = _chosen(x).scale(x, factor)
    return result


def layer_norm(x: Tensor, weights: NormWeights) -> Tensor:
    """Layer normalisation over the channels of h×w×C.

    With S = Σx, d = C·x − S, V = C·Σx² − S² + epsilon and s = floor(√V): n = round_divide(d · 2^12, s) and the output is
    saturate(round_shift(n · gamma + beta, shift)).
    """
    result: Tensor = _chosen(x).layer_norm(x, weights)
    return result


def gate(control: Tensor, x: Tensor, table: Tensor) -> Tensor:
    """round_shift(sigmoid(control) · x, 14), same shapes.

    control is in units of 1/256; table: int16, sigmoid of -2048 .. 2047 in units of 2^-14; arguments outside take its ends.
    """
    result: Tensor = _chosen(x).gate(control, x, table)
    return result


def squared_relu(x: Tensor, shift: int) -> Tensor:
    """saturate(round_shift(max(x, 0)², shift))."""
    result: Tensor = _chosen(x).squared_relu(x, shift)
    return result


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, window: int, scores: AttentionScale, table: Tensor
) -> Tensor:
    """Softmax attention inside non-overlapping windows, h×w×C each; a window's part outside the plane does not exist.

    Head a has the channels a·C/heads ... A window is min(window, h) × min(window, w) positions. With s_j the products of a query with the
    window's keys and m their maximum: e_j = (table[round_shift((m − s_j) · multiplier, shift)] + 2) >> 2 (0 past the table's end),
    output round_divide(Σ e_j·v_j, Σ e_j). table: int16, e^(−n/256) in units of 2^-14.
    """
    able = integer_native.can_attend(query, heads, window)
    result: Tensor = _chosen(query, able=able).window_attention(query, key, value, heads, window, scores, table)
    return result


def bi_wkv(key: Tensor, value: Tensor, factors: PositionFactors, table: Tensor) -> Tensor:
    """Bi-WKV4 (see `biwkv4`) in integers, h×w×C each; keys in units of 1/256, the output in units of the values.

    E_t = table[max over all tokens of k − k_t], per channel. For both directions, and once for E·v and once for E: with x_t cut into
    blocks (zeros after the end), P_j = Σ over m < j of growth_m · x_m inside a block, and c the block's carry, from 0 on:
      sum before j  =  ((c · fading_j) >> 14)  +  ((P_j >> 14) · fading_(j−1)) >> 14     (the second term 0 for j = 0)
      next carry    =  the same with j = L.
    The output is round_divide(N, max(D, 1)), N and D the sums of both directions and (itself · x_t) >> 14. T ≤ 4096. With factors of
    |w·T| ≤ 6 no sum reaches 2^63, and the token of the largest key alone keeps D positive.
    """
    result: Tensor = _chosen(key).bi_wkv(key, value, factors, table)
    return result
