"""Two implementations of the exact profile, one in torch and C++, one in numpy alone, read the same symbols from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import numpy_decoder
import numpy_network
import numpy_synthesis
from conftest import photographs_to_calibrate, small_photograph
from hpcm_codec.bitstream.container import parse_stream
from hpcm_codec.codec import Codec, load_codec
from hpcm_codec.constants import SCALES
from hpcm_codec.engines.exporting import export_checkpoint
from hpcm_codec.images import Picture
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.weights.checkpoints import save_checkpoint
from hpcm_codec.weights.registry import shipped_checkpoints
from test_hpcm_phase1 import SMALL


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights, loud enough that symbols and scales vary and every branch matters."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(4)
    model = HPCM(SMALL).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("h_s", "g_s", "context", "hyper", "rate_control")):
            spread = 0.3 if parameter.ndim > 1 else 0.1
            parameter.data += spread * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5
    save_checkpoint(folder / "float.safetensors", SMALL, dict(model.state_dict()), {})
    pictures = photographs_to_calibrate(4, 128, 128)
    export_checkpoint(str(folder / "float.safetensors"), folder / "exact.safetensors", calibration=pictures)
    return folder / "exact.safetensors"


def symbols_of(codec: Codec, data: bytes) -> list[list[int]]:
    """What our own decoder reads from each tile, in coding order."""
    stream, found = parse_stream(data), []
    for tile in stream.header.grid:
        read: list[int] = []
        codec._decode_tile(tile, stream, lambda symbols: read.extend(symbols.tolist()))  # noqa: B023 - called at once
        found.append(read)
    return found


def check_same(model: Path, picture: Picture, quality: float) -> list[int]:
    codec = load_codec(str(model), "cpu", "exact")
    encoded = codec.encode_with_latents(picture, quality)
    tiles = numpy_decoder.decode_symbols(encoded.data, model)
    in_order = [[symbol for name in SCALES for symbol in tile.symbols[name]] for tile in tiles]
    assert in_order == symbols_of(codec, encoded.data)
    if len(tiles) == 1:
        latents = np.moveaxis(np.asarray(encoded.latents[0]), 0, -1)
        if latents.dtype.kind == "f":  # the engine of torch, where nothing is compiled
            latents = np.ldexp(latents.astype(np.float64), tiles[0].fractions + numpy_decoder.FINE_BITS)
        assert np.array_equal(latents, tiles[0].latents)
    return in_order[0]


@pytest.mark.parametrize("quality", [0, 33.5, 100])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (192, 128)])
def test_both_read_the_same_symbols(small_model: Path, size: tuple[int, int], quality: float) -> None:
    symbols = check_same(small_model, Picture(small_photograph(*size, seed=int(quality))), quality)
    assert len(set(symbols)) > 5, "a picture of which nothing is coded shows nothing"


@pytest.mark.parametrize("quality", [0, 33.5, 100])
def test_both_show_the_same_pixels(small_model: Path, quality: float) -> None:
    codec = load_codec(str(small_model), "cpu", "exact")
    grey = small_photograph(70, 60)[..., :1].copy()
    for pixels in (small_photograph(96, 64, seed=int(quality)), small_photograph(33, 65), grey):
        data = codec.encode(Picture(pixels), quality)
        shown = numpy_synthesis.decode_pixels(data, small_model)
        assert shown.shape == pixels.shape and len(np.unique(shown)) > 3
        assert np.array_equal(codec.decode(data).pixels, shown)


def test_tiles_leave_no_seam(small_model: Path) -> None:
    codec = load_codec(str(small_model), "cpu", "exact")
    data = codec.encode(Picture(small_photograph(1090, 20)), 50)
    assert np.array_equal(codec.decode(data).pixels, numpy_synthesis.decode_pixels(data, small_model))


def test_grey_pictures_and_pictures_of_two_tiles(small_model: Path) -> None:
    check_same(small_model, Picture(small_photograph(70, 60)[..., :1].copy()), 60)
    check_same(small_model, Picture(small_photograph(1090, 20)), 50)


@pytest.mark.parametrize(
    ("name", "wrong"), [("round_divide", lambda a, b: a // b), ("round_shift", lambda x, s: x >> s)]
)
def test_another_rounding_would_be_noticed(
    small_model: Path, monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[..., Any]
) -> None:
    data = load_codec(str(small_model), "cpu").encode(Picture(small_photograph(96, 64)), 70)
    numpy_decoder.decode_symbols(data, small_model)
    monkeypatch.setattr(numpy_network, name, wrong)
    with pytest.raises((ValueError, StopIteration)):
        numpy_decoder.decode_symbols(data, small_model)


@pytest.mark.slow
@pytest.mark.parametrize("quality", [10, 77.5])
def test_the_shipped_model_too(quality: float) -> None:
    check_same(next(iter(shipped_checkpoints().values())), Picture(small_photograph(96, 64, seed=2)), quality)
