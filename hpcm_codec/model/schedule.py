"""Which latents each of the 11 coding steps codes: index arithmetic on strided slices, nothing learned.

Latents live on planes of shape (..., M, h, w). The M channels fall into 8 equal groups. Three nested lattices, s1 in
s2 in s3, are coded coarse to fine; a step of a scale codes a regular sub-lattice of every group, so taking a step's
latents out of a plane and putting them back are strided copies with static shapes (HPCM, sections 3.2 and 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hpcm_codec.ops.fused_rate import Pieces, pieces_of

GROUPS = 8

# The eight pairs of positions (row, column) inside a 4x4 cell.
PATTERNS = (
    ((0, 0), (2, 2)),
    ((0, 2), (2, 0)),
    ((1, 1), (3, 3)),
    ((1, 3), (3, 1)),
    ((0, 1), (2, 3)),
    ((0, 3), (2, 1)),
    ((1, 0), (3, 2)),
    ((1, 2), (3, 0)),
)
# Row k, digit g: the pattern that step k of the full-resolution order codes in group g. Steps 0 and 1 make up s2.
STEP_PATTERNS = ("02461357", "13570246", "24603571", "35712460", "46025713", "57134602", "60247135", "71356024")
# Offset of group g (modulo 4) of the stride-2 lattice s2 inside the full plane.
S2_OFFSETS = ((0, 0), (1, 1), (0, 1), (1, 0))
# Offset of channel quarter q of the stride-2 lattice s1 inside s2.
S1_OFFSETS = ((0, 0), (0, 1), (1, 0), (1, 1))
# Steps of s2 after what s1 has coded: entry [step][quarter] indexes S1_OFFSETS.
S2_STEPS = ((3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))
# Steps of s1: the diagonal of the checkerboard that each channel half takes.
MAIN_DIAGONAL = ((0, 0), (1, 1))
OTHER_DIAGONAL = ((0, 1), (1, 0))


@dataclass(frozen=True)
class Piece:
    """Positions (row + i*stride, column + j*stride) of the channels first .. last-1."""

    first: int
    last: int
    row: int
    column: int
    stride: int

    def view(self, plane: Tensor) -> Tensor:
        """The piece of a plane (..., M, h, w), as a view."""
        return plane[..., self.first : self.last, self.row :: self.stride, self.column :: self.stride]


@dataclass(frozen=True)
class Lattice:
    """A set of latents made of disjoint pieces, packed in the order of its pieces, each channel-major then row-major.

    dense: True when every channel is in exactly one piece and all pieces have one size, so that the packed form is
    itself a plane (..., M, h/2, w/2); False for coding steps, whose packed form is a vector (..., n).
    """

    pieces: tuple[Piece, ...]
    dense: bool

    def take(self, plane: Tensor) -> Tensor:
        """Pack the lattice's latents of a plane (..., M, h, w) into a new tensor; differentiable."""
        return _Take.apply(plane, self)

    def place(self, packed: Tensor, base: Tensor) -> Tensor:
        """A copy of the plane `base` with the lattice's latents replaced by `packed`; differentiable in both."""
        return _Place.apply(packed, base, self)

    def count(self, height: int, width: int) -> int:
        """Number of latents of this lattice in a plane of that size."""
        return sum(
            (p.last - p.first) * len(range(p.row, height, p.stride)) * len(range(p.column, width, p.stride))
            for p in self.pieces
        )

    def fused(self, channels: int) -> Pieces:
        """The same for the operators of a fused training step, in planes of that many channels."""
        return pieces_of(tuple((p.first, p.last, p.row, p.column, p.stride) for p in self.pieces), channels)

    def pairs(self, plane: Tensor, packed: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Matching views of a plane and of its packed form."""
        start = 0
        for piece in self.pieces:
            view = piece.view(plane)
            if self.dense:
                yield view, packed[..., piece.first : piece.last, :, :]
            else:
                size = view.shape[-3] * view.shape[-2] * view.shape[-1]
                yield view, packed[..., start : start + size].unflatten(-1, view.shape[-3:])
                start += size

    def new_packed(self, plane: Tensor) -> Tensor:
        """Uninitialised memory for the packed form of a plane."""
        *batch, channels, height, width = plane.shape
        if self.dense:
            return plane.new_empty(*batch, channels, height // 2, width // 2)
        return plane.new_empty(*batch, self.count(height, width))


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


@dataclass(frozen=True)
class Scale:
    """One scale of the schedule: its steps, and where its plane lies in the next finer one (None for s3)."""

    name: str
    steps: tuple[Lattice, ...]
    cell_size: int
    inside: Lattice | None


@lru_cache(maxsize=8)
def scales(channels: int) -> tuple[Scale, Scale, Scale]:
    """The schedule (s1, s2, s3) for planes of that many channels, a multiple of 8."""
    group, quarter, half = channels // GROUPS, channels // 4, channels // 2

    def part(size: int, index: int, position: tuple[int, int], stride: int) -> Piece:
        return Piece(index * size, (index + 1) * size, position[0], position[1], stride)

    s1_steps = tuple(
        Lattice(
            tuple(part(half, side, position, 2) for side in range(2) for position in diagonals[side]),
            dense=False,
        )
        for diagonals in ((MAIN_DIAGONAL, OTHER_DIAGONAL), (OTHER_DIAGONAL, MAIN_DIAGONAL))
    )
    s2_steps = tuple(
        Lattice(tuple(part(quarter, q, S1_OFFSETS[row[q]], 2) for q in range(4)), dense=False) for row in S2_STEPS
    )
    s3_steps = tuple(
        Lattice(
            tuple(part(group, g, position, 4) for g in range(GROUPS) for position in PATTERNS[int(row[g])]),
            dense=False,
        )
        for row in STEP_PATTERNS[2:]
    )
    s1_in_s2 = Lattice(tuple(part(quarter, q, S1_OFFSETS[q], 2) for q in range(4)), dense=True)
    s2_in_s3 = Lattice(tuple(part(group, g, S2_OFFSETS[g % 4], 2) for g in range(GROUPS)), dense=True)
    return (
        Scale("s1", s1_steps, 2, s1_in_s2),
        Scale("s2", s2_steps, 2, s2_in_s3),
        Scale("s3", s3_steps, 4, None),
    )


def split(latents: Tensor) -> dict[str, Tensor]:
    """The planes of s1, s2 and s3 in latents (..., M, h, w): each scale's plane holds those of the coarser ones too."""
    s1, s2, s3 = scales(latents.shape[-3])
    assert s1.inside is not None and s2.inside is not None
    on_s2 = s2.inside.take(latents)
    return {s1.name: s1.inside.take(on_s2), s2.name: on_s2, s3.name: latents}


def merge(planes: dict[str, Tensor]) -> Tensor:
    """The full plane in which the positions of each scale take that scale's values: the inverse of `split`."""
    s1, s2, s3 = scales(planes["s3"].shape[-3])
    assert s1.inside is not None and s2.inside is not None
    return s2.inside.place(s1.inside.place(planes[s1.name], planes[s2.name]), planes[s3.name])
