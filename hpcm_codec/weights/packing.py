"""Weights in 9 to 12 bits: the form of matrices in a shipped checkpoint.

A row of a matrix holds all weights of one output of a layer (of one input, in a transposed convolution). It is stored as integers m of
that many bits and one exponent e; the weights are m·2^e. They are exact in float16, so an unpacked checkpoint is an ordinary float16
checkpoint, and the integers of the exact profile are computed from it as usual.

A row of K weights takes K bytes for the lowest eight bits of each (two's complement), then planes for the bits above: of one bit for 9, two
bits for 10, two and one for 11, four for 12. A plane of p bits packs n = 8/p weights into a byte: byte j has those of the weights j,
j + K/n, j + 2K/n, …, lowest first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpcm_codec.ops.powers import power_factors

PLANES = {9: (1,), 10: (2,), 11: (2, 1), 12: (4,)}  # bits of each plane above the lowest eight, lowest first
SMALLEST_EXPONENT = -24  # of float16
_LARGEST_VALUE = 65504.0  # of float16
INTEGERS_PREFIX, EXPONENTS_PREFIX = "packed.", "exponents."
_SMALLEST_MATRIX = 1024  # weights; packing smaller ones saves too little


def largest_integer(bits: int) -> int:
    """The largest magnitude of the integers: one less than two's complement allows, so that a row may change its sign."""
    return 2 ** (bits - 1) - 1


def packable(name: str, weight: Tensor) -> bool:
    """Whether a weight is a matrix or a kernel whose rows fill whole bytes in every plane."""
    large = weight.ndim >= 2 and weight.numel() >= _SMALLEST_MATRIX
    return large and name.endswith("weight") and weight[0].numel() % 8 == 0


def pack(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A weight N×…, finite → its integers uint8 N×(K·bits/8), K the length of a row, a multiple of 8, and exponents int8 N.

    Rounds to the nearest number that can be stored; values from `unpack` are stored unchanged. Raises ValueError for values beyond the
    range of float16.
    """
    rows = weight.detach().cpu().double().flatten(1)
    largest = rows.abs().amax(dim=1)
    if largest.max() > _LARGEST_VALUE:
        raise ValueError("weights that float16 does not hold")
    # largest = m · 2^e with ½ ≤ m < 1 is 2^(bits-1) · m integers of 2^(e-bits+1); one more where that exceeds the largest integer
    exponent = torch.frexp(largest)[1] - (bits - 1)
    exponent += (largest > largest_integer(bits) * power_factors(exponent, largest)).to(exponent.dtype)
    exponent = exponent.masked_fill(largest == 0, SMALLEST_EXPONENT).clamp_min(SMALLEST_EXPONENT)
    integers = (rows * power_factors(-exponent, rows)[:, None]).round().to(torch.int32)
    stored, done = [integers & 0xFF], 8
    for width in PLANES[bits]:
        parts = ((integers >> done) & (2**width - 1)).chunk(8 // width, dim=1)
        stored.append(sum((part << (width * n) for n, part in enumerate(parts)), torch.zeros_like(parts[0])))
        done += width
    return torch.cat(stored, dim=1).to(torch.uint8), exponent.to(torch.int8)


def unpack(packed: Tensor, exponents: Tensor, shape: tuple[int, ...], bits: int) -> Tensor:
    """The weight, float16, of that shape, from the result of `pack`; raises ValueError when the sizes do not match."""
    rows, length = shape[0], torch.Size(shape).numel() // max(1, shape[0])
    if packed.shape != (rows, length * bits // 8) or exponents.shape != (rows,) or length % 8:
        raise ValueError(f"packed weights do not fill {shape}")
    low, *planes = packed.split([length, *(length * width // 8 for width in PLANES[bits])], dim=1)
    integers, done = low.to(torch.int16), 8
    for width, plane in zip(PLANES[bits], planes, strict=True):
        for n, part in enumerate(integers.chunk(8 // width, dim=1)):
            part |= ((plane >> (width * n)) & (2**width - 1)).to(torch.int16) << done
        done += width
    above = 16 - bits  # bits of an int16 that its sign has to fill
    integers = (integers << above) >> above
    values = integers * power_factors(exponents.long(), packed.new_empty(0, dtype=torch.float32))[:, None]
    # Up to the exponent `above` no integer of so many bits is too large; beyond it the products have to be checked.
    too_large = exponents.max() > above and not values.abs().max() <= _LARGEST_VALUE
    if too_large or exponents.min() < SMALLEST_EXPONENT:
        raise ValueError("packed weights that float16 does not hold")
    return values.half().reshape(shape)


def pack_all(weights: dict[str, Tensor], bits: int) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The tensors that a checkpoint stores (large matrices packed, all others float16), and the shapes of the packed ones."""
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, weight in weights.items():
        if packable(name, weight):
            stored[INTEGERS_PREFIX + name], stored[EXPONENTS_PREFIX + name] = pack(weight, bits)
            shapes[name] = list(weight.shape)
        else:
            stored[name] = weight.to(torch.float16)
    return stored, shapes


def unpack_all(stored: dict[str, Tensor], shapes: dict[str, list[int]], bits: int) -> dict[str, Tensor]:
    """The weights from the result of `pack_all`; KeyError where a tensor is missing, ValueError where sizes do not match."""
    packed = {
        name: unpack(stored[INTEGERS_PREFIX + name], stored[EXPONENTS_PREFIX + name], tuple(shape), bits)
        for name, shape in shapes.items()
    }
    plain = {name: value for name, value in stored.items() if not name.startswith((INTEGERS_PREFIX, EXPONENTS_PREFIX))}
    return plain | packed
