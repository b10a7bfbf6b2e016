"""A picture is turned once, and whatever says how it was turned, or how wide and high it was, says so of the upright picture."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from conftest import case
from hpcm_codec.images import EXIF_PREFIX, ORIENTATION, open_picture, read_picture, write_picture
from test_images import exif_with, file_bytes, noise, png, png_chunk, read_exif

BYTE, SHORT, LONG, SBYTE, SSHORT, SLONG, IFD = 1, 3, 4, 6, 8, 9, 13
SIZES = {BYTE: "B", SHORT: "H", LONG: "I", SBYTE: "b", SSHORT: "h", SLONG: "i", IFD: "I"}


def exif_of_entries(
    entries: list[tuple[int, int, int]], order: str = "<", deeper: tuple[tuple[int, int, int], ...] = ()
) -> bytes:
    """EXIF of (tag, type, value) in the first directory, and of those in EXIF's own."""
    after = 8 + 2 + 12 * (len(entries) + bool(deeper)) + 4
    if deeper:
        entries = [*entries, (int(ExifTags.IFD.Exif), LONG, after)]

    def directory(of: Sequence[tuple[int, int, int]]) -> bytes:
        written = struct.pack(f"{order}H", len(of))
        for tag, kind, value in of:
            written += struct.pack(f"{order}HHI", tag, kind, 1) + struct.pack(order + SIZES[kind], value).ljust(
                4, b"\0"
            )
        return written + bytes(4)

    start = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    return start + directory(entries) + (directory(deeper) if deeper else b"")


def png_with(exif: bytes, pixels: np.ndarray) -> bytes:
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return png(width, height, 8, 2, rows, chunks=png_chunk(b"eXIf", exif))


def shown(data: bytes) -> np.ndarray:
    """What a viewer shows that heeds the orientation."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image))


def assert_turned_once(data: bytes) -> bytes:
    """What comes out has no more turns to make; returns its EXIF."""
    picture = read_picture(data)
    with open_picture(data) as opened:
        assert opened.exif == picture.exif and (opened.rows(0, opened.height) == picture.pixels).all()
    written = io.BytesIO()
    assert write_picture(picture, written, "PNG") == ()
    assert (shown(written.getvalue()) == picture.pixels).all()
    assert picture.exif is not None and picture.exif[:2] in (b"II", b"MM")
    return picture.exif


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", SIZES)
def test_an_orientation_of_any_type_is_reset_by_what_turns_the_pixels(kind: int, order: str) -> None:
    exif = exif_of_entries([(ORIENTATION, kind, 6)], order)
    kept = assert_turned_once(png_with(exif, noise(5, 8, 3)))
    assert (read_picture(png_with(exif, pixels := noise(5, 8, 3))).pixels == shown(png_with(exif, pixels))).all()
    turned = read_picture(png_with(exif, noise(5, 8, 3))).width == 5
    assert (read_exif(kept)[ORIENTATION] == 1) == turned
    assert turned or kind == BYTE  # Pillow, and programs that use it, read it as a string


def test_all_of_several_orientations_are_reset() -> None:
    kept = assert_turned_once(
        png_with(exif_of_entries([(ORIENTATION, SHORT, 3), (ORIENTATION, LONG, 8)]), noise(5, 8, 3))
    )
    assert kept.count(struct.pack("<HHII", ORIENTATION, SHORT, 1, 1)) == 2


@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_the_prefix_of_exif_may_be_there_several_times(times: int) -> None:
    exif = exif_with(6).removeprefix(EXIF_PREFIX)
    in_png = png_with(times * EXIF_PREFIX + exif, noise(5, 8, 3))
    in_jpeg = file_bytes(Image.fromarray(noise(5, 8, 3)), "JPEG", exif=(times + 1) * EXIF_PREFIX + exif)
    for data in (in_png, in_jpeg):
        kept = assert_turned_once(data)
        assert read_picture(data).width == 5
        assert read_exif(kept)[0x010F] == "maker"


def test_exif_without_a_byte_order_mark_is_left_out_with_a_notice() -> None:
    picture = read_picture(file_bytes(Image.fromarray(noise(4, 6, 3)), "JPEG", exif=EXIF_PREFIX + b"nonsense"))
    assert picture.exif is None
    assert picture.notices == ("its EXIF begins with no byte order mark, it was left out",)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_width_and_height_in_exif_follow_the_turn(orientation: int) -> None:
    sides = [(0x0100, LONG, 8), (0x0101, SHORT, 5), (ORIENTATION, SHORT, orientation), (0xA000, SHORT, 1)]
    exif = exif_of_entries(sides, ">", ((0xA002, SHORT, 8), (0xA003, LONG, 5)))
    kept = assert_turned_once(png_with(exif, noise(5, 8, 3)))
    assert len(kept) == len(exif)
    parsed = read_exif(kept)
    own = parsed.get_ifd(ExifTags.IFD.Exif)
    picture = read_picture(png_with(exif, noise(5, 8, 3)))
    assert (parsed[0x0100], parsed[0x0101]) == (own[0xA002], own[0xA003]) == (picture.width, picture.height)


def test_a_single_side_in_exif_follows_the_turn() -> None:
    kept = assert_turned_once(png_with(exif_of_entries([(0x0100, LONG, 8), (ORIENTATION, SHORT, 6)]), noise(5, 8, 3)))
    assert read_exif(kept)[0x0101] == 8 and 0x0100 not in read_exif(kept)


def test_width_and_height_in_xmp_follow_the_turn() -> None:
    xmp = b'<r tiff:Orientation="6" tiff:ImageWidth="6" exif:PixelXDimension="6"><tiff:ImageLength>4</tiff:ImageLength></r>'
    picture = read_picture(file_bytes(Image.fromarray(noise(4, 6, 3)), "WEBP", xmp=xmp, lossless=True))
    assert picture.xmp == (
        b'<r tiff:Orientation="1" tiff:ImageLength="6" exif:PixelYDimension="6"><tiff:ImageWidth>4</tiff:ImageWidth></r>'
    )


def test_width_and_height_in_a_tiff_follow_the_turn() -> None:
    tags = Image.Exif()
    tags[ORIENTATION] = 6
    tags.get_ifd(ExifTags.IFD.Exif).update({0xA002: 6, 0xA003: 4})
    tags[int(ExifTags.IFD.Exif)] = tags.get_ifd(ExifTags.IFD.Exif)
    picture = read_picture(file_bytes(Image.fromarray(noise(4, 6, 3)), "TIFF", exif=tags))
    assert (picture.width, picture.height) == (4, 6) and picture.exif is not None
    own = read_exif(picture.exif).get_ifd(ExifTags.IFD.Exif)
    assert (own[0xA002], own[0xA003]) == (4, 6)


@pytest.mark.parametrize("name", ["pre12.jpg", "kind6le.png", "kind13le.png", "exdim.jpg"])
def test_pictures_that_were_turned_twice_are_turned_once(name: str) -> None:
    data = case(name).read_bytes()
    kept = assert_turned_once(data)
    assert read_exif(kept)[ORIENTATION] == 1
    if name == "exdim.jpg":
        parsed, picture = read_exif(kept), read_picture(data)
        assert (parsed[0x0100], parsed[0x0101]) == (picture.width, picture.height) == (48, 64)
