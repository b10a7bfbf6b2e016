"""The integer operators of the exact profile in plain PyTorch: what they compute, on every device, and what the others
are tested against. `hpcm_codec.ops.integer` has the contract and chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

LIMIT = 8191
LEAKY_NUMERATOR, LEAKY_SHIFT = 328, 15  # LeakyReLU's slope 0.01 as 328/2^15
FACTOR_SHIFT = 12  # factors of channels are in units of 2^-12
GATE_SHIFT = 14  # the sigmoid table is in units of 2^-14
GATE_REACH = 2048  # its arguments, in units of 1/256, run from -GATE_REACH to GATE_REACH - 1
EXP_SHIFT = 14  # the exponential table is in units of 2^-14, its argument in units of -1/256
NORM_SHIFT = 12  # normalised values are in units of 2^-12
BLOCKS = 16  # into which Bi-WKV cuts its tokens
POSITION_SHIFT = 14


def saturate(x: Tensor) -> Tensor:
    """Clamped to ±LIMIT, as int16."""
    return x.clamp(-LIMIT, LIMIT).to(torch.int16)


def round_shift(x: Tensor, shift: int | Tensor) -> Tensor:
    """x / 2^shift, halves up: (x + 2^(shift-1)) >> shift; x int64, shift ≥ 0."""
    if isinstance(shift, int):
        return (x + ((1 << shift) >> 1)) >> shift
    shift = shift.long()
    return (x + ((torch.ones_like(shift) << shift) >> 1)) >> shift


def round_divide(a: Tensor, b: Tensor) -> Tensor:
    """floor((2a + b) / 2b) for int64 a and b > 0."""
    return torch.div(2 * a + b, 2 * b, rounding_mode="floor")


@dataclass(frozen=True)
class LinearWeights:
    """weight: int16 N×K; bias: int32 N, in units of the accumulator; shift: int32 N, 0..30, from there to the output."""

    weight: Tensor
    bias: Tensor
    shift: Tensor
    packed: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)  # `integer_native`'s


@dataclass(frozen=True)
class DepthwiseWeights:
    """kernel: int16 k×k×C, k odd; bias: int32 C; shift: int32 C, 0..30."""

    kernel: Tensor
    bias: Tensor
    shift: Tensor


@dataclass(frozen=True)
class NormWeights:
    """gamma: int32 C; beta: int32 C, in units of gamma × 2^-12; shift: to the output; epsilon: int ≥ 1, C²·ε in squared input units."""

    gamma: Tensor
    beta: Tensor
    shift: int
    epsilon: int


def linear(
    x: Tensor, weights: LinearWeights, *, leaky: bool = False, factor: Tensor | None = None, added: Tensor | None = None
) -> Tensor:
    """See `integer.linear`."""
    # float64 carries sums below 2^53 without rounding, and has fast matrix products everywhere
    total = functional.linear(x.double(), weights.weight.double()).long() + weights.bias
    value = round_shift(total, weights.shift).clamp(-LIMIT, LIMIT)
    if leaky:
        value = torch.where(value < 0, round_shift(value * LEAKY_NUMERATOR, LEAKY_SHIFT), value)
    if factor is not None:
        value = round_shift(value * factor, FACTOR_SHIFT)
    if added is not None:
        value = value + added
    return saturate(value)


def together(x: Tensor, layers: Sequence[LinearWeights]) -> tuple[Tensor, ...]:
    """See `integer.together`. The results are views of one tensor."""
    parts = ([getattr(layer, name) for layer in layers] for name in ("weight", "bias", "shift"))
    return linear(x, LinearWeights(*map(torch.cat, parts))).split([layer.weight.shape[0] for layer in layers], dim=-1)


def depthwise(x: Tensor, weights: DepthwiseWeights) -> Tensor:
    """See `integer.depthwise`."""
    height, width, _ = x.shape
    size = weights.kernel.shape[0]
    reach = size // 2
    padded = functional.pad(x.int(), (0, 0, reach, reach, reach, reach))
    total = weights.bias.expand(x.shape)
    for row in range(size):
        for column in range(size):
            total = total + padded[row : row + height, column : column + width] * weights.kernel[row, column].int()
    return saturate(round_shift(total.long(), weights.shift))


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """See `integer.scale`."""
    return saturate(round_shift(x.long() * factor, FACTOR_SHIFT))


def layer_norm(x: Tensor, weights: NormWeights) -> Tensor:
    """See `integer.layer_norm`."""
    x = x.long()
    channels = x.shape[-1]
    total = x.sum(dim=-1, keepdim=True)
    variance = channels * x.square().sum(dim=-1, keepdim=True) - total.square() + weights.epsilon
    normalised = round_divide((channels * x - total) << NORM_SHIFT, _square_root(variance))
    return saturate(round_shift(normalised * weights.gamma + weights.beta, weights.shift))


def _square_root(x: Tensor) -> Tensor:
    """floor(√x) of int64 0 ≤ x < 2^52, whichever way the machine's float64 square root rounds."""
    root = x.double().sqrt().long()
    root = torch.where(root * root > x, root - 1, root)
    return torch.where((root + 1) * (root + 1) <= x, root + 1, root)


