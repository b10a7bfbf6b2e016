"""Bi-WKV4 in plain PyTorch: any device, any length, forward and backward, time linear in T.

The same method, operation by operation, as csrc/biwkv4.h, which explains it: sums anchored to their largest term, T cut
into chunks, the chunks summarised, carried and evaluated. A step of the scan is cut in two here, because exponentials
are fast in bulk and slow one token at a time: a first loop finds the anchors and the gaps between exponents, one
bulk exponential turns gaps into weights, and a second loop adds up. Nothing in it waits for the values on a device.

Only IEEE operations that round one way are used for float32 (no torch.exp, no addcmul): the result is bit for bit that
of the C++ and CUDA builds, on any device, for any number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EXPONENT_SCALE = (
    2.0**-27
)  # on w, u, k: a power of two, so nothing is rounded, and no sum of exponents can then overflow for T < 2^24
VALUE_SCALE = 2.0**-24  # on v: T of the largest numbers still add up to a finite one
LOG2_E = 1.4426950408889634
# 2^f on |f| <= 1/2, interpolated at Chebyshev nodes, highest power first, last term 1 left out; relative error 5.1e-9.
EXP2_COEFFICIENTS = (
    0.00015453162944120690,
    0.0013390863364671234,
    0.0096180825572778515,
    0.055503571142190779,
    0.24022650760568127,
    0.69314718802622879,
)
SLAB_ELEMENTS = {
    "cpu": 1 << 19,
    "cuda": 1 << 24,
}  # elements worked on at once: fits a CPU's caches, bounds a GPU's memory


def chunk_length(length: int) -> int:
    """Tokens per chunk for T = `length`; part of the definition of the result's bits, so every backend calls this."""
    return 8 if length <= 64 else 16 if length <= 256 else 32


class States(NamedTuple):
    """Anchored sums. key, distance: (...); sums: (S, ...) with S = values, weights[, both weighted by distance]."""

    key: Tensor
    distance: Tensor
    sums: Tensor


def empty_states(like: Tensor, shape: tuple[int, ...], count: int) -> States:
    """`count` sums over no token; the key lies below every exponent that a finite input can reach."""
    key = like.new_full(shape, -(2.0**1023) if like.dtype == torch.float64 else -(2.0**127))
    return States(key, torch.zeros_like(key), like.new_zeros((count, *shape)))


def exp_scaled(x: Tensor) -> Tensor:
    """e^(x * 2^27) for x <= 0, float32 or float64; exactly 1 at 0, exactly 0 below float32's smallest normal number."""
    if x.dtype == torch.float64:
        return torch.exp(x * (1 / EXPONENT_SCALE))
    power = (x * (LOG2_E / EXPONENT_SCALE)).clamp_(min=-127.0)
    whole = power.round()
    fraction = power.sub_(whole)
    result = fraction * EXP2_COEFFICIENTS[0]
    for coefficient in EXP2_COEFFICIENTS[1:]:
        result.add_(coefficient).mul_(fraction)
    result.add_(1.0)
    return result.mul_(((whole.to(torch.int32) + 127) << 23).view(torch.float32))


