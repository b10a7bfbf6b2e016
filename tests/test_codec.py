"""The staircase both ways, on real photographs where they are at hand and on odd sizes everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import torch_engine
from hpcm_codec.bitstream import container
from hpcm_codec.codec import Codec
from hpcm_codec.errors import CorruptStreamError, UnsupportedError, UsageError
from hpcm_codec.images import Picture, read_picture
from hpcm_codec.tiles.grid import HALO_LATENTS, TileGrid


def photograph(height: int, width: int, components: int = 3) -> Picture:
    """A smooth seeded picture with some texture."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(1, components, 9, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    noisy = smooth + 0.02 * torch.randn(smooth.shape, generator=generator)
    return Picture((noisy.clamp(0, 1) * 255).round().byte()[0].permute(1, 2, 0).contiguous().numpy())


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((first.astype(float) - second.astype(float)) ** 2)))


@pytest.mark.parametrize("size", [(1, 1), (1, 257), (300, 1), (63, 65), (64, 64), (100, 150)])
@pytest.mark.parametrize("components", [1, 3])
def test_any_size_decodes_to_the_encoders_own_reconstruction(
    codec: Codec, size: tuple[int, int], components: int
) -> None:
    picture = photograph(size[0], size[1], components)
    encoded = codec.encode_with_latents(picture, 60)
    decoded = codec.decode(encoded.data)
    assert decoded.pixels.shape == picture.pixels.shape
    assert np.array_equal(decoded.pixels, codec.reconstruct(encoded.latents, container.parse_header(encoded.data)))


def test_quality_buys_fidelity_with_bytes(codec: Codec) -> None:
    picture = photograph(128, 192)
    streams = [codec.encode(picture, quality) for quality in (0, 50, 100)]
    errors = [psnr(codec.decode(stream).pixels, picture.pixels) for stream in streams]
    assert sorted(map(len, streams)) == list(map(len, streams))
    assert errors == sorted(errors)
    assert errors[-1] > 30


def test_alpha_and_metadata_come_back_byte_for_byte(codec: Codec) -> None:
    base = photograph(70, 90)
    alpha = np.random.default_rng(0).integers(0, 256, (70, 90), dtype=np.uint8)
    picture = Picture(base.pixels, alpha=alpha, icc=b"profile", exif=b"Exif\0\0data", xmp=b"<x/>")
    decoded = codec.decode(codec.encode(picture))
    assert decoded.alpha is not None and np.array_equal(decoded.alpha, alpha)
    assert (decoded.icc, decoded.exif, decoded.xmp) == (picture.icc, picture.exif, picture.xmp)


def test_a_grey_picture_stays_grey(codec: Codec) -> None:
    picture = photograph(96, 96, components=1)
    decoded = codec.decode(codec.encode(picture, 90))
    assert decoded.pixels.shape == (96, 96, 1)
    assert psnr(decoded.pixels, picture.pixels) > 28


def test_encoding_twice_gives_the_same_bytes(codec: Codec) -> None:
    picture = photograph(130, 200)
    assert codec.encode(picture) == codec.encode(picture)


def test_tiles_leave_no_seam_in_the_transforms(codec: Codec) -> None:
    picture = photograph(1100, 200)
    grid = TileGrid(200, 1100)
    assert len(grid) == 2
    x = torch.zeros(1, 3, grid.pixels.height, grid.pixels.width)
    x[..., :1100, :200] = torch.from_numpy(picture.pixels).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        whole = torch_engine(codec, "float").model.analyse(x)
        rate = torch_engine(codec, "float").model.rate_at(3.0)
        image = torch_engine(codec, "float").model.synthesise(whole, rate)
        for tile in grid:
            window = tile.with_halo(HALO_LATENTS)
            top = window.row_offset
            part = torch_engine(codec, "float").model.analyse(x[(..., *window.pixels.slices)])[
                ..., top : top + tile.latents.height, :
            ]
            torch.testing.assert_close(part, whole[(..., *tile.latents.slices)], rtol=1e-4, atol=1e-4)
            shown = torch_engine(codec, "float").model.synthesise(whole[(..., *window.latents.slices)], rate)
            shown = shown[..., 16 * top : 16 * top + tile.pixels.height, :]
            torch.testing.assert_close(shown, image[(..., *tile.pixels.slices)], rtol=1e-4, atol=1e-4)


def test_a_picture_of_several_tiles_decodes(codec: Codec) -> None:
    picture = photograph(1030, 80)
    encoded = codec.encode_with_latents(picture, 20)
    stream = container.parse_stream(encoded.data)
    assert len(stream.tiles) == 2
    decoded = codec.decode(encoded.data)
    assert np.array_equal(decoded.pixels, codec.reconstruct(encoded.latents, stream.header))


