"""Holds the decoded latents of only the tiles around the one that is being synthesised, for pictures of any size.

A picture is synthesised tile by tile, row by row. Each tile's window includes a few latents of its neighbours (`HALO_LATENTS`), so
`Neighbourhood` decodes a tile when the first window needs it and releases it after the last one. Of a finished tile it keeps only the
rows that the tiles below need. At most one row of tiles and three tiles more are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hpcm_codec.tiles.grid import HALO_LATENTS, PIXELS_PER_LATENT, Rectangle, Tile, TileGrid


def latents_seen(region: Rectangle, grid: TileGrid) -> Rectangle:
    """The latents that the pixels of a region depend on: those over it, and the halo around them."""
    first_row, first_column = region.top // PIXELS_PER_LATENT, region.left // PIXELS_PER_LATENT
    past_row, past_column = -(-region.bottom // PIXELS_PER_LATENT), -(-region.right // PIXELS_PER_LATENT)
    return Rectangle(
        first_row - HALO_LATENTS, first_column - HALO_LATENTS, past_row + HALO_LATENTS, past_column + HALO_LATENTS
    ).clipped(grid.latents)


def tiles_needed(area: Rectangle, grid: TileGrid, seen: Rectangle) -> Iterator[Tile]:
    """The tiles that the windows of an area (in pixels) are made of, each once, in the order in which `Neighbourhood` decodes them."""
    known: set[int] = set()
    for row in grid.rows_of(area):
        for column in grid.columns_of(area):
            for tile in _around(grid[row * grid.columns + column], grid, seen):
                if tile.index not in known:
                    known.add(tile.index)
                    yield tile
        known = {index for index in known if index // grid.columns >= row}  # tiles above are not requested again


def _around(tile: Tile, grid: TileGrid, seen: Rectangle) -> Iterator[Tile]:
    """The tiles in the `seen` part of a tile's window, the tile itself included."""
    wanted = tile.with_halo(HALO_LATENTS).latents.clipped(seen).scaled(PIXELS_PER_LATENT)
    for row in grid.rows_of(wanted):
        for column in grid.columns_of(wanted):
            yield grid[row * grid.columns + column]


Latents = Any  # an engine's array 1×M×h×w, which can be sliced and assigned to


class Neighbourhood:
    """The latents of windows, which must be requested row by row, left to right.

    decode: returns a tile's decoded latents, 1×M×h×w; called once for each tile that a window needs (see `tiles_needed`), for no other.
    seen:   a rectangle in latents. Latents outside it do not influence the requested pixels; they are zero in the windows.
    zeros:  returns latents of zeros, B×M×h×w, for B, h and w.
    """

    def __init__(
        self,
        grid: TileGrid,
        decode: Callable[[Tile], Latents],
        seen: Rectangle,
        zeros: Callable[[int, int, int], Latents],
    ) -> None:
        self._grid, self._decode, self._seen, self._zeros = grid, decode, seen, zeros
        self._held: dict[int, tuple[Tile, Rectangle, Latents]] = {}  # with the rectangle that is still kept

    def window(self, tile: Tile, last_in_row: bool) -> Latents:
        """The latents of a tile and its halo, 1×M×h×w. last_in_row: no window further right will be requested."""
        area = tile.with_halo(HALO_LATENTS).latents
        wanted = area.clipped(self._seen)
        filled = self._zeros(1, area.height, area.width)
        for neighbour in _around(tile, self._grid, self._seen):
            kept, latents = self._latents_of(neighbour)
            part = neighbour.latents.clipped(wanted)
            source = latents[(..., *part.moved(-kept.top, -kept.left).slices)]
            filled[(..., *part.moved(-area.top, -area.left).slices)] = source
        self._forget(tile, last_in_row)
        return filled

    def _latents_of(self, tile: Tile) -> tuple[Rectangle, Latents]:
        if tile.index not in self._held:
            self._held[tile.index] = (tile, tile.latents, self._decode(tile))
        return self._held[tile.index][1:]

    def _forget(self, done: Tile, last_in_row: bool) -> None:
        """Release what no later window needs: tiles of the row above, and all but the last rows of this row's."""
        for index, (tile, kept, latents) in list(self._held.items()):
            if tile.row > done.row or (tile.column >= done.column and not last_in_row):
                continue
            if tile.row < done.row:
                del self._held[index]
            elif kept.height > HALO_LATENTS:
                tail = Rectangle(kept.bottom - HALO_LATENTS, kept.left, kept.bottom, kept.right)
                copy = self._zeros(1, tail.height, tail.width)  # a view would keep the whole tile in memory
                copy[...] = latents[..., -HALO_LATENTS:, :]
                self._held[index] = (tile, tail, copy)
