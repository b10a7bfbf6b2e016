"""Pixels and latents of a tile's window, cut out of a picture's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.tiles.grid import Tile, TileGrid, Window

Latents = Any  # an engine's array B×M×h×w, which can be sliced


def window_pixels(band: NDArray[np.uint8], top: int, window: Window) -> NDArray[np.uint8]:
    """The window's pixels, h×w×C; outside the picture its last row and column are repeated.

    band: rows of the picture from `top` on, at least those that the window has in the picture.
    """
    area = window.pixels
    rows = np.minimum(np.arange(area.top, area.bottom) - top, band.shape[0] - 1)
    columns = np.minimum(np.arange(area.left, area.right), band.shape[1] - 1)
    return band[rows[:, None], columns[None, :]]


def tiles_of(latents: Latents, width: int, height: int) -> Iterator[tuple[Tile, Latents]]:
    """Every tile of a picture of width×height pixels with its part of the picture's latents."""
    for tile in TileGrid(width, height):
        yield tile, latents[(..., *tile.latents.slices)]


def without_halo(latents: Latents, window: Window, tile: Tile) -> Latents:
    """The tile's own latents, cut out of its window's."""
    top, left = window.row_offset, window.column_offset
    return latents[..., top : top + tile.latents.height, left : left + tile.latents.width]
