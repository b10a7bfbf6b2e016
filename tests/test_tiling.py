"""The tile grid is part of the format: these numbers can never change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcm_codec.tiles.grid import Rectangle, TileGrid

side = st.integers(1, 6000)


@pytest.mark.parametrize(
    ("size", "pixels_per_tile"),
    [
        (1, [64]),
        (64, [64]),
        (65, [128]),
        (1024, [1024]),
        (1025, [512, 576]),
        (1100, [576, 576]),
        (2048, [1024, 1024]),
        (2049, [704, 704, 704]),
        (4000, [960, 1024, 1024, 1024]),
    ],
)
def test_known_sizes_are_cut_the_way_the_format_says(size: int, pixels_per_tile: list[int]) -> None:
    assert [tile.pixels.width for tile in TileGrid(size, 1)] == pixels_per_tile
    assert [tile.pixels.height for tile in TileGrid(1, size)] == pixels_per_tile


@given(side, side)
def test_tiles_cover_the_extended_picture_once_and_row_major(width: int, height: int) -> None:
    grid = TileGrid(width, height)
    covered = np.zeros((grid.latents.height, grid.latents.width), dtype=int)
    for index, tile in enumerate(grid):
        assert (tile.index, tile.row * grid.columns + tile.column) == (index, index)
        covered[tile.latents.slices] += 1
    assert (covered == 1).all()
    assert len(list(grid)) == len(grid) == grid.rows * grid.columns


@given(side, side)
def test_no_tile_exceeds_1024_pixels_and_sizes_differ_by_one_unit_at_most(width: int, height: int) -> None:
    grid = TileGrid(width, height)
    for sides in ([tile.latents.width for tile in grid], [tile.latents.height for tile in grid]):
        assert max(sides) <= 64
        assert max(sides) - min(sides) <= 4
        assert all(length % 4 == 0 for length in sides)


@given(side, side)
def test_the_picture_is_extended_by_less_than_64_pixels(width: int, height: int) -> None:
    extended = TileGrid(width, height).pixels
    assert 0 <= extended.width - width < 64 and 0 <= extended.height - height < 64
    assert extended.width % 64 == 0 and extended.height % 64 == 0


@given(side, side)
def test_visible_parts_of_the_tiles_cover_the_picture_once(width: int, height: int) -> None:
    visible = [tile.visible_pixels for tile in TileGrid(width, height)]
    assert all(part.width > 0 and part.height > 0 for part in visible)
    assert sum(part.width * part.height for part in visible) == width * height


@given(side, side, st.integers(0, 100), st.data())
def test_a_halo_stays_inside_the_picture_and_knows_where_its_tile_is(
    width: int, height: int, halo: int, data: st.DataObject
) -> None:
    grid = TileGrid(width, height)
    tile = grid[data.draw(st.integers(0, len(grid) - 1))]
    window = tile.with_halo(halo)
    numbered = np.arange(grid.latents.height * grid.latents.width).reshape(grid.latents.height, grid.latents.width)
    inside = numbered[window.latents.slices][
        window.row_offset : window.row_offset + tile.latents.height,
        window.column_offset : window.column_offset + tile.latents.width,
    ]
    assert (inside == numbered[tile.latents.slices]).all()
    assert window.latents.clipped(grid.latents) == window.latents
    assert window.pixels == window.latents.scaled(16)
    for grown, own, limit in (
        (-window.latents.top, -tile.latents.top, 0),
        (window.latents.right, tile.latents.right, grid.latents.right),
    ):
        assert grown == min(own + halo, limit)


def test_a_grid_of_a_gigantic_picture_costs_nothing_until_it_is_walked() -> None:
    grid = TileGrid(2**31 - 1, 2**31 - 1)
    last = grid[len(grid) - 1]
    assert (last.pixels.right, last.pixels.bottom) == (2**31, 2**31)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        TileGrid(0, 5)
    with pytest.raises(ValueError, match="negative"):
        TileGrid(5, 5)[0].with_halo(-1)
    with pytest.raises(IndexError):
        TileGrid(5, 5)[1]


def test_a_rectangle_indexes_the_last_two_axes() -> None:
    assert np.zeros((3, 10, 20))[(..., *Rectangle(1, 2, 5, 9).slices)].shape == (3, 4, 7)
