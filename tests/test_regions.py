"""Parts of pictures and coarser pictures: regions are crops to the last bit, scales are what a cut file shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import hpcm_codec
from conftest import small_photograph, some_in_every_run
from hpcm_codec.bitstream import container
from hpcm_codec.cli.main import main
from hpcm_codec.codec import Codec
from hpcm_codec.constants import SCALES
from hpcm_codec.errors import CorruptStreamError, UsageError
from hpcm_codec.images import Picture
from hpcm_codec.model.config import PRESETS
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.tiles.bands import Neighbourhood, latents_seen, tiles_needed
from hpcm_codec.tiles.grid import HALO_LATENTS, Rectangle, Tile, TileGrid

WIDTH, HEIGHT = 1130, 1040  # 2×2 tiles: columns end at 576, rows at 512


def hpcm(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def four_tiles(codec: Codec) -> tuple[bytes, Picture]:
    """A file of 2×2 tiles with transparency and metadata, and what it decodes to."""
    alpha = np.random.default_rng(0).integers(250, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    data = codec.encode(Picture(small_photograph(WIDTH, HEIGHT), alpha, icc=b"profile", xmp=b"<x/>"), 60)
    return data, codec.decode(data)


def counting(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the tiles that are decoded from now on."""
    decoded: list[int] = []
    plain = codec._decode_tile

    def noting(tile: Tile, *rest):
        decoded.append(tile.index)
        return plain(tile, *rest)

    monkeypatch.setattr(codec, "_decode_tile", noting)
    return decoded


@pytest.mark.parametrize(
    ("region", "tiles"),
    [
        ((100, 200, 300, 150), [0]),  # inside a tile
        ((700, 620, 1, 1), [3]),
        ((468, 0, 12, 20), [0]),  # 96 pixels from the border, and 95
        ((469, 0, 12, 20), [0, 1]),
        ((540, 460, 90, 100), [0, 1, 2, 3]),  # over the corner of four
        ((0, 505, 1130, 20), [0, 1, 2, 3]),
        ((1129, 1039, 1, 1), [3]),
    ],
)
def test_a_region_is_the_crop_of_the_whole_from_no_more_tiles_than_it_sees(
    codec: Codec, four_tiles, monkeypatch: pytest.MonkeyPatch, region, tiles
) -> None:
    data, whole = four_tiles
    decoded = counting(codec, monkeypatch)
    part = codec.decode_region(data, region)
    x, y, width, height = region
    assert np.array_equal(part.pixels, whole.pixels[y : y + height, x : x + width])
    assert whole.alpha is not None and part.alpha is not None
    assert np.array_equal(part.alpha, whole.alpha[y : y + height, x : x + width])
    assert (part.icc, part.xmp) == (whole.icc, whole.xmp)
    assert sorted(decoded) == tiles


