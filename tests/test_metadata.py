"""What a picture carries besides its colours comes through `hpcm encode` and `decode`, and through Python, as it went in."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageCms

import hpcm_codec
import hpcm_codec.pillow
from conftest import case, small_photograph
from hpcm_codec import Codec, Picture
from hpcm_codec.cli.main import main
from hpcm_codec.images import picture_to_pil, read_picture
from test_images import ODD, REFUSED, needs_odd, odd_files

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = 0x0112
LARGEST_CODED = 150_000  # pixels; the larger ones are photographs like those that other tests code


def hpcm(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_same(found: Picture, expected: Picture) -> None:
    """Size, kind, transparency and metadata are those of before; the colours are about so."""
    assert found.pixels.shape == expected.pixels.shape
    assert (found.alpha is None) == (expected.alpha is None)
    assert expected.alpha is None or np.array_equal(found.alpha, expected.alpha)  # type: ignore[arg-type]
    assert (found.icc, found.exif, found.xmp) == (expected.icc, expected.exif, expected.xmp)
    shown = slice(None) if expected.alpha is None else expected.alpha > 0
    difference = found.pixels[shown].astype(float) - expected.pixels[shown]
    assert (
        not difference.size or np.abs(difference).mean() < 64
    )  # a quarter of the range: some are noise in pure colours


@needs_odd
@pytest.mark.parametrize("name", [name for name in odd_files if name not in REFUSED])
def test_every_odd_picture_comes_through_both_ways(name: str, codec: Codec, tmp_path: Path) -> None:
    original = read_picture(ODD / name)
    if original.width * original.height > LARGEST_CODED:
        pytest.skip("too large for a test of every file")
    coded, back = tmp_path / "a.hpcm", tmp_path / "a.png"
    encoded = hpcm("encode", ODD / name, "-o", coded, "-q", 95, "--device", "cpu")
    assert encoded.exit_code == 0, encoded.stderr
    assert all(notice in encoded.stderr for notice in original.notices)
    decoded = hpcm("decode", coded, "-o", back, "--device", "cpu")
    assert decoded.exit_code == 0, decoded.stderr
    assert_same(read_picture(back), original)
    data = hpcm_codec.encode(ODD / name, 95, codec)
    assert data == coded.read_bytes()
    image = hpcm_codec.decode(data, codec)
    assert image.getexif().get(ORIENTATION, 1) == 1
    assert_same(codec.decode(data), original)


CASES = (
    *(
        "badtext.png",
        "bigtxtz.png",
        "chrm.png",
        "cicp.png",
        "dpi.jpg",
        "exdim.jpg",
        "f_const255.tif",
        "f_one_plus_inf.tif",
    ),
    *("gama1.png", "jnoeoi.jpg", "kind13le.png", "kind6le.png", "l2.psd", "palgray.png", "pre12.jpg", "rawapp1.png"),
)


@pytest.mark.parametrize("name", CASES)
def test_every_case_comes_through_both_ways(name: str, tmp_path: Path) -> None:
    source, coded, back = case(name), tmp_path / "a.hpcm", tmp_path / "a.png"
    original = read_picture(source)
    encoded = hpcm("encode", source, "-o", coded, "-q", 95, "--device", "cpu")
    assert encoded.exit_code == 0 and all(notice in encoded.stderr for notice in original.notices), encoded.stderr
    decoded = hpcm("decode", coded, "-o", back, "--device", "cpu")
    assert decoded.exit_code == 0, decoded.stderr
    assert_same(read_picture(back), original)
    assert read_picture(back).extras.texts == original.extras.texts


@needs_odd
@pytest.mark.parametrize("name", sorted(REFUSED & set(odd_files)))
def test_what_cannot_be_read_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    done = hpcm("encode", ODD / name, "-o", tmp_path / "a.hpcm")
    assert done.exit_code == 5 and name in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_strip_leaves_nothing_but_colours_and_their_profile(tmp_path: Path, codec: Codec) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[ORIENTATION] = "maker", 6
    source = tmp_path / "a.jpg"
    image = Image.fromarray(small_photograph(48, 32))
    image.save(source, exif=exif, icc_profile=SRGB, xmp=b"<x:xmpmeta>secret</x:xmpmeta>")
    for options, kept in (([], True), (["--strip"], False)):
        coded = tmp_path / f"{kept}.hpcm"
        assert hpcm("encode", source, "-o", coded, "--device", "cpu", *options).exit_code == 0
        picture = codec.decode(coded.read_bytes())
        assert (picture.width, picture.height) == (32, 48)  # turned all the same
        assert picture.icc == SRGB
        assert (picture.exif is not None, picture.xmp is not None) == (kept, kept)
        assert (b"secret" in coded.read_bytes()) == (b"maker" in coded.read_bytes()) == kept


@pytest.mark.parametrize("quality", [10, 90])
def test_a_grey_picture_costs_less_than_a_coloured_one_and_no_more_than_its_luma(codec: Codec, quality: float) -> None:
    colours = small_photograph(128, 96).astype(float)
    colours += 50 * np.sin(np.mgrid[0:96, 0:128][1] / 11)[..., None] * [1, -0.5, 0.3]
    coloured = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    grey = coloured.convert("L")
    sizes = {mode: len(hpcm_codec.encode(image, quality, codec)) for mode, image in (("RGB", coloured), ("L", grey))}
    equal_components = len(hpcm_codec.encode(grey.convert("RGB"), quality, codec))
    assert sizes["L"] <= equal_components
    assert sizes["L"] < sizes["RGB"]
    assert hpcm_codec.decode(hpcm_codec.encode(grey, quality, codec), codec).mode == "L"


def cmyk_profile(cyan_is: tuple[int, int, int]) -> bytes:
    """An ICC profile of paper on which cyan ink has that Lab colour (8-bit L*, a* + 128, b* + 128), and other inks have none."""
    white, black = (255, 128, 128), (0, 128, 128)
    # C is the slowest of C, M, Y, K
    corners = [black if ink & 1 else cyan_is if ink & 8 else white for ink in range(16)]
    straight = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i in (0, 4, 8)) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * straight
    table += b"".join(bytes(corner) for corner in corners) + 3 * straight
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    header = bytearray(128)
    header[:24] = struct.pack(">I4sI4s4s4s", 144 + len(table), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">3i", 63190, 65536, 54061)  # the D50 white of the connection space
    return bytes(header) + tags + table


@pytest.mark.parametrize(
    ("lab", "expected"),
    [((136, 208, 195), (255, 0, 0)), ((224, 42, 211), (0, 255, 0)), ((102, 140, 80), (60, 90, 175))],
)
def test_cmyk_takes_the_colours_that_its_profile_gives_the_inks(lab, expected, tmp_path: Path, codec: Codec) -> None:
    image = Image.new("CMYK", (64, 64), (255, 0, 0, 0))
    image.save(tmp_path / "ink.jpg", quality=95, icc_profile=cmyk_profile(lab))
    picture = read_picture(tmp_path / "ink.jpg")
    assert picture.notices == ("CMYK converted to RGB through its ICC profile",)
    assert np.abs(picture.pixels.reshape(-1, 3).mean(axis=0) - expected).max() < 30
    done = hpcm("encode", tmp_path / "ink.jpg", "-o", tmp_path / "ink.hpcm", "--device", "cpu")
    assert done.exit_code == 0 and picture.notices[0] in done.stderr
    assert codec.decode((tmp_path / "ink.hpcm").read_bytes()).icc is None  # it speaks of inks


def test_metadata_travels_through_pillow_and_python(codec: Codec) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    picture = Picture(small_photograph(40, 30), icc=SRGB, exif=exif.tobytes()[6:], xmp=b"<x/>")
    image = hpcm_codec.decode(hpcm_codec.encode(picture_to_pil(picture), 30, codec), codec)
    assert (image.info["icc_profile"], image.info["exif"][6:], image.info["xmp"]) == (SRGB, picture.exif, b"<x/>")
    buffer = io.BytesIO()
    image.save(buffer, "HPCM")
    with Image.open(buffer) as again:
        assert again.info["icc_profile"] == SRGB and again.info["xmp"] == b"<x/>"
        assert again.getexif()[0x010F] == "maker"