def test_another_models_file_is_refused_by_name(codec: Codec) -> None:
    stream = container.parse_stream(codec.encode(photograph(64, 64)))
    header = container.Header(64, 64, 100, b"\1" * 8, grey=False, float_profile=True)
    data = container.write_stream(container.HpcmStream(header, stream.tiles, {}))
    with pytest.raises(UnsupportedError, match=(b"\1" * 8).hex()):
        codec.decode(data)


def test_a_decoder_that_diverges_says_so(codec: Codec) -> None:
    stream = container.parse_stream(codec.encode(photograph(64, 64)))
    tile = stream.tiles[0]
    wrong = container.TileStreams(tile.hyper, tile.s1, tile.s2, tile.s3, symbol_check=tile.symbol_check ^ 1)
    data = container.write_stream(container.HpcmStream(stream.header, (wrong,), {}))
    with pytest.raises(CorruptStreamError, match="does not decode to what its encoder coded"):
        codec.decode(data)


def test_a_cut_file_shows_what_has_arrived_coarser_the_less_there_is(codec: Codec) -> None:
    picture = photograph(192, 256)
    data = codec.encode(picture, 60)
    whole = codec.decode(data)
    tile = container.parse_stream(data).tiles[0]
    sizes = [len(payload or b"") + container.CRC_BYTES for payload in tile.payloads]
    fidelity = []
    for kept in range(1, 5):
        cut = data[: len(data) - sum(sizes[kept:])]
        if kept < 4:
            with pytest.raises(CorruptStreamError, match="cut short"):
                codec.decode(cut)
        shown = codec.decode(cut, partial=True)
        assert bool(shown.notices) == (kept < 4)
        fidelity.append(psnr(shown.pixels, picture.pixels))
    # What the hyperprior alone predicts need only have the picture's brightness; from s1 on there are contents.
    black, grey = (psnr(np.full_like(picture.pixels, level), picture.pixels) for level in (0, 128))
    assert fidelity == sorted(fidelity) and fidelity[0] > black + 5 and fidelity[1] > grey
    assert fidelity[-1] == psnr(whole.pixels, picture.pixels)
    # A broken coarse scale leaves the finer ones unusable, and what is shown is what the hyperprior predicts.
    start = container.describe_stream(data)[2].offset
    broken = data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :]
    assert psnr(codec.decode(broken, partial=True).pixels, picture.pixels) == fidelity[0]


@pytest.mark.parametrize("quality", [-1, 100.5, float("nan")])
def test_qualities_outside_the_range_are_refused(codec: Codec, quality: float) -> None:
    with pytest.raises(UsageError, match="quality"):
        codec.encode(photograph(64, 64), quality)


def test_header_of_a_one_tile_file_costs_at_most_48_bytes(codec: Codec) -> None:
    data = codec.encode(photograph(512, 768), 100)
    tile = container.parse_stream(data).tiles[0]
    assert len(data) - sum(len(payload) for payload in tile.payloads if payload is not None) <= 48


@pytest.mark.parametrize("quality", [0, 50, 100])
def test_files_are_as_long_as_the_estimated_bits_say(codec: Codec, kodak: Path, quality: float) -> None:
    for name in ("kodim05.png", "kodim20.png"):
        picture = Picture(read_picture(kodak / name).pixels)  # without the file's text, which is not estimated
        data = codec.encode(picture, quality)
        x = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            likelihoods = torch_engine(codec, "float").model(x, quality / 100 * 7)["likelihoods"]
        bits = sum(float(-part.double().log2().sum()) for part in (likelihoods["y"], likelihoods["z"]))
        assert abs(8 * len(data) - bits) <= 0.01 * bits + 8 * 64


def test_decoder_in_another_process_gives_identical_pixels(codec: Codec, tmp_path: Path) -> None:
    encoded = codec.encode_with_latents(photograph(200, 264), 70)
    (tmp_path / "a.hpcm").write_bytes(encoded.data)
    code = (
        "import sys, numpy; from hpcm_codec.codec import load_codec;"
        "numpy.save(sys.argv[2], load_codec(device='cpu').decode(open(sys.argv[1], 'rb').read()).pixels)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.hpcm"), str(tmp_path / "a.npy")], check=True)
    expected = codec.reconstruct(encoded.latents, container.parse_header(encoded.data))
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)


@pytest.mark.parametrize("threads", [1, 3, 4])
def test_files_do_not_depend_on_the_number_of_threads(codec: Codec, threads: int) -> None:
    encoded = [codec.encode_with_latents(photograph(*size), 70) for size in ((200, 264), (64, 64), (520, 330))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for one in encoded:
            pixels = codec.decode(one.data).pixels  # refuses symbols that differ
            expected = codec.reconstruct(one.latents, container.parse_header(one.data))
            assert np.abs(pixels.astype(int) - expected).max() <= 1
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