def gate(control: Tensor, x: Tensor, table: Tensor) -> Tensor:
    """See `integer.gate`."""
    index = control.long().clamp(-GATE_REACH, GATE_REACH - 1) + GATE_REACH
    return saturate(round_shift(x.long() * table[index], GATE_SHIFT))


def squared_relu(x: Tensor, shift: int) -> Tensor:
    """See `integer.squared_relu`."""
    return saturate(round_shift(x.long().clamp_min(0).square(), shift))


def _exponentials(distance: Tensor, table: Tensor) -> Tensor:
    """table[distance], zero past its end, for int64 distances ≥ 0."""
    found = table[distance.clamp_max(table.shape[0] - 1)].long()
    return found.masked_fill(distance >= table.shape[0], 0)  # torch.where would copy its 0 to a GPU and wait


@dataclass(frozen=True)
class AttentionScale:
    """What a difference of scores (products of queries and keys) is in units of 1/256: round_shift(difference · multiplier, shift)."""

    multiplier: int
    shift: int


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, window: int, scores: AttentionScale, table: Tensor
) -> Tensor:
    """See `integer.window_attention`."""
    height, width, channels = query.shape
    edges = min(window, height), min(window, width)
    rows, columns = -(-height // edges[0]), -(-width // edges[1])
    below, right = rows * edges[0] - height, columns * edges[1] - width

    def windows(plane: Tensor) -> Tensor:
        padded = functional.pad(plane, (0, 0, 0, right, 0, below))
        cut = padded.reshape(rows, edges[0], columns, edges[1], heads, channels // heads)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(rows * columns, heads, edges[0] * edges[1], channels // heads)

    q, k, v = (windows(plane).double() for plane in (query, key, value))
    inside = windows(torch.ones_like(query))[:, :1, None, :, 0] > 0
    products = (q @ k.transpose(-1, -2)).long()
    highest = products.masked_fill(~inside, torch.iinfo(torch.int64).min).amax(dim=-1, keepdim=True)
    distance = round_shift((highest - products).clamp_min(0) * scores.multiplier, scores.shift)
    weights = ((_exponentials(distance, table) + 2) >> 2).masked_fill(~inside, 0)
    total = weights.sum(dim=-1, keepdim=True)
    attended = round_divide((weights.double() @ v).long(), total)
    attended = attended.reshape(rows, columns, heads, *edges, channels // heads).permute(0, 3, 1, 4, 2, 5)
    plane = attended.reshape(rows * edges[0], columns * edges[1], channels)
    return saturate(plane[:height, :width])


@dataclass(frozen=True)
class PositionFactors:
    """Bi-WKV's position factors for T tokens in BLOCKS blocks of L = ceil(T / BLOCKS), in units of 2^-14.

    growth: int32 L×C, e^(w·m); fading: int32 (L+1)×C, e^(−w·j); itself: int32 C, e^u.
    """

    growth: Tensor
    fading: Tensor
    itself: Tensor


def bi_wkv(key: Tensor, value: Tensor, factors: PositionFactors, table: Tensor) -> Tensor:
    """See `integer.bi_wkv`."""
    height, width, channels = key.shape
    k, v = (plane.reshape(-1, channels).long() for plane in (key, value))
    weights = _exponentials(k.amax(dim=0, keepdim=True) - k, table)
    both = torch.stack((weights * v, weights), dim=1)  # T×2×C
    sums = _sums_before(both, factors) + _sums_before(both.flip(0), factors).flip(0)
    sums = sums + ((both * factors.itself) >> POSITION_SHIFT)
    return saturate(round_divide(sums[:, 0], sums[:, 1].clamp_min(1))).reshape(height, width, channels)


def _sums_before(x: Tensor, factors: PositionFactors) -> Tensor:
    """Faded sums over the tokens before each, T×2×C int64."""
    length = factors.growth.shape[0]
    blocks = functional.pad(x, (0, 0, 0, 0, 0, BLOCKS * length - x.shape[0])).unflatten(0, (BLOCKS, length))
    growth, fading = factors.growth[:, None].long(), factors.fading[:, None].long()
    inside = (blocks * growth).cumsum(dim=1) >> POSITION_SHIFT  # [:, j - 1] is P_j >> 14
    inside = functional.pad((inside * fading[:-1]) >> POSITION_SHIFT, (0, 0, 0, 0, 1, 0))  # BLOCKS×(L+1)×2×C
    carry = torch.zeros_like(x[0])
    sums = []
    for block in inside:
        before = ((carry * fading) >> POSITION_SHIFT) + block
        sums.append(before[:-1])
        carry = before[-1]
    return torch.cat(sums)[: x.shape[0]]
