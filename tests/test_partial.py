"""Files that were cut short: every byte that arrived counts, and nothing that is damaged is taken for data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from conftest import small_photograph
from hpcm_codec.bitstream import container
from hpcm_codec.cli.main import main
from hpcm_codec.codec import Codec
from hpcm_codec.constants import SCALES
from hpcm_codec.images import Picture
from hpcm_codec.images.fidelity import psnr

PICTURE = Picture(small_photograph(192, 128))


@pytest.fixture(scope="module")
def data(codec: Codec) -> bytes:
    return codec.encode(PICTURE, 60)


def symbols_of(codec: Codec, data: bytes) -> np.ndarray:
    """All symbols that are read of the first tile of a file, cut or not."""
    stream = container.parse_stream(data, allow_truncated=True)
    read: list[np.ndarray] = []
    codec._decode_tile(stream.header.grid[0], stream, read.append)
    return np.concatenate(read)


@pytest.mark.parametrize("profile", ["exact", "float"])
@pytest.mark.parametrize("scale", SCALES[1:])
def test_a_chunk_in_which_the_file_ends_is_read_as_far_as_it_goes(codec: Codec, profile: str, scale: str) -> None:
    codec.profile, before = profile, codec.profile
    try:
        data = codec.encode(PICTURE, 60)
    finally:
        codec.profile = before
    whole = symbols_of(codec, data)
    chunk = container.describe_stream(data)[1 + SCALES.index(scale)]
    known = []
    for size in range(0, chunk.size, max(1, chunk.size // 7)):
        found = symbols_of(codec, data[: chunk.offset + size])
        # what was coded, and zeros from the first word on that is missing
        wrong = np.flatnonzero(found != whole[: len(found)])
        known.append(int(wrong[0]) if len(wrong) else len(found))
        assert not found[known[-1] :].any()
    assert known == sorted(known) and known[-1] > known[1]


def test_every_byte_helps(codec: Codec, data: bytes) -> None:
    shares = (0.3, 0.4, 0.6, 0.8, 1)  # the first ends behind the hyper-latents
    fidelity = [psnr(codec.decode(data[: round(s * len(data))], partial=True).pixels, PICTURE.pixels) for s in shares]
    assert fidelity == sorted(fidelity)
    without_check = codec.decode(data[:-4], partial=True).pixels
    assert np.array_equal(without_check, codec.decode(data).pixels)  # only the last CRC is missing


def test_a_cut_at_the_border_of_chunks_shows_the_scale_before_it(codec: Codec, data: bytes) -> None:
    for number, scale in enumerate(SCALES[:-1]):
        end = container.describe_stream(data)[2 + number].offset
        shown = codec.decode(data[:end], partial=True).pixels
        assert np.array_equal(shown, codec.decode(data, scale=scale).pixels)


def test_the_container_returns_the_chunk_in_which_a_file_ends() -> None:
    tiles = [container.TileStreams(b"hh", b"s1s1", b"", b"s3", 7) for _ in range(2)]
    header = container.Header(1100, 9, 10, bytes(8), grey=False, float_profile=False)
    data = container.write_stream(container.HpcmStream(header, tuple(tiles), {}))
    chunks = {chunk.name: chunk for chunk in container.describe_stream(data)}
    begun = chunks["s1 of tile 1"]
    for arrived, expected in ((0, None), (1, b"s"), (4, b"s1s1"), (7, b"s1s1")):
        cut = container.parse_stream(data[: begun.offset + arrived], allow_truncated=True)
        missing: dict[str, Any] = {"s1": None, "s2": None, "s3": None}
        assert cut.tiles[0] == replace(tiles[0], **{**missing, "s1": b"s1s1"})
        assert cut.tiles[1] == replace(tiles[1], **missing, begun=expected)
    # damage is no beginning
    damaged = bytearray(data)
    damaged[begun.offset] ^= 1
    assert all(tile.begun is None for tile in container.parse_stream(damaged, allow_truncated=True).tiles)


def test_a_beginning_on_top_of_a_damaged_scale_is_not_used(codec: Codec, data: bytes) -> None:
    chunks = container.describe_stream(data)
    damaged = bytearray(data[: chunks[4].offset + chunks[4].size // 2])  # half of s3
    damaged[chunks[3].offset] ^= 1  # of s2
    shown = codec.decode(bytes(damaged), partial=True).pixels
    assert np.array_equal(shown, codec.decode(data, scale="s1").pixels)


def test_the_command_decodes_what_there_is_and_info_lists_it(data: bytes, codec: Codec, tmp_path: Path) -> None:
    cut = data[: len(data) // 2]
    (tmp_path / "cut.hpcm").write_bytes(cut)
    arguments = ["decode", str(tmp_path / "cut.hpcm"), "-o", str(tmp_path / "cut.png"), "--partial"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0 and f"cut short: {len(data) - len(cut)} bytes missing" in done.stderr
    expected = codec.decode(cut, partial=True).pixels
    assert np.array_equal(np.asarray(Image.open(tmp_path / "cut.png")), expected)
    reported = CliRunner().invoke(main, ["info", str(tmp_path / "cut.hpcm")])
    assert reported.exit_code == 3 and "of all tiles; no " in reported.stdout and "cut short" in reported.stderr
