"""Samples of more than 8 bits: white is white, black is black, and nothing wraps."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import case
from hpcm_codec.images import open_picture, picture_from_pil, read_picture
from test_images import file_bytes, png, png_chunk

INFINITE = "infinite samples taken as white, negatively infinite ones and those that are no numbers as black"
nan, inf = np.nan, np.inf


def tiff_of(values: NDArray[Any]) -> bytes:
    """A grey little-endian TIFF of numbers of any kind."""
    height, width = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    fields = [
        *((256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, 1), (273, 8)),
        *((277, 1), (278, height), (279, values.nbytes), (339, kind)),
    ]
    directory = struct.pack("<H", len(fields)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, number) for tag, number in fields
    )
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    data += bytes(len(data) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


def pixels_of(data: bytes) -> list[int]:
    picture = read_picture(data)
    with open_picture(data) as opened:
        assert (opened.rows(0, picture.height) == picture.pixels).all() and opened.notices == picture.notices
    return [int(value) for value in picture.pixels[..., 0].ravel()]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([255.0, 255.0], [255, 255]),
        ([1.5, 1.5], [255, 255]),
        ([1.0, 1.0], [255, 255]),
        ([0.0, 0.0], [0, 0]),
        ([-3.0, -3.0], [0, 0]),
        ([0.0, 0.5, 1.0, inf], [0, 128, 255, 255]),
        ([0.0, 0.5, 1.0, -inf, nan], [0, 128, 255, 0, 0]),
        ([0.0, 100.0, inf], [0, 255, 255]),
        ([-1.0, 0.0, 1.0, inf, -inf, nan], [0, 128, 255, 255, 0, 0]),
        ([inf, inf], [255, 255]),
        ([nan, -inf], [0, 0]),
        ([5.0, inf], [255, 255]),
        ([-3e38, 3e38], [0, 255]),
    ],
)
def test_floating_point_pictures_are_spread_over_what_is_finite(values: list[float], expected: list[int]) -> None:
    array = np.array([values], np.float32)
    assert pixels_of(tiff_of(array)) == expected
    picture = picture_from_pil(Image.fromarray(array))
    assert picture.pixels[0, :, 0].tolist() == expected
    assert (INFINITE in picture.notices) == (not np.isfinite(array).all())


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0, 2**31, 2**32 - 1], "<u4", [0, 128, 255]),
        ([0, 65535], "<u4", [0, 255]),
        ([0, 100, 255], "<u4", [0, 100, 255]),
        ([2**31, 2**31], "<u4", [255, 255]),
        ([0, 100, 255], "<i4", [0, 100, 255]),
        ([0, 128, 129, 65535], "<i4", [0, 0, 1, 255]),
        ([-5, 0, 5], "<i4", [0, 128, 255]),
        ([-5, -5], "<i4", [0, 0]),
        ([70000, 70000], "<i4", [255, 255]),
        ([0, 100, 255], "<i2", [0, 100, 255]),
        ([0, 128, 129, 65535], "<u2", [0, 0, 1, 255]),
        ([0, 1, 255], "<u2", [0, 0, 1]),
    ],
)
def test_integers_of_16_and_32_bits_keep_black_and_white(values: list[int], kind: str, expected: list[int]) -> None:
    assert pixels_of(tiff_of(np.array([values], kind))) == expected


def test_a_dark_netpbm_of_16_bits_stays_dark() -> None:
    assert pixels_of(b"P5 2 1 65535\n\x00\xff\x00\x00") == [1, 0]


def test_32_bits_of_pillow_itself_keep_the_samples_of_8_bits() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    assert (picture_from_pil(ramp.convert("I")).pixels[0, :, 0] == np.arange(256)).all()


def test_float_cases_are_not_black() -> None:
    assert (read_picture(case("f_const255.tif")).pixels == 255).all()
    values = np.asarray(Image.open(io.BytesIO(case("f_one_plus_inf.tif").read_bytes())))
    found = read_picture(case("f_one_plus_inf.tif")).pixels[..., 0]
    assert (found[np.isposinf(values)] == 255).all() and np.isposinf(values).any()
    finite = np.isfinite(values)
    assert (found[finite] == np.floor(values[finite].astype(float) * 255 + 0.5)).all() and values[finite].max() <= 1


def test_a_tiff_of_floats_that_pillow_writes_reads_the_same() -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    assert pixels_of(file_bytes(Image.fromarray(values), "TIFF")) == pixels_of(tiff_of(values))


def key_of(colour: tuple[int, int, int]) -> bytes:
    return png_chunk(b"tRNS", struct.pack(">3H", *colour))


@pytest.mark.parametrize("key", [(0x1234, 0x5678, 0x9ABC), (0, 0, 0), (0x00FF, 0xFF00, 0x0102)])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_transparent_colour_of_16_bits_is_compared_by_all_of_them(key: tuple[int, int, int], channel: int) -> None:
    near = list(key)
    near[channel] ^= 1
    far = list(key)
    far[channel] ^= 0x0100
    pixels = np.array([[key, near, far], [near, key, key]], ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    data = png(3, 2, 16, 2, rows, key_of(key))
    picture = read_picture(data)
    assert picture.alpha is not None and picture.alpha.tolist() == [[0, 255, 255], [255, 0, 0]]
    assert (picture.pixels == pixels >> 8).all()
    with Image.open(io.BytesIO(data)) as image:
        alpha = picture_from_pil(image).alpha
        assert alpha is not None and np.array_equal(alpha, picture.alpha)


def test_a_transparent_colour_in_a_filtered_and_in_an_interlaced_png(tmp_path: Any) -> None:
    pyvips = pytest.importorskip("pyvips")
    dice = np.random.default_rng(3)
    pixels = dice.integers(0, 4, (37, 41, 3), dtype=np.uint16) + 0x1200
    image = pyvips.Image.new_from_memory(pixels.tobytes(), 41, 37, 3, "ushort").copy(interpretation="rgb16")
    for interlace in (False, True):
        data = bytes(image.pngsave_buffer(interlace=interlace))
        assert data[24:26] == b"\x10\x02"
        picture = read_picture(data[:33] + key_of((0x1201, 0x1202, 0x1203)) + data[33:])
        transparent = (pixels == (0x1201, 0x1202, 0x1203)).all(axis=-1)
        assert picture.alpha is not None and ((picture.alpha == 0) == transparent).all() and transparent.any()
