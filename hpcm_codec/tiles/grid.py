"""Large pictures as a grid of tiles: pure arithmetic, part of the format (docs/bitstream.md, section 6).

A picture is extended by edge replication to multiples of 64 pixels. One such 64-pixel unit is 4 latents (a latent covers 16 pixels).
Each axis is cut into the fewest tiles of at most 16 units, as even as whole units allow, so no tile exceeds 1024×1024 pixels (64×64
latents). The context model never uses latents outside a tile; analysis and synthesis use a halo, through `Tile.with_halo`.

>>> grid = TileGrid(width=1500, height=700)
>>> [(tile.latents.width, tile.latents.height) for tile in grid]
[(48, 44), (48, 44)]
>>> window = grid[0].with_halo(8)
>>> window.latents, window.row_offset, window.column_offset
(Rectangle(top=0, left=0, bottom=44, right=56), 0, 0)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hpcm_codec.errors import UsageError

PIXELS_PER_LATENT = 16
PIXELS_PER_UNIT = 64  # the picture is extended to multiples of it: 4 latents, 1 hyper-latent
LATENTS_PER_UNIT = PIXELS_PER_UNIT // PIXELS_PER_LATENT
LARGEST_TILE_UNITS = 16  # 1024 pixels, 64 latents
# Latents around a tile that the transforms can depend on: eight 3×3 convolutions at 1/8, one at 1/16, and overlapping patches, rounded up;
# the staircase of the largest preset has eight at 1/8, two each at 1/4 and 1/2, and a 4×4 convolution.
HALO_LATENTS = 6


@dataclass(frozen=True)
class Rectangle:
    """Half-open rectangle: rows top .. bottom - 1, columns left .. right - 1, in pixels or latents as its owner states."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """(row slice, column slice), for indexing the last two axes of an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def scaled(self, factor: int) -> Rectangle:
        """The same area in a unit `factor` times smaller, e.g. latents to pixels with factor 16."""
        return Rectangle(self.top * factor, self.left * factor, self.bottom * factor, self.right * factor)

    def moved(self, down: int, right: int) -> Rectangle:
        """The same size elsewhere."""
        return Rectangle(self.top + down, self.left + right, self.bottom + down, self.right + right)

    def overlaps(self, other: Rectangle) -> bool:
        """Whether the two have any point in common."""
        return max(self.top, other.top) < min(self.bottom, other.bottom) and (
            max(self.left, other.left) < min(self.right, other.right)
        )

    def clipped(self, bounds: Rectangle) -> Rectangle:
        """The part inside `bounds`, which must overlap this rectangle."""
        return Rectangle(
            max(self.top, bounds.top),
            max(self.left, bounds.left),
            min(self.bottom, bounds.bottom),
            min(self.right, bounds.right),
        )


@dataclass(frozen=True)
class Window:
    """A tile with its halo, cut off at the borders of the extended picture.

    latents:                   the window, in latents of the whole picture.
    row_offset, column_offset: where the tile itself starts inside the window, in latents.
    """

    latents: Rectangle
    row_offset: int
    column_offset: int

    @property
    def pixels(self) -> Rectangle:
        """The window in pixels of the extended picture."""
        return self.latents.scaled(PIXELS_PER_LATENT)


