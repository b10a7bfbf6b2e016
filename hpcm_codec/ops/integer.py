"""The integer operators of the exact profile: what they compute, and the choice between their two implementations.

Contract, for every operator here and every other implementation of it (csrc/integer_cpu.cpp, the numpy interpreter of the tests):

- Activations are int16 within ±LIMIT = ±8191; planes of the transforms' residual streams within ±WIDE = ±32767. Weights are int16, biases
  int32. Every result is clamped to ±LIMIT, or to the `limit` of its layer (`saturate`).
- No sum can overflow: sum of |weight| × the bound of the inputs + |bias| + rounding < 2^31 is checked when a layer is made, so the order of
  summation does not matter and int32, int64 and float64 accumulators all hold the same number.
- `a >> n` is the arithmetic shift: floor(a / 2^n). `round_shift(a, n)` is (a + 2^(n-1)) >> n, and a itself for n = 0. Divisions are
  floor((2a + b) / 2b), b > 0. Nothing else rounds.

Planes are h×w×C; tokens T = h·w in row-major order. Numpy arrays go through the compiled operators (`integer_native`), which `build` must
have ready; torch tensors, on any device, through plain PyTorch (`integer_reference`). Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcm_codec.ops import integer_native
from hpcm_codec.ops.integer_layers import (
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
    WIDE,
    Array,
    AttentionScale,
    DepthwiseWeights,
    Linear,
    LinearScales,
    LinearWeights,
    LogScales,
    NormWeights,
    PackedLinear,
    PositionFactors,
    Scales,
    round_shift,
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
    "WIDE",
    "Array",
    "AttentionScale",
    "DepthwiseWeights",
    "Linear",
    "LinearScales",
    "LinearWeights",
    "LogScales",
    "NormWeights",
    "PackedLinear",
    "PositionFactors",
    "Scales",
    "add",
    "as_int32",
    "as_int64",
    "bi_wkv",
    "bordered",
    "branch",
    "channels_first",
    "channels_last",
    "counted",
    "decoded",
    "depthwise",
    "doubled",
    "drawn_pixels",
    "gate",
    "in_capture",
    "index_of",
    "inverse",
    "layer_norm",
    "linear",
    "narrow",
    "padded",
    "pixels_in",
    "real",
    "rescale",
    "round_shift",
    "scale",
    "scaled",
    "squared_relu",
    "stacked",
    "step_parameters",
    "together",
    "window_attention",
    "windows",
    "zeros",
]


def _of(x: Array) -> Any:
    """The implementation for arrays of x's kind."""
    if isinstance(x, np.ndarray):
        return integer_native
    from hpcm_codec.ops import integer_reference

    return integer_reference


def linear(
    *inputs: Array,
    weights: Linear,
    leaky: bool = False,
    factor: Array | None = None,
    added: Array | None = None,
    repeated: bool = False,
) -> Array:
    """saturate(added + factor · leaky(saturate(round_shift(W·x + b)))), h×w×K → h×w×N.

    inputs: one plane, or two whose channels lie side by side. factor: int16 N, in units of 2^-12, or None for 1.
    added:  int16 h×w×N, or None for 0; repeated: it is a cell c×c×N, tiled over the plane from the top left corner on.
    """
    return _of(inputs[0]).linear(inputs, weights, leaky=leaky, factor=factor, added=added, repeated=repeated)


def branch(*inputs: Array, expand: Linear, project: Linear, factor: Array | None, added: Array) -> Array:
    """`linear` twice, the first with LeakyReLU; of large planes, the compiled one keeps what is in between in the processor's cache."""
    return _of(added).branch(inputs, expand, project, factor=factor, added=added)


def together(x: Array, layers: Sequence[Linear]) -> tuple[Array, ...]:
    """`linear` of one input through several layers: one matrix product on a GPU, where each takes a dozen launches.

    The compiled operators compute them one by one: splitting a joint result would need a copy, 8% of its time.
    """
    parts: tuple[Array, ...] = _of(x).together(x, layers)
    return parts


