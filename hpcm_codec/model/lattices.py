"""Taking a lattice's latents out of tensors and placing them back, with gradients; `schedule.Lattice` calls it."""

from __future__ import annotations

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


class _Take(torch.autograd.Function):
    """One zero-filled gradient for all pieces, where autograd's own slicing would make one for each."""

    @staticmethod
    def forward(ctx, plane: Tensor, lattice: Lattice) -> Tensor:
        ctx.lattice, ctx.shape = lattice, plane.shape
        packed = lattice.new_packed(plane)
        for source, target in lattice.pairs(plane, packed):
            target.copy_(source)
        return packed

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        plane = gradient.new_zeros(ctx.shape)
        for target, source in ctx.lattice.pairs(plane, gradient):
            target.copy_(source)
        return plane, None


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(ctx, packed: Tensor, base: Tensor, lattice: Lattice) -> Tensor:
        ctx.lattice = lattice
        plane = base.clone()
        for target, source in lattice.pairs(plane, packed):
            target.copy_(source)
        return plane

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        packed = ctx.lattice.new_packed(gradient)
        base = gradient.clone() if ctx.needs_input_grad[1] else None
        for index, (source, target) in enumerate(ctx.lattice.pairs(gradient, packed)):
            target.copy_(source)
            if base is not None:
                ctx.lattice.pieces[index].view(base).zero_()
        return packed, base, None
