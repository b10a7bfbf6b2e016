"""Whole pictures through an engine: latents tile by tile, each analysed with a halo, and pixels a row of tiles at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.bitstream.container import Header
from hpcm_codec.engines.interface import Engine, Latents
from hpcm_codec.images import PixelSource
from hpcm_codec.tiles.grid import HALO_LATENTS, Rectangle, Tile, TileGrid
from hpcm_codec.tiles.windows import window_pixels, without_halo


def analysed_tiles(engine: Engine, pictures: Sequence[PixelSource]) -> Iterator[tuple[Tile, Latents]]:
    """Every tile of B pictures of one size with its latents before rounding, B×M×h×w."""
    height = pictures[0].height
    grid = TileGrid(pictures[0].width, height)
    for row in range(grid.rows):
        tiles = grid.row(row)
        area = tiles[0].with_halo(HALO_LATENTS).pixels
        bands = [picture.rows(area.top, min(area.bottom, height)) for picture in pictures]
        for tile in tiles:
            window = tile.with_halo(HALO_LATENTS)
            pixels = [window_pixels(band, area.top, window) for band in bands]
            yield tile, without_halo(engine.analyse(pixels), window, tile)


def synthesised_strips(
    engine: Engine, header: Header, area: Rectangle, window_latents: Callable[[Tile, bool], Latents]
) -> Iterator[NDArray[np.uint8]]:
    """Pixels of an area, one strip for every row of tiles. All pixels are made here.

    window_latents: of a tile (and whether it is the last in its row), the latents of the tile and its halo.
    """
    columns = header.grid.columns_of(area)
    for row in header.grid.rows_of(area):
        tiles = header.grid.row(row)[columns.start : columns.stop]
        band = tiles[0].visible_pixels.clipped(area)
        strip = np.empty((band.height, area.width, 1 if header.grey else 3), np.uint8)
        for tile in tiles:
            visible = tile.visible_pixels.clipped(area)
            origin = tile.with_halo(HALO_LATENTS).pixels
            strip[visible.moved(-band.top, -area.left).slices] = engine.synthesise(
                window_latents(tile, tile is tiles[-1]),
                header.quality_code,
                visible.moved(-origin.top, -origin.left).slices,
                header.grey,
            )
        yield strip
