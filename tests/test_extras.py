"""IPTC, resolution and texts are kept by a .hpcm file where the picture's format supports them, else reported; forged ones do no harm."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, IptcImagePlugin

import hpcm_codec
import hpcm_codec.pillow
from conftest import case, small_photograph
from hpcm_codec import Codec, Picture
from hpcm_codec.bitstream.container import EXTENSION_NAMES, IPTC, RESOLUTION, TEXTS, parse_stream
from hpcm_codec.cli.main import main
from hpcm_codec.extensions import extras_in, payloads_of
from hpcm_codec.images import ORIENTATION, Extras, open_picture, read_picture, write_picture
from hpcm_codec.images.extras import TEXTS_BYTES, as_raw_profile, photoshop_segment
from test_images import exif_with, file_bytes, noise, png, png_chunk

RECORDS = b"\x1c\x02\x78\x00\x07caption\x1c\x02\x50\x00\x06author"
FULL = Extras(RECORDS, (300.0, 150.0), (("Comment", "Grüße, 世界"), ("Title", "A title")))
PIXELS = noise(4, 6, 3)


def about(found: Extras) -> tuple[Any, ...]:
    """Extras, the resolution as precise as PNG and JPEG have it."""
    return found.iptc, found.dpi and tuple(round(value, 1) for value in found.dpi), found.texts


def read(data: bytes) -> Picture:
    picture = read_picture(data)
    with open_picture(data) as opened:
        assert (opened.extras, opened.xmp, opened.exif, opened.notices) == (
            picture.extras,
            picture.xmp,
            picture.exif,
            picture.notices,
        )
    return picture


def written(picture: Picture, format: str) -> tuple[bytes, tuple[str, ...]]:
    buffer = io.BytesIO()
    notices = write_picture(picture, buffer, format)
    return buffer.getvalue(), notices


@pytest.mark.parametrize(
    ("format", "kept", "lost"),
    [
        ("PNG", FULL, []),
        ("JPEG", Extras(RECORDS, FULL.dpi, FULL.texts[:1]), ["these texts (Title)"]),
        ("TIFF", Extras(RECORDS, FULL.dpi), ["these texts (Comment, Title)"]),
        ("BMP", Extras(None, FULL.dpi), ["these IPTC data", "these texts (Comment, Title)"]),
        ("WEBP", Extras(), ["this resolution", "these IPTC data", "these texts (Comment, Title)"]),
        ("PPM", Extras(), ["this resolution", "these IPTC data", "these texts (Comment, Title)"]),
    ],
)
@pytest.mark.parametrize("exif", [None, exif_with(1)[6:]])
def test_metadata_that_a_format_supports_is_written_and_the_rest_reported(format, kept, lost, exif) -> None:
    if exif is not None and format in ("BMP", "PPM"):
        pytest.skip("has no EXIF either")
    data, notices = written(Picture(PIXELS, exif=exif, extras=FULL), format)
    assert about(read(data).extras) == about(kept)
    assert [notice.split("hold ")[1].split(",  ")[0] for notice in notices] == [
        f"{what}, {'it was' if what.startswith('this') else 'they were'} left out" for what in lost
    ]
    assert written(Picture(PIXELS, exif=exif), format)[1] == ()


def test_other_programs_read_what_we_write() -> None:
    for format in ("JPEG", "TIFF"):
        with Image.open(io.BytesIO(written(Picture(PIXELS, extras=FULL), format)[0])) as image:
            assert IptcImagePlugin.getiptcinfo(image) == {(2, 120): b"caption", (2, 80): b"author"}
            assert tuple(round(float(value)) for value in image.info["dpi"]) == (300, 150)


def test_they_come_through_a_file_of_ours_and_through_pillow(codec: Codec) -> None:
    pixels = small_photograph(40, 30)
    data = codec.encode(Picture(pixels, extras=FULL), 30)
    decoded = codec.decode(data)
    assert about(decoded.extras) == about(FULL) and decoded.notices == ()
    assert codec.encode(Picture(pixels, extras=decoded.extras), 30) == data
    image = hpcm_codec.decode(data, codec)
    assert round(image.info["dpi"][0]) == 300 and image.info["comment"].decode() == FULL.comment
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.info["comment"] == image.info["comment"]
        again = io.BytesIO()
        opened.save(again, "HPCM")
    assert about(codec.decode(again.getvalue()).extras) == about(Extras(RECORDS, FULL.dpi, FULL.texts[:1]))
    assert not {IPTC, RESOLUTION, TEXTS} & set(parse_stream(codec.encode(Picture(pixels), 30)).extensions)


@pytest.mark.parametrize("strip", [False, True])
def test_strip_leaves_all_of_them_out(strip: bool, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(written(Picture(small_photograph(40, 30), extras=FULL), "PNG")[0])
    arguments = ["encode", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.hpcm"), *(["--strip"] if strip else [])]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    kinds = set(parse_stream((tmp_path / "a.hpcm").read_bytes()).extensions)
    assert kinds == (set() if strip else {IPTC, RESOLUTION, TEXTS})
    done = CliRunner().invoke(main, ["decode", str(tmp_path / "a.hpcm"), "-o", str(tmp_path / "a.ppm")])
    assert done.exit_code == 0 and ("PPM cannot hold" in done.stderr) == (not strip)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_resolution_follows_the_turn(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = file_bytes(Image.fromarray(PIXELS), format, dpi=(300, 150), exif=exif)
    assert about(read(data).extras)[1] == ((150, 300) if orientation == 6 else (300, 150))


def test_a_resolution_that_only_exif_has_stays_there() -> None:
    exif = Image.Exif()
    exif[0x011A] = exif[0x011B] = 240
    assert read(file_bytes(Image.fromarray(PIXELS), "JPEG", exif=exif)).extras.dpi is None


def test_pixels_that_are_not_square_are_reported() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    picture = read(png(6, 4, 8, 2, rows, png_chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0))))
    assert picture.notices == ("its pixels are not square (2:1), which is not kept",)


@pytest.mark.parametrize(
    ("format", "settings"),
    [
        ("JPEG", {"comment": "Grüße".encode()}),
        ("JPEG", {"comment": "Grüße".encode("latin-1")}),
        ("GIF", {"comment": "Grüße".encode()}),
    ],
)
def test_comments_of_other_formats_are_texts(format: str, settings: dict[str, Any]) -> None:
    assert read(file_bytes(Image.fromarray(PIXELS).convert("L"), format, **settings)).extras.texts == (
        ("Comment", "Grüße"),
    )


def test_texts_that_are_too_long_are_reported() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    texts = png_chunk(b"tEXt", b"workflow\0" + b"x" * TEXTS_BYTES) + png_chunk(b"tEXt", b"Title\0short")
    picture = read(png(6, 4, 8, 2, rows, texts))
    assert picture.extras.texts == (("Title", "short"),)
    assert picture.notices == (f"its text 'workflow' of {TEXTS_BYTES} characters is too long to be kept",)


@pytest.mark.parametrize(
    ("kind", "content", "field"),
    [
        ("exif", exif_with(1), "exif"),
        ("APP1", exif_with(6), "exif"),
        ("app1", exif_with(6)[6:], "exif"),
        ("APP1", b"http://ns.adobe.com/xap/1.0/\0<x/>", "xmp"),
        ("xmp", b"<x/>", "xmp"),
        ("iptc", RECORDS, "iptc"),
        ("iptc", photoshop_segment(RECORDS)[18:], "iptc"),
        ("icc", b"profile", "icc"),
    ],
)
def test_raw_profiles_of_a_png_are_what_they_are_elsewhere(kind: str, content: bytes, field: str) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    text = f"\n{kind}\n{len(content):8}\n{content.hex()}\n".encode()
    picture = read(png(6, 4, 8, 2, rows, png_chunk(b"tEXt", b"Raw profile type " + kind.encode() + b"\0" + text)))
    found = picture.extras.iptc if field == "iptc" else getattr(picture, field)
    expected = {"exif": content.removeprefix(b"Exif\0\0"), "xmp": b"<x/>", "iptc": RECORDS, "icc": b"profile"}[field]
    if field == "exif" and content in (exif_with(6), exif_with(6)[6:]):
        assert picture.width == 4
        expected = exif_with(1)[6:]
    assert found == expected and picture.extras.texts == () and picture.notices == ()


def test_a_raw_profile_that_is_none_is_no_harm() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    for text in (b"", b"\nexif\n 4\nxyz", b"\n\n\n\n"):
        for kind in (b"exif", b"APP1", b"iptc", b"icc"):
            picture = read_picture(
                png(6, 4, 8, 2, rows, png_chunk(b"tEXt", b"Raw profile type " + kind + b"\0" + text))
            )
            assert (picture.pixels == PIXELS).all()


def test_the_raw_profile_that_we_write_is_in_lines() -> None:
    assert as_raw_profile(b"ab").split("\n")[:3] == ["", "iptc", "      14"]


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (RESOLUTION, b""),
        (RESOLUTION, bytes(8)),
        (RESOLUTION, b"\1\0\0\0\0\0\0\0"),
        (RESOLUTION, bytes(9)),
        (TEXTS, b"\5"),
        (TEXTS, b"\1a"),
        (TEXTS, b"\1a\x85\0"),
        (TEXTS, b"\0\1a"),
        (TEXTS, b"\1a\1\xff"),
        (TEXTS, b"\2\n\n\1a"),
        (TEXTS, b"\1a\xff\xff\xff\xff\x07"),
        (TEXTS, b"\1a\1b" * 20000),
    ],
)
def test_payloads_that_make_no_sense_cost_a_notice_and_no_picture(kind: int, payload: bytes, codec: Codec) -> None:
    found, notices = extras_in({kind: payload})
    assert found == Extras() and len(notices) == 1 and "left out" in notices[0]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=10), st.binary(max_size=30))
def test_payloads_of_any_kind_end_in_extras_that_can_be_written(texts: bytes, resolution: bytes, iptc: bytes) -> None:
    found, _ = extras_in({TEXTS: texts, RESOLUTION: resolution, IPTC: iptc})
    if found.texts:  # the encoding is canonical
        assert payloads_of(found)[TEXTS] == texts
    for format in ("PNG", "JPEG", "TIFF", "WEBP", "BMP"):
        write_picture(Picture(np.zeros((1, 1, 3), np.uint8), extras=found), io.BytesIO(), format)


def test_the_new_types_are_skippable_by_older_decoders() -> None:
    assert {EXTENSION_NAMES[kind] for kind in (IPTC, RESOLUTION, TEXTS)} == {"IPTC", "resolution", "texts"}
    assert min(IPTC, RESOLUTION, TEXTS) >= 128


def test_cases_keep_what_they_lost() -> None:
    exif = read(case("rawapp1.png").read_bytes()).exif
    assert exif is not None and exif.startswith(b"II*\0")
    with Image.open(case("dpi.jpg")) as image:
        expected = image.info["dpi"]
    assert about(read(case("dpi.jpg").read_bytes()).extras)[1] == tuple(map(float, expected))