@dataclass(frozen=True)
class Tile:
    """One tile of a `TileGrid`.

    index, row, column: its place, row-major from 0.
    latents:            its rectangle in latents of the extended picture; sides are multiples of 4, at most 64.
    picture_latents:    the rectangle of the whole extended picture, in latents.
    picture_pixels:     the rectangle of the picture before extension, in pixels.
    """

    index: int
    row: int
    column: int
    latents: Rectangle
    picture_latents: Rectangle
    picture_pixels: Rectangle

    @property
    def pixels(self) -> Rectangle:
        """The tile in pixels of the extended picture; sides are multiples of 64, at most 1024."""
        return self.latents.scaled(PIXELS_PER_LATENT)

    @property
    def visible_pixels(self) -> Rectangle:
        """The part of the tile that belongs to the picture itself; never empty."""
        return self.pixels.clipped(self.picture_pixels)

    def with_halo(self, halo_latents: int) -> Window:
        """The tile grown by `halo_latents` (≥ 0) on every side, cut off at the extended picture's borders."""
        if halo_latents < 0:
            raise ValueError(f"a halo cannot be negative: {halo_latents}")
        inner = self.latents
        grown = Rectangle(
            inner.top - halo_latents, inner.left - halo_latents, inner.bottom + halo_latents, inner.right + halo_latents
        ).clipped(self.picture_latents)
        return Window(grown, inner.top - grown.top, inner.left - grown.left)


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a picture of width×height pixels (each ≥ 1); iterating gives them row-major. Nothing is allocated per tile."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a picture has at least one pixel: {self.width}×{self.height}")

    @property
    def rows(self) -> int:
        return _tile_count(self.height)

    @property
    def columns(self) -> int:
        return _tile_count(self.width)

    @property
    def latents(self) -> Rectangle:
        """The extended picture, in latents."""
        return Rectangle(0, 0, _units(self.height) * LATENTS_PER_UNIT, _units(self.width) * LATENTS_PER_UNIT)

    @property
    def pixels(self) -> Rectangle:
        """The extended picture, in pixels: both sides are multiples of 64."""
        return self.latents.scaled(PIXELS_PER_LATENT)

    def region(self, x: int, y: int, width: int, height: int) -> Rectangle:
        """A region of the picture, in pixels; raises UsageError when it is empty or not inside the picture."""
        if width < 1 or height < 1:
            raise UsageError(f"a region of {width}×{height} pixels is empty")
        if x < 0 or y < 0 or x + width > self.width or y + height > self.height:
            raise UsageError(
                f"the region {width}×{height} at {x},{y} is not inside the picture of {self.width}×{self.height} pixels",
                advice="choose X from 0, Y from 0, X + W and Y + H up to the picture's sides",
            )
        return Rectangle(y, x, y + height, x + width)

    def row(self, row: int) -> list[Tile]:
        """The tiles of a row, left to right."""
        return [self[row * self.columns + column] for column in range(self.columns)]

    def rows_of(self, area: Rectangle) -> range:
        """The rows of tiles that an area (in pixels) touches."""
        return _positions(self.height, area.top, area.bottom)

    def columns_of(self, area: Rectangle) -> range:
        """The columns of tiles that an area (in pixels) touches."""
        return _positions(self.width, area.left, area.right)

    def __len__(self) -> int:
        return self.rows * self.columns

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tile:
        """Tile number `index` in row-major order; IndexError outside 0 .. len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        row, column = divmod(index, self.columns)
        top, bottom = _tile_span(self.height, row)
        left, right = _tile_span(self.width, column)
        return Tile(
            index=index,
            row=row,
            column=column,
            latents=Rectangle(top, left, bottom, right).scaled(LATENTS_PER_UNIT),
            picture_latents=self.latents,
            picture_pixels=Rectangle(0, 0, self.height, self.width),
        )


def _units(size: int) -> int:
    return -(-size // PIXELS_PER_UNIT)


def _tile_count(size: int) -> int:
    return -(-_units(size) // LARGEST_TILE_UNITS)


def _positions(size: int, start: int, stop: int) -> range:
    """Numbers of the tiles along an axis of `size` pixels that the pixels start .. stop - 1 touch."""
    spans = ((number, *_tile_span(size, number)) for number in range(_tile_count(size)))
    touched = [
        number for number, first, end in spans if first * PIXELS_PER_UNIT < stop and start < end * PIXELS_PER_UNIT
    ]
    return range(touched[0], touched[-1] + 1)


def _tile_span(size: int, number: int) -> tuple[int, int]:
    """First and past-the-last unit of the tile `number` along an axis of `size` pixels."""
    units, tiles = _units(size), _tile_count(size)
    return number * units // tiles, (number + 1) * units // tiles
