"""What files say of their colours besides ICC profiles is kept as one, and profiles fit the pixels."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from conftest import case
from hpcm_codec.images import open_picture, read_picture, write_picture
from hpcm_codec.images.colour import SRGB, SRGB_CURVE, code_points_of, rgb_profile
from test_images import SRGB as SRGB_PROFILE
from test_images import file_bytes, noise, png, png_chunk

ADOBE_RGB = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
P3_TO_SRGB = [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]  # linear light, both D65
ADOBE_TO_SRGB = [[1.3984, -0.3984, 0.0], [0.0, 1.0, 0.0], [0.0, -0.0429, 1.0429]]
COLOURS = np.array([[[200, 120, 100], [90, 130, 60], [70, 70, 140], [128, 128, 128], [255, 255, 255]]], np.uint8)


def gama(gamma: float) -> bytes:
    return png_chunk(b"gAMA", struct.pack(">I", round(100000 * gamma)))


def chrm(values: tuple[float, ...]) -> bytes:
    return png_chunk(b"cHRM", struct.pack(">8I", *(round(100000 * value) for value in values)))


def cicp(primaries: int, transfer: int, full: int = 1) -> bytes:
    return png_chunk(b"cICP", bytes([primaries, transfer, 0, full]))


def png_of(chunks: bytes, pixels: np.ndarray = COLOURS) -> bytes:
    colour_type = 0 if pixels.ndim == 2 else 2
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return png(pixels.shape[1], pixels.shape[0], 8, colour_type, rows, chunks)


def read(data: bytes) -> Any:
    """A picture, as both readers give it."""
    picture = read_picture(data)
    with open_picture(data) as opened:
        assert (opened.icc, opened.notices) == (picture.icc, picture.notices)
    return picture


def in_srgb(picture: Any) -> np.ndarray:
    """Its colours as a viewer that heeds profiles shows them."""
    if picture.icc is None:
        return picture.pixels
    image = Image.fromarray(picture.pixels[..., 0] if picture.grey else picture.pixels)
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    shown = ImageCms.profileToProfile(
        image, io.BytesIO(picture.icc), ImageCms.createProfile("sRGB"), renderingIntent=intent, outputMode="RGB"
    )
    assert shown is not None
    return np.asarray(shown)


def encoded(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def decoded(values: np.ndarray) -> np.ndarray:
    values = values / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def bt709(values: np.ndarray) -> np.ndarray:
    values = values / 255
    return np.where(values < 0.081, values / 4.5, ((values + 0.099) / 1.099) ** (1 / 0.45))


@pytest.mark.parametrize(
    ("chunks", "to_linear", "matrix"),
    [
        (gama(1.0), lambda v: v / 255, np.eye(3)),
        (gama(1 / 1.8), lambda v: (v / 255) ** 1.8, np.eye(3)),
        (chrm(ADOBE_RGB), decoded, ADOBE_TO_SRGB),
        (gama(0.45455) + chrm(ADOBE_RGB), lambda v: (v / 255) ** 2.2, ADOBE_TO_SRGB),
        (cicp(12, 13), decoded, P3_TO_SRGB),
        (cicp(1, 8), lambda v: v / 255, np.eye(3)),
        (cicp(1, 1), bt709, np.eye(3)),
        (cicp(2, 4), lambda v: (v / 255) ** 2.2, np.eye(3)),
        (gama(1.0) + cicp(12, 13), decoded, P3_TO_SRGB),
        (png_chunk(b"iCCP", b"x\0\0" + zlib.compress(SRGB_PROFILE)) + cicp(12, 13), decoded, P3_TO_SRGB),
    ],
)
def test_colours_that_a_profile_can_express_are_shown_as_they_are_meant(chunks: bytes, to_linear, matrix) -> None:
    picture = read(png_of(chunks))
    expected = encoded(to_linear(COLOURS.astype(float)) @ np.array(matrix).T)
    assert np.abs(in_srgb(picture) - expected).max() <= 2 and picture.notices == ()
    assert (picture.pixels == COLOURS).all() and len(picture.icc) < 600
    again = io.BytesIO()
    write_picture(picture, again, "PNG")
    assert read_picture(again.getvalue()).icc == picture.icc


@pytest.mark.parametrize(
    "chunks",
    [
        b"",
        png_chunk(b"sRGB", b"\0"),
        png_chunk(b"sRGB", b"\0") + gama(0.45455) + chrm(SRGB),
        gama(0.45455),
        gama(0.45455) + chrm(SRGB),
        chrm(SRGB),
        cicp(1, 13),
        cicp(2, 2),
        gama(0),  # nonsense from here on
        gama(4000),
        chrm((0.0,) * 8),
        chrm((0.3, 0.3) * 4),
        chrm((0.3127, 0.3290, 0.64, 0.33, 0.64, 0.33, 0.15, 0.06)),
        png_chunk(b"cICP", b"\1"),
    ],
)
def test_srgb_and_nonsense_need_no_profile(chunks: bytes) -> None:
    picture = read(png_of(chunks))
    assert picture.icc is None and picture.notices == ()


@pytest.mark.parametrize(
    ("chunks", "notice"),
    [
        (cicp(9, 16), "its colours are PQ (high dynamic range), which is not kept: it will look dull"),
        (cicp(9, 18), "its colours are HLG (high dynamic range), which is not kept: it will look dull"),
        (cicp(99, 13), "its colours (primaries 99, transfer 13) are not known, taken as sRGB"),
        (cicp(1, 13, 0), "its colours are of the narrow range of video, which is not kept"),
    ],
)
def test_colours_that_no_profile_can_express_are_reported(chunks: bytes, notice: str) -> None:
    picture = read(png_of(chunks))
    assert picture.icc is None and picture.notices == (notice,)


def test_grey_gets_a_profile_of_grey() -> None:
    grey = np.arange(256, dtype=np.uint8)[None]
    picture = read(png_of(gama(1.0) + chrm(ADOBE_RGB), grey))
    assert picture.grey and picture.icc[16:20] == b"GRAY"
    shown = np.abs(in_srgb(picture)[..., 0] - encoded(grey / 255))
    assert shown[:, 24:].max() <= 2  # of what is darker, little CMS computes with 8 bits


def test_a_profile_of_srgb_itself_changes_nothing() -> None:
    profile = rgb_profile(SRGB, SRGB_CURVE)
    image = Image.fromarray(noise(16, 16, 3))
    shown = ImageCms.profileToProfile(image, io.BytesIO(profile or b""), ImageCms.createProfile("sRGB"))
    assert shown is not None and np.abs(np.asarray(shown).astype(int) - np.asarray(image)).max() <= 1


def profile_of(space: bytes) -> bytes:
    return SRGB_PROFILE[:16] + space + SRGB_PROFILE[20:]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("space", [b"GRAY", b"CMYK", b"Lab "])
def test_a_profile_of_other_components_is_left_out_with_a_notice(space: bytes, format: str) -> None:
    picture = read(file_bytes(Image.fromarray(noise(4, 6, 3)), format, icc_profile=profile_of(space)))
    name = space.decode().strip()
    assert picture.icc is None
    assert picture.notices == (f"its ICC profile is of {name}, which the pixels are not, it was left out",)
    as_palette = read(file_bytes(Image.fromarray(noise(4, 6, 3)).quantize(8), "PNG", icc_profile=profile_of(space)))
    assert as_palette.icc is None and len(as_palette.notices) == 1


@pytest.mark.parametrize("space", [b"GRAY", b"RGB "])
def test_a_profile_that_fits_grey_is_kept(space: bytes) -> None:
    assert read(file_bytes(Image.fromarray(noise(4, 6)), "PNG", icc_profile=profile_of(space))).icc == profile_of(space)


def avif(primaries: int, transfer: int, **settings: Any) -> bytes:
    data = file_bytes(Image.fromarray(noise(16, 16, 3)), "AVIF", **settings)
    place = data.index(b"colrnclx") + 8
    return data[:place] + struct.pack(">HH", primaries, transfer) + data[place + 4 :]


@pytest.mark.skipif("AVIF" not in Image.registered_extensions().values(), reason="this Pillow has no AVIF")
def test_colours_of_avif_are_kept_too() -> None:
    assert read(avif(1, 13)).icc is None
    assert read(avif(12, 13)).icc == read(png_of(cicp(12, 13))).icc
    assert read(avif(9, 16)).notices == (
        "its colours are PQ (high dynamic range), which is not kept: it will look dull",
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [b"meta", b"iprp", b"ipco", b"colr", b"nclx", b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\x10", b"\xff" * 4]
        )
    )
)
def test_boxes_of_any_kind_can_be_parsed(parts: list[bytes]) -> None:
    file = io.BytesIO(b"\0\0\0\x0cftypavif" + b"".join(parts))
    file.seek(3)
    code_points_of(file)
    assert file.tell() == 3


def test_boxes_without_end_are_given_up() -> None:
    assert code_points_of(io.BytesIO(b"\0\0\0\x0cftypavif" + b"\0\0\0\0iprp" * 100_000)) is None


@pytest.mark.parametrize("name", ["gama1.png", "chrm.png", "cicp.png"])
def test_cases_whose_colours_vanished_keep_them(name: str) -> None:
    picture = read(case(name).read_bytes())
    assert picture.icc is not None and np.abs(in_srgb(picture).astype(int) - picture.pixels).max() > 5


def test_the_case_of_a_grey_profile_on_colours() -> None:
    picture = read(case("palgray.png").read_bytes())
    assert picture.icc is None and not picture.grey and len(picture.notices) == 1
