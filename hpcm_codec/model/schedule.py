"""Which latents each of the 11 coding steps codes: index arithmetic on strided slices, nothing learned.

Latents live on planes of shape (..., M, h, w). The M channels fall into 8 equal groups. Three nested lattices, s1 in
s2 in s3, are coded coarse to fine; a step of a scale codes a regular sub-lattice of every group, so taking a step's
latents out of a plane and putting them back are strided copies with static shapes (HPCM, sections 3.2 and 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hpcm_codec.ops.fused_rate import Pieces

Array = Any  # a numpy array or a torch tensor

GROUPS = 8

# The eight pairs of places (row, column) inside a 4x4 cell.
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
    """Places (row + i*stride, column + j*stride) of the channels first .. last-1."""

    first: int
    last: int
    row: int
    column: int
    stride: int

    def view(self, plane: Array) -> Array:
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

    def take(self, plane: Array) -> Array:
        """Pack the lattice's latents of a plane (..., M, h, w) into a new array; of tensors, differentiable."""
        if not isinstance(plane, np.ndarray):
            from hpcm_codec.model import lattices

            return lattices.take(plane, self)
        packed = self.new_packed(plane)
        for source, target in self.pairs(plane, packed):
            target[...] = source
        return packed

    def place(self, packed: Array, base: Array) -> Array:
        """A copy of the plane `base` with the lattice's latents replaced by `packed`; of tensors, differentiable in both."""
        if not isinstance(base, np.ndarray):
            from hpcm_codec.model import lattices

            return lattices.place(packed, base, self)
        plane = base.copy(order="K")
        for target, source in self.pairs(plane, packed):
            target[...] = source
        return plane

    def count(self, height: int, width: int) -> int:
        """Number of latents of this lattice in a plane of that size."""
        return sum(
            (p.last - p.first) * len(range(p.row, height, p.stride)) * len(range(p.column, width, p.stride))
            for p in self.pieces
        )

    def fused(self, channels: int) -> Pieces:
        """The same for the operators of a fused training step, in planes of that many channels."""
        from hpcm_codec.ops.fused_rate import pieces_of

        return pieces_of(tuple((p.first, p.last, p.row, p.column, p.stride) for p in self.pieces), channels)

    def pairs(self, plane: Array, packed: Array) -> Iterator[tuple[Array, Array]]:
        """Matching views of a plane and of its packed form."""
        start = 0
        for piece in self.pieces:
            view = piece.view(plane)
            if self.dense:
                yield view, packed[..., piece.first : piece.last, :, :]
            else:
                size = view.shape[-3] * view.shape[-2] * view.shape[-1]
                part = packed[..., start : start + size]
                yield view, part.reshape(*part.shape[:-1], *view.shape[-3:])
                start += size

    def new_packed(self, plane: Array) -> Array:
        """Uninitialised memory for the packed form of a plane."""
        *batch, channels, height, width = plane.shape
        if isinstance(plane, np.ndarray):
            if self.dense:  # channels last, as numpy planes are
                return np.moveaxis(np.empty((*batch, height // 2, width // 2, channels), plane.dtype), -1, -3)
            return np.empty((*batch, self.count(height, width)), plane.dtype)
        if self.dense:
            return plane.new_empty(*batch, channels, height // 2, width // 2)
        return plane.new_empty(*batch, self.count(height, width))


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

    def part(size: int, index: int, place: tuple[int, int], stride: int) -> Piece:
        return Piece(index * size, (index + 1) * size, place[0], place[1], stride)

    s1_steps = tuple(
        Lattice(
            tuple(part(half, side, place, 2) for side in range(2) for place in diagonals[side]),
            dense=False,
        )
        for diagonals in ((MAIN_DIAGONAL, OTHER_DIAGONAL), (OTHER_DIAGONAL, MAIN_DIAGONAL))
    )
    s2_steps = tuple(
        Lattice(tuple(part(quarter, q, S1_OFFSETS[row[q]], 2) for q in range(4)), dense=False) for row in S2_STEPS
    )
    s3_steps = tuple(
        Lattice(
            tuple(part(group, g, place, 4) for g in range(GROUPS) for place in PATTERNS[int(row[g])]),
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


def split(latents: Array) -> dict[str, Array]:
    """The planes of s1, s2 and s3 in latents (..., M, h, w): each scale's plane holds those of the coarser ones too."""
    s1, s2, s3 = scales(latents.shape[-3])
    assert s1.inside is not None and s2.inside is not None
    on_s2 = s2.inside.take(latents)
    return {s1.name: s1.inside.take(on_s2), s2.name: on_s2, s3.name: latents}


def merge(planes: dict[str, Array]) -> Array:
    """The full plane in which the places of each scale take that scale's values: the inverse of `split`."""
    s1, s2, s3 = scales(planes["s3"].shape[-3])
    assert s1.inside is not None and s2.inside is not None
    return s2.inside.place(s1.inside.place(planes[s1.name], planes[s2.name]), planes[s3.name])
