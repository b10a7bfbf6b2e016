"""The integer operators of the exact profile in plain PyTorch: what they compute, on every device, and what the others
are tested against. `hpcm_codec.ops.integer` has the contract and chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

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
    AttentionScale,
    DepthwiseWeights,
    Linear,
    LinearScales,
    LinearWeights,
    NormWeights,
    PositionFactors,
    Scales,
    round_shift,
)
from hpcm_codec.ops.powers import times_power_of_two


def saturate(x: Tensor, limit: int = LIMIT) -> Tensor:
    """Clamped to ±limit, as int16."""
    return x.clamp(-limit, limit).to(torch.int16)


def round_divide(a: Tensor, b: Tensor) -> Tensor:
    """floor((2a + b) / 2b) for int64 a and b > 0."""
    return torch.div(2 * a + b, 2 * b, rounding_mode="floor")


def linear(
    inputs: Sequence[Tensor],
    weights: Linear,
    *,
    leaky: bool = False,
    factor: Tensor | None = None,
    added: Tensor | None = None,
    repeated: bool = False,
) -> Tensor:
    """See `integer.linear`."""
    assert isinstance(weights, LinearWeights)
    x = inputs[0] if len(inputs) == 1 else torch.cat(tuple(inputs), dim=-1)
    limit = weights.limit
    # float64 carries sums below 2^53 without rounding, and has fast matrix products everywhere
    total = functional.linear(x.double(), weights.weight.double()).long() + weights.bias
    value = round_shift(total, weights.shift.long()).clamp(-limit, limit)
    if leaky:
        value = torch.where(value < 0, round_shift(value * LEAKY_NUMERATOR, LEAKY_SHIFT), value)
    if factor is not None:
        value = round_shift(value * factor, FACTOR_SHIFT)
    if added is not None:
        if repeated:
            height, width, _ = x.shape
            cell = added.shape[0]
            added = added.repeat(-(-height // cell), -(-width // cell), 1)[:height, :width]
        value = value + added
    return saturate(value, limit)


def branch(
    inputs: Sequence[Tensor], expand: Linear, project: Linear, *, factor: Tensor | None, added: Tensor
) -> Tensor:
    """See `integer.branch`."""
    return linear((linear(inputs, expand, leaky=True),), project, factor=factor, added=added)


def together(x: Tensor, layers: Sequence[Linear]) -> tuple[Tensor, ...]:
    """See `integer.together`. The results are views of one tensor."""
    parts = ([getattr(layer, name) for layer in layers] for name in ("weight", "bias", "shift"))
    weight, bias, shift = map(torch.cat, parts)
    joint = LinearWeights(weight, bias, shift, layers[0].limit)
    return linear((x,), joint).split([layer.outputs for layer in layers], dim=-1)


def windows(x: Tensor, weights: Linear, size: int, step: int) -> Tensor:
    """See `integer.windows`."""
    around = x.unfold(0, size, step).unfold(1, size, step)  # h'×w'×C×size×size
    return linear((around.permute(0, 1, 3, 4, 2).flatten(2),), weights)


def doubled(x: Tensor, weights: Linear) -> Tensor:
    """See `integer.doubled`."""
    height, width, _ = x.shape
    quads = linear((x,), weights).reshape(height, width, 2, 2, -1)
    return quads.permute(0, 2, 1, 3, 4).reshape(2 * height, 2 * width, -1)


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
    return saturate(round_shift(total.long(), weights.shift.long()), weights.limit)


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """See `integer.scale`."""
    return saturate(round_shift(x.long() * factor, FACTOR_SHIFT))


def add(x: Tensor, other: Tensor) -> Tensor:
    """See `integer.add`."""
    return saturate(x.int() + other)


def rescale(x: Tensor, factor: Tensor | None, shift: int, limit: int) -> Tensor:
    """See `integer.rescale`."""
    value = x.long() if factor is None else x.long() * factor
    return saturate(round_shift(value, shift), limit)


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


def gate(control: Tensor, x: Tensor, table: Tensor, added: Tensor | None = None) -> Tensor:
    """See `integer.gate`."""
    index = control.long().clamp(-GATE_REACH, GATE_REACH - 1) + GATE_REACH
    gated = saturate(round_shift(x.long() * table[index], GATE_SHIFT))
    return gated if added is None else saturate(gated.int() + added)


def squared_relu(x: Tensor, shift: int) -> Tensor:
    """See `integer.squared_relu`."""
    return saturate(round_shift(x.long().clamp_min(0).square(), shift))


def _exponentials(distance: Tensor, table: Tensor) -> Tensor:
    """table[distance], zero past its end, for int64 distances ≥ 0."""
    found = table[distance.clamp_max(table.shape[0] - 1)].long()
    return found.masked_fill(distance >= table.shape[0], 0)  # torch.where would copy its 0 to a GPU and wait


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


# ---- steps and pixels


def _per_channel(step: Any, values: Tensor, height: int, width: int) -> Tensor:
    """Values of channels, packed as a step packs its latents."""
    taken: Tensor = step.take(values[:, None, None].expand(-1, height, width))
    return taken


def index_of(scale: Tensor, scales: Scales) -> Tensor:
    """See `integer.index_of`."""
    if isinstance(scales, LinearScales):
        return torch.bucketize(scale << scales.shift, scales.thresholds.long(), right=True)
    return round_shift((scale + scales.gain + scales.offset) * scales.multiplier, scales.shift).clamp(0, scales.highest)


def step_parameters(step: Any, params: Tensor, scales: Scales, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `integer.step_parameters`."""
    height, width, both = params.shape
    scale, mean = (step.take(half) for half in params.permute(2, 0, 1).unflatten(0, (2, both // 2)))
    packed: Scales
    if isinstance(scales, LinearScales):
        packed = replace(scales, shift=_per_channel(step, scales.shift, height, width))
    else:
        packed = replace(scales, gain=_per_channel(step, scales.gain, height, width))
    levels = index_of(scale.long(), packed).to(torch.uint8)
    return levels, mean, mean.float() * _per_channel(step, unit, height, width)


def decoded(step: Any, symbols: Tensor, means: Tensor, inverse_gain: Tensor, latents: Tensor, fine: int) -> Tensor:
    """See `integer.decoded`; `latents` stays as it is."""
    gain = _per_channel(step, inverse_gain, *latents.shape[:2])
    value = round_shift(symbols.long() * gain, EXP_SHIFT) + (means.long() << fine)
    plane = latents.permute(2, 0, 1)
    placed: Tensor = step.place(value.clamp(-(2**30), 2**30).to(torch.int32), plane)
    return placed.permute(1, 2, 0)


def pixels_in(pixels: Any, area: tuple[int, int, int, int], margin: int, table: Tensor) -> Tensor:
    """See `integer.pixels_in`."""
    top, left, height, width = area
    rows, columns = (
        np.clip(np.clip(np.arange(-margin, size + margin), 0, size - 1) + start, 0, end - 1)
        for size, start, end in ((height, top, pixels.shape[0]), (width, left, pixels.shape[1]))
    )
    part = torch.from_numpy(pixels[rows[:, None], columns[None, :]]).to(table.device)
    return table[part.expand(-1, -1, 3).long()]


def drawn_pixels(
    blocks: Tensor, edge: int, area: tuple[int, int, int, int], shift: int, grey: bool
) -> NDArray[np.uint8]:
    """See `integer.drawn_pixels`."""
    rows, columns, _ = blocks.shape
    top, left, height, width = area
    drawn = blocks.reshape(rows, columns, edge, edge, 3).permute(0, 2, 1, 3, 4)
    image = drawn.reshape(rows * edge, columns * edge, 3)[top : top + height, left : left + width].long()
    if grey:
        image = round_divide(image.sum(dim=-1, keepdim=True).clamp_min(0), torch.full_like(image[..., :1], 3 << shift))
    else:
        image = round_shift(image, shift)
    pixels: NDArray[np.uint8] = image.clamp(0, 255).to(torch.uint8).cpu().numpy()
    return pixels


# ---- what else numpy calls by other names


def bordered(x: Tensor, rings: int) -> Tensor:
    """See `integer.bordered`."""
    if not rings:
        return x
    rows, columns = (torch.arange(-rings, size + rings, device=x.device).clamp(0, size - 1) for size in x.shape[:2])
    return x[rows[:, None], columns[None, :]]


def padded(x: Tensor, rings: int, value: int) -> Tensor:
    """See `integer.padded`."""
    return functional.pad(x, (0, 0, rings, rings, rings, rings), value=value)


def converted(x: Tensor, dtype: str) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    return x.to(kind)


def scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """See `integer.scaled`."""
    return times_power_of_two(x.float(), exponent)


def inverse(x: Tensor, exponent: Tensor) -> Tensor:
    """See `integer.inverse`."""
    return times_power_of_two(1 / x.double(), exponent).float()


def counted(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)


def in_capture(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def stacked(planes: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(planes))


def zeros(shape: tuple[int, ...], dtype: str, like: Tensor) -> Tensor:
    return torch.zeros(shape, dtype=getattr(torch, dtype), device=like.device)


def moved_axis(x: Tensor, source: int, target: int) -> Tensor:
    return x.movedim(source, target)
