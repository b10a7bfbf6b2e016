"""Taking a lattice's latents out of tensors and placing them back, with gradients; `schedule.Lattice` calls it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Lattice = Any  # a `schedule.Lattice`, which imports this module when it needs it


def take(plane: Tensor, lattice: Lattice) -> Tensor:
    """See `Lattice.take`."""
    return _Take.apply(plane, lattice)


def place(packed: Tensor, base: Tensor, lattice: Lattice) -> Tensor:
    """See `Lattice.place`."""
    return _Place.apply(packed, base, lattice)


@lru_cache(maxsize=64)
def mask(lattice: Lattice, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Where the latents of a lattice lie in planes M×h×w: bool, 1×M×h×w, channels last."""
    inside = torch.zeros(1, *shape, dtype=torch.bool, device=device)
    for piece in lattice.pieces:
        piece.view(inside).fill_(True)
    return inside.contiguous(memory_format=torch.channels_last)


class _Take(torch.autograd.Function):
    """One zero-filled gradient for all pieces, where autograd's own slicing would make one for each."""

    @staticmethod
    def forward(ctx, plane: Tensor, lattice: Lattice) -> Tensor:
        ctx.lattice, ctx.shape, ctx.stride = lattice, plane.shape, plane.stride()
        return _taken(plane, lattice)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        plane = gradient.new_empty_strided(ctx.shape, _dense_stride(ctx.shape, ctx.stride)).zero_()
        _put(plane, gradient, ctx.lattice)
        return plane, None


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(ctx, packed: Tensor, base: Tensor, lattice: Lattice) -> Tensor:
        ctx.lattice = lattice
        plane = base.clone()
        _put(plane, packed, lattice)
        return plane

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        packed = _taken(gradient, ctx.lattice)
        if not ctx.needs_input_grad[1]:
            return packed, None, None
        base = gradient.clone()
        _put(base, torch.zeros_like(packed), ctx.lattice)
        return packed, base, None


def _taken(plane: Tensor, lattice: Lattice) -> Tensor:
    """The packed form of a plane, new memory."""
    packed = lattice.new_packed(plane)
    if _by_index(plane):
        items = plane if _is_dense(plane) else plane.contiguous()
        index = _positions(lattice, items.shape[1:], items.stride()[1:], plane.device)
        torch.index_select(_items(items), 1, index, out=_items(packed))
        return packed
    for source, target in lattice.pairs(plane, packed):
        target.copy_(source)
    return packed


def _put(plane: Tensor, packed: Tensor, lattice: Lattice) -> None:
    """Write packed latents to their places in a plane."""
    if _by_index(plane) and _is_dense(plane):
        index = _positions(lattice, plane.shape[1:], plane.stride()[1:], plane.device)
        _items(plane).index_copy_(1, index, packed.reshape(packed.shape[0], -1).to(plane.dtype))
        return
    for target, source in lattice.pairs(plane, packed):
        target.copy_(source)


# On a GPU a copy of each piece costs a launch, up to 16 of them for a step; an index moves all at once.
def _by_index(plane: Tensor) -> bool:
    return plane.device.type == "cuda" and plane.ndim > 3


def _items(x: Tensor) -> Tensor:
    """B×n: what each item of a batch holds, in the order of memory."""
    count = x[0].numel()
    return x.as_strided((x.shape[0], count), (count, 1))


def _is_dense(x: Tensor) -> bool:
    """Whether the items of a batch lie one behind the other, each without gaps."""
    return x.stride() == _dense_stride(x.shape, x.stride())


def _dense_stride(shape: torch.Size, stride: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor without gaps whose dimensions lie in the same order in memory, the first outermost."""
    dense, size = [0] * len(shape), 1
    for dimension in sorted(range(1, len(shape)), key=lambda d: (stride[d], -d)):
        dense[dimension] = size
        size *= shape[dimension]
    dense[0] = size
    return tuple(dense)


@lru_cache(maxsize=256)
def _positions(lattice: Lattice, shape: torch.Size, stride: tuple[int, ...], device: torch.device) -> Tensor:
    """Where an item's latents lie in its memory, in the order of the packed form: int64, n."""
    offsets = torch.zeros(shape, dtype=torch.int64)
    for dimension, step in enumerate(stride):
        steps = step * torch.arange(shape[dimension])
        offsets += steps.reshape(-1, *(1 for _ in shape[dimension + 1 :]))
    return _taken(offsets, lattice).flatten().to(device)