def weigh(gap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For exponents a and b with a - b = gap: whether a leads, and the weights of both relative to the leader."""
    leads = gap >= 0
    weight = exp_scaled(-gap.abs())
    # `where` would copy its 1.0 to a GPU and wait
    return leads, weight.masked_fill(leads, 1.0), weight.masked_fill(~leads, 1.0)


def merge(a: States, b: States, decay: Tensor) -> States:
    """The sums over two disjoint sets of tokens seen from the same place."""
    leads, weight_a, weight_b = weigh((a.key - b.key) - decay * (a.distance - b.distance))
    return States(
        torch.where(leads, a.key, b.key),
        torch.where(leads, a.distance, b.distance),
        a.sums * weight_a + b.sums * weight_b,
    )


def scan(start: States, elements: States, decay: Tensor, age: int) -> tuple[States, States]:
    """Add elements 0 … L-1 to `start` one after the other, everything moving `age` tokens away before each.

    elements: key, distance (L, ...), sums (L, S', ...); with S' = 2 and four sums in `start`, the distance-weighted
    ones start at 0.
    Returns the states before each element (key, distance (L, ...), sums (L, S, ...)) and the state after the last.
    """
    key, distance, sums = start
    keys, distances, gaps = [], [], []
    for element_key, element_distance in zip(elements.key, elements.distance, strict=True):
        keys.append(key)
        distances.append(distance)
        aged = distance + age
        gap = (key - element_key) - decay * (aged - element_distance)
        gaps.append(gap)
        leads = gap >= 0
        key = torch.where(leads, key, element_key)
        distance = torch.where(leads, aged, element_distance)
    _, weights, element_weights = weigh(torch.stack(gaps))
    added = elements.sums * element_weights.unsqueeze(1)
    running = sums.new_empty((len(gaps) + 1, *sums.shape))
    running[0] = sums
    moments = sums.shape[0] == 4
    for step, (weight, addition) in enumerate(zip(weights, added, strict=True)):
        now, following = running[step], running[step + 1]
        torch.mul(now, weight, out=following)
        if moments:
            following[2:] = (now[2:] + age * now[:2]) * weight
        following[: addition.shape[0]] += addition
    return States(torch.stack(keys), torch.stack(distances), running[:-1]), States(key, distance, running[-1])


def both_ways(tokens: States, decay: Tensor, count: int) -> tuple[States, States]:
    """What lies before and what lies after every token.

    tokens: key, distance (B, T, C), sums (2, B, T, C). decay: (C,), scaled. count: 2, or 4 for distance-weighted sums
    as well.
    Returns two States of shape (B, T, C), sums (count, B, T, C), seen from the token itself, its neighbour being at
    distance 0.
    """
    batch, length, channels = tokens.key.shape
    chunk = chunk_length(length)
    chunks = -(-length // chunk)
    padding = chunks * chunk - length
    blank = empty_states(tokens.key, (batch, padding, channels), 2)

    def in_chunks(x: Tensor, fill: Tensor) -> Tensor:
        """(..., B, T, C) to (chunk, ..., 2, B, chunks, C), the second direction mirrored."""
        x = torch.cat([x, fill], dim=-2)
        x = torch.stack([x, x.flip(-2)], dim=-4)
        return x.reshape(*x.shape[:-2], chunks, chunk, channels).movedim(-2, 0).contiguous()

    def as_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse: (chunk, ..., 2, B, chunks, C) to past and future, (..., B, T, C)."""
        past, future = x.movedim(0, -2).flatten(-3, -2).unbind(-4)
        return past[..., :length, :], future.flip(-2)[..., :length, :]

    elements = States(*(in_chunks(x, fill) for x, fill in zip(tokens, blank, strict=True)))
    nothing = empty_states(decay, (2, batch, chunks, channels), count)
    _, summary = scan(nothing, elements, decay, age=1)
    nothing = empty_states(decay, (2, batch, channels), count)
    by_chunk = States(summary.key.movedim(-2, 0), summary.distance.movedim(-2, 0), summary.sums.movedim(-2, 0))
    carried, _ = scan(nothing, by_chunk, decay, age=chunk)
    start = States(carried.key.movedim(0, -2), carried.distance.movedim(0, -2), carried.sums.movedim(0, -2))
    states, _ = scan(start, elements, decay, age=1)
    pairs = [as_tokens(x) for x in states]
    return States(*(past for past, _ in pairs)), States(*(future for _, future in pairs))


class Totals(NamedTuple):
    """Per token: the sums over all others, the weights of these and of its own term, the normaliser, y * 2^-24."""

    others: States
    others_lead: Tensor
    weight_others: Tensor
    weight_self: Tensor
    normaliser: Tensor
    scaled_y: Tensor


def evaluate(w: Tensor, u: Tensor, k: Tensor, v: Tensor, count: int) -> Totals:
    """The formula's two sums at every token; arguments in the arithmetic's dtype, k and v (B, T, C)."""
    decay, boost, key, value = w * EXPONENT_SCALE, u * EXPONENT_SCALE, k * EXPONENT_SCALE, v * VALUE_SCALE
    tokens = States(key, torch.zeros_like(key), torch.stack([value, torch.ones_like(value)]))
    past, future = both_ways(tokens, decay, count)
    others = merge(past, future, decay)
    leads, weight_others, weight_self = weigh(((others.key - key) - decay * others.distance) - boost)
    normaliser = others.sums[1] * weight_others + weight_self
    scaled_y = (others.sums[0] * weight_others + value * weight_self) / normaliser
    return Totals(others, leads, weight_others, weight_self, normaliser, scaled_y)


def slabs(k: Tensor) -> list[tuple[slice, slice]]:
    """Batch and channel ranges that are worked on one at a time; channels are independent, so they change no bit."""
    batch, length, channels = k.shape
    budget = SLAB_ELEMENTS.get(k.device.type, SLAB_ELEMENTS["cuda"])
    items = max(1, min(batch, budget // (length * min(channels, 64))))
    width = max(16, budget // (length * items))
    return [
        (slice(b, b + items), slice(c, c + width)) for b in range(0, batch, items) for c in range(0, channels, width)
    ]


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y (B, T, C) for w, u (C,) and k, v (B, T, C), all float32 or all float64."""
    y = torch.empty_like(k)
    limit = torch.finfo(k.dtype).max
    for b, c in slabs(k):
        scaled = evaluate(w[c], u[c], k[b, :, c], v[b, :, c], count=2).scaled_y
        y[b, :, c] = (scaled * (1 / VALUE_SCALE)).clamp_(
            -limit, limit
        )  # a mean of the largest numbers may round past them
    return y


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v for the gradient of y; arguments and results as in `forward`."""
    grad_w, grad_u = w.new_zeros(w.shape), u.new_zeros(u.shape)
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    for b, c in slabs(k):
        parts = slab_backward(w[c], u[c], k[b, :, c], v[b, :, c], grad_y[b, :, c])
        grad_w[c] += parts[0]
        grad_u[c] += parts[1]
        grad_k[b, :, c], grad_v[b, :, c] = parts[2:]
    return grad_w, grad_u, grad_k, grad_v


def slab_backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`backward` for one slab.

    The weight of token i in y_t is p = e^(k_i - w(|t-i|-1)) / D_t, so dv_i = sum_t p g_t and dk_i = sum_t p g_t (v_i -
    y_t): the same scan over tokens whose exponent is minus that of D_t. dw needs the sums weighted by distance instead.
    """
    decay, boost, key, value = w * EXPONENT_SCALE, u * EXPONENT_SCALE, k * EXPONENT_SCALE, v * VALUE_SCALE
    total = evaluate(w, u, k, v, count=4)
    share = grad_y / total.normaliser
    moment = (total.others.sums[2] - total.scaled_y * total.others.sums[3]) * total.weight_others
    grad_w = add_tokens(-share * moment) * (1 / VALUE_SCALE)
    grad_v = share * total.weight_self
    grad_k = grad_v * (value - total.scaled_y)
    grad_u = add_tokens(grad_k) * (1 / VALUE_SCALE)
    tokens = States(
        -torch.where(total.others_lead, total.others.key, key + boost),
        -total.others.distance.masked_fill(~total.others_lead, 0.0),
        torch.stack([share, share * total.scaled_y]),
    )
    del total, moment, share
    for others in both_ways(tokens, decay, count=2):
        exponent = (
            key + others.key
        ) - decay * others.distance  # <= 0 up to rounding: no weight exceeds its denominator
        weight = exp_scaled(exponent.clamp_(max=0))
        to_value = weight * others.sums[0]
        grad_k = grad_k + (value * to_value - weight * others.sums[1])
        grad_v = grad_v + to_value
    return grad_w, grad_u, grad_k * (1 / VALUE_SCALE), grad_v


def add_tokens(x: Tensor) -> Tensor:
    """(B, T, C) summed to (C,) in float64; after rounding back, the order of the additions hardly ever changes the result."""
    wide = x.dtype if x.device.type == "mps" else torch.float64  # Apple GPUs have no float64
    return x.sum(dim=(0, 1), dtype=wide).to(x.dtype)