def windows(x: Array, weights: Linear, size: int, step: int) -> Array:
    """`linear` of the size×size×C neighbourhoods at (step·i, step·j), row by row, as far as they lie inside the plane."""
    return _of(x).windows(x, weights, size, step)


def doubled(x: Array, weights: Linear) -> Array:
    """`linear` to four pixels each: h×w×K → 2h×2w×N/4, the outputs being those of (0,0), (0,1), (1,0) and (1,1)."""
    return _of(x).doubled(x, weights)


def depthwise(x: Array, weights: DepthwiseWeights) -> Array:
    """saturate(round_shift(sum over the k×k neighbourhood, zero outside the plane, + b)), h×w×C → h×w×C."""
    return _of(x).depthwise(x, weights)


def scale(x: Array, factor: Array) -> Array:
    """saturate(round_shift(x · factor, 12)); factor: int16 C."""
    return _of(x).scale(x, factor)


def add(x: Array, other: Array) -> Array:
    """saturate(x + other), same shapes."""
    return _of(x).add(x, other)


def rescale(x: Array, factor: Array | None, shift: int, limit: int = LIMIT) -> Array:
    """round_shift(x · factor, shift) clamped to ±limit, int16; x: int32 h×w×C; factor: int64 C or None for 1, |x · factor| < 2^62."""
    return _of(x).rescale(x, factor, shift, limit)


def layer_norm(x: Array, weights: NormWeights) -> Array:
    """Layer normalisation over the channels of h×w×C.

    With S = Σx, d = C·x − S, V = C·Σx² − S² + epsilon and s = floor(√V): n = round_divide(d · 2^12, s) and the output is
    saturate(round_shift(n · gamma + beta, shift)).
    """
    return _of(x).layer_norm(x, weights)


def gate(control: Array, x: Array, table: Array, added: Array | None = None) -> Array:
    """saturate(added + round_shift(sigmoid(control) · x, 14)), same shapes.

    control is in units of 1/256; table: int16, sigmoid of -2048 .. 2047 in units of 2^-14. Arguments outside this range take the first or
    the last entry.
    """
    return _of(x).gate(control, x, table, added)


def squared_relu(x: Array, shift: int) -> Array:
    """saturate(round_shift(max(x, 0)², shift))."""
    return _of(x).squared_relu(x, shift)


def window_attention(
    query: Array, key: Array, value: Array, heads: int, window: int, scores: AttentionScale, table: Array
) -> Array:
    """Softmax attention inside non-overlapping windows, h×w×C each; a window's part outside the plane does not exist.

    Head a has the channels a·C/heads ... A window is min(window, h) × min(window, w) places. With s_j the products of a query with the
    window's keys and m their maximum: e_j = (table[round_shift((m − s_j) · multiplier, shift)] + 2) >> 2 (0 past the table's end),
    output round_divide(Σ e_j·v_j, Σ e_j). table: int16, e^(−n/256) in units of 2^-14.
    """
    return _of(query).window_attention(query, key, value, heads, window, scores, table)


def bi_wkv(key: Array, value: Array, factors: PositionFactors, table: Array) -> Array:
    """Bi-WKV4 (see `biwkv4`) in integers, h×w×C each; keys in units of 1/256, the output in units of the values.

    E_t = table[max over all tokens of k − k_t], per channel. For both directions, and once for E·v and once for E: with x_t cut into
    blocks (zeros after the end), P_j = Σ over m < j of growth_m · x_m inside a block, and c the block's carry, from 0 on:
      sum before j  =  ((c · fading_j) >> 14)  +  ((P_j >> 14) · fading_(j−1)) >> 14     (the second term 0 for j = 0)
      next carry    =  the same with j = L.
    The output is round_divide(N, max(D, 1)), N and D the sums of both directions and (itself · x_t) >> 14. T ≤ 4096. With factors of
    |w·T| ≤ 6 no sum reaches 2^63, and the token of the largest key alone keeps D positive.
    """
    return _of(key).bi_wkv(key, value, factors, table)


# ---- between planes and the rANS coder, and between planes and pixels