def test_the_region_of_everything_is_the_picture_and_every_tile_is_decoded_once(
    codec: Codec, four_tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, whole = four_tiles
    decoded = counting(codec, monkeypatch)
    assert np.array_equal(codec.decode_region(data, (0, 0, WIDTH, HEIGHT)).pixels, whole.pixels)
    assert sorted(decoded) == [0, 1, 2, 3]


def test_regions_of_grey_pictures_and_at_coarse_scales_are_crops_too(codec: Codec) -> None:
    data = codec.encode(Picture(small_photograph(1100, 70)[..., :1].copy()), 30)
    for scale in SCALES:
        whole = codec.decode(data, scale=scale)
        part = codec.decode_region(data, (500, 10, 200, 50), scale=scale)
        assert np.array_equal(part.pixels, whole.pixels[10:60, 500:700])


@pytest.mark.parametrize(
    "region", [(-1, 0, 5, 5), (0, -1, 5, 5), (92, 0, 5, 5), (0, 60, 5, 5), (0, 0, 0, 5), (96, 64, 1, 1)]
)
def test_regions_outside_the_picture_are_refused(codec: Codec, stream: bytes, region) -> None:
    with pytest.raises(UsageError, match="region"):
        codec.decode_region(stream, region)


def test_the_command_and_the_function_decode_regions(codec: Codec, compressed: Path, stream: bytes) -> None:
    out = compressed.with_name("part.png")
    done = hpcm("decode", compressed, "-o", out, "--region", "10,20,30,40")
    assert done.exit_code == 0 and "30×40" in done.stderr
    expected = codec.decode(stream).pixels[20:60, 10:40]
    assert np.array_equal(np.asarray(Image.open(out)), expected)
    assert np.array_equal(np.asarray(hpcm_codec.decode(stream, region=(10, 20, 30, 40), device="cpu")), expected)
    for region, reason in (
        ("0,0,97,64", "not inside the picture of 96×64"),
        ("1,2,3", "X,Y,W,H"),
        ("0,0,0,1", "empty"),
    ):
        done = hpcm("decode", compressed, "-f", "-o", out, "--region", region)
        assert done.exit_code == 2 and reason in done.stderr


@pytest.mark.parametrize("name", some_in_every_run(PRESETS, ("hpcm-base", "phase1-lite", "phase4-lite")))
def test_the_synthesis_sees_no_further_than_the_halo(name: str) -> None:
    config = PRESETS[name]
    torch.manual_seed(0)
    model = HPCM(config).eval()
    latents = torch.zeros(1, config.latent_channels, 16, 16, requires_grad=True)
    rate = model.rate_at(float(config.rate_levels - 1) / 2)
    row, column = 6 * 16, 6 * 16  # the first pixel of the latent (6, 6)
    model.synthesise(latents, rate)[0, :, row : row + 16, column : column + 16].abs().sum().backward()
    assert latents.grad is not None
    rows, columns = latents.grad[0].abs().sum(0).nonzero(as_tuple=True)
    assert min(rows.min(), columns.min()) >= 6 - HALO_LATENTS and max(rows.max(), columns.max()) <= 6 + HALO_LATENTS


@pytest.mark.parametrize("size", [(64, 64), (3000, 2500), (2100, 5000), (70, 3000)])
def test_windows_are_made_of_few_tiles_held_at_a_time(size: tuple[int, int]) -> None:
    grid = TileGrid(*size)
    whole = torch.arange(grid.latents.width * grid.latents.height, dtype=torch.float32)
    whole = whole.reshape(1, 1, grid.latents.height, grid.latents.width)
    decoded: list[int] = []

    def decode(tile: Tile) -> torch.Tensor:
        decoded.append(tile.index)
        return whole[(..., *tile.latents.slices)].clone()

    around = Neighbourhood(grid, decode, grid.latents, lambda *sides: torch.zeros(sides[0], 1, *sides[1:]))
    for tile in grid:
        window = around.window(tile, last_in_row=tile.column == grid.columns - 1)
        assert torch.equal(window, whole[(..., *tile.with_halo(HALO_LATENTS).latents.slices)])
        whole_tiles = sum(kept.height > HALO_LATENTS for _, kept, _ in around._held.values())
        assert whole_tiles <= grid.columns + 3
    assert sorted(decoded) == list(range(len(grid)))
    assert decoded == [tile.index for tile in tiles_needed(grid[0].picture_pixels, grid, grid.latents)]


def test_a_region_sees_its_halo_and_nothing_beyond_the_picture() -> None:
    grid = TileGrid(400, 300)
    assert latents_seen(Rectangle(0, 0, 1, 1), grid) == Rectangle(0, 0, 7, 7)
    assert latents_seen(Rectangle(160, 200, 177, 400), grid) == Rectangle(4, 6, 18, 28)


# ------------------------------------------------------------------------------------------------------------------ scales


def cut_after(data: bytes, scale: str) -> bytes:
    """The file without the chunks of finer scales."""
    last = [chunk for chunk in container.describe_stream(data) if chunk.name.startswith(f"{scale} of tile")][-1]
    return data[: last.offset + last.size]


@pytest.mark.parametrize("scale", ["hyper", "s1", "s2"])
def test_a_scale_is_what_a_file_cut_there_shows(codec: Codec, stream: bytes, scale: str) -> None:
    cut = cut_after(stream, scale)
    shown = codec.decode(cut, partial=True)
    for data in (stream, cut, cut + b"\0" * 3):  # the finer chunks may be whole, missing, damaged
        asked = codec.decode(data, scale=scale)
        assert np.array_equal(asked.pixels, shown.pixels) and not asked.notices
    assert not np.array_equal(shown.pixels, codec.decode(stream).pixels)
    assert np.array_equal(np.asarray(hpcm_codec.decode(cut, scale=scale, device="cpu")), shown.pixels)


def test_a_scale_that_has_not_arrived_is_refused_unless_partial(codec: Codec, stream: bytes) -> None:
    cut = cut_after(stream, "s1")
    with pytest.raises(CorruptStreamError, match="cut short"):
        codec.decode(cut, scale="s2")
    assert np.array_equal(codec.decode(cut, partial=True, scale="s2").pixels, codec.decode(cut, scale="s1").pixels)
    with pytest.raises(UsageError, match="there is no scale 's4'"):
        codec.decode(stream, scale="s4")


def test_the_command_decodes_scales(codec: Codec, compressed: Path, stream: bytes) -> None:
    out = compressed.with_name("coarse.png")
    compressed.write_bytes(cut_after(stream, "s1"))
    assert hpcm("decode", compressed, "-o", out).exit_code == 3
    assert hpcm("decode", compressed, "-o", out, "--scale", "s1").exit_code == 0
    assert np.array_equal(np.asarray(Image.open(out)), codec.decode(stream, scale="s1").pixels)


def test_info_lists_the_scales_of_a_file(compressed: Path, four_tiles) -> None:
    data, _ = four_tiles
    path = compressed.with_name("large.hpcm")
    for content, there, words in (
        (data, [4, 4, 4, 4], "hyper, s1, s2, s3 of all tiles"),
        (cut_after(data, "s1") + b"\0", [4, 4, 0, 0], "hyper, s1 of all tiles; no s2, s3"),
        (data[:-1], [4, 4, 4, 3], "hyper, s1, s2 of all tiles; s3 of 3 of 4 tiles"),
    ):
        path.write_bytes(content)
        reported = hpcm("info", path)
        assert words in reported.stdout and reported.exit_code == (0 if content == data else 3)
        assert list(json.loads(hpcm("info", "--json", path).stdout)["scales"].values()) == there