def index_of(scale: Array, scales: Scales) -> Array:
    """The table indexes of scales, int64 C each, as `scales` says."""
    return _of(scale).index_of(scale, scales)


def step_parameters(step: Any, params: Array, scales: Scales, unit: Array) -> tuple[Array, Array, Array]:
    """Table indexes (uint8), means (int16), and means as real numbers (float32: times `unit`), of a coding step's latents, n each.

    step: a `model.schedule.Lattice`; params: int16 h×w×2M, scales, then means; scales: what their indexes are; unit: float32 M.
    """
    found: tuple[Array, Array, Array] = _of(params).step_parameters(step, params, scales, unit)
    return found


def decoded(step: Any, symbols: Array, means: Array, inverse_gain: Array, latents: Array, fine: int) -> Array:
    """Latents (int32 h×w×M) with those of a step: round_shift(symbol · inverse_gain, 14) + mean · 2^fine, within ±2^30.

    Of numpy arrays `latents` itself is changed.
    """
    return _of(latents).decoded(step, symbols, means, inverse_gain, latents, fine)


def pixels_in(pixels: Any, area: tuple[int, int, int, int], margin: int, table: Array) -> Array:
    """An area of a picture as a plane: int16 (h + 2·margin)×(w + 2·margin)×3, table[pixel], the area's border repeated.

    pixels: uint8 rows×columns×1 or 3, numpy; area: top, left, h, w in it; what lies beyond the picture repeats its last row and column.
    """
    return _of(table).pixels_in(pixels, area, margin, table)


def drawn_pixels(blocks: Array, edge: int, area: tuple[int, int, int, int], shift: int, grey: bool) -> Any:
    """An area (top, left, h, w) of drawn blocks, int16 rows×columns×(edge·edge·3) in units of 2^-shift, as numpy pixels, uint8 h×w×3 or 1.

    A colour is round_shift(v, shift) bounded to 0 … 255; a grey pixel floor((2·sum + 3·2^shift) / (6·2^shift)) of the sum of its three.
    """
    return _of(blocks).drawn_pixels(blocks, edge, area, shift, grey)


# ---- what else numpy and torch call by different names


def bordered(x: Array, rings: int) -> Array:
    """A plane with its border repeated that many times, contiguous."""
    return _of(x).bordered(x, rings)


def padded(x: Array, rings: int, value: int = 0) -> Array:
    """A plane with rings of one value around it, contiguous."""
    return _of(x).padded(x, rings, value)


def narrow(x: Array) -> Array:
    """As int16, which must hold it."""
    return _of(x).converted(x, "int16")


def as_int32(x: Array) -> Array:
    return _of(x).converted(x, "int32")


def as_int64(x: Array) -> Array:
    return _of(x).converted(x, "int64")


def real(x: Array) -> Array:
    """Integers as float32."""
    return _of(x).converted(x, "float32")


def scaled(x: Array, exponent: Array) -> Array:
    """x · 2^exponent as float32, x rounded to float32 first."""
    return _of(x).scaled(x, exponent)


def inverse(x: Array, exponent: Array) -> Array:
    """2^exponent / x as float32, divided in float64."""
    return _of(x).inverse(x, exponent)


def counted(count: int, like: Array) -> Array:
    """0 … count − 1, int64, where `like` is."""
    return _of(like).counted(count, like)


def in_capture(x: Array) -> bool:
    """Whether a CUDA graph is being captured on x's device."""
    return bool(_of(x).in_capture(x))


def stacked(planes: Sequence[Array]) -> Array:
    """Planes of one size as one array, the planes along its first axis."""
    return _of(planes[0]).stacked(planes)


def zeros(shape: tuple[int, ...], dtype: str, like: Array) -> Array:
    return _of(like).zeros(shape, dtype, like)


def channels_last(plane: Array) -> Array:
    """…×C×h×w → …×h×w×C, a view."""
    return _of(plane).moved_axis(plane, -3, -1)


def channels_first(tokens: Array) -> Array:
    """…×h×w×C → …×C×h×w, a view."""
    return _of(tokens).moved_axis(tokens, -1, -3)
