"""PNG, JPEG and compressed TIFF of large pictures: read by libvips and written in strips, with the pixels and metadata of Pillow's way."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFile, TiffImagePlugin

from conftest import small_photograph
from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.images import (
    Picture,
    PixelSource,
    Samples,
    StripPicture,
    held_bytes,
    libvips,
    open_picture,
    read_picture,
    write_picture,
)
from hpcm_codec.images.png import LEVEL
from hpcm_codec.tiles import memory

needs_libvips = pytest.mark.skipif(libvips.libvips() is None, reason="pyvips is not installed")
WIDTH, HEIGHT = 83, 310
EXIF = Image.Exif()
EXIF[0x010E] = "a description"
METADATA = {"icc_profile": b"a profile", "exif": EXIF.tobytes()}


@pytest.fixture(autouse=True)
def every_picture_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcm_codec.images.picture.LARGE_PIXELS", 0)
    # of so small a picture libvips would take more than Pillow
    monkeypatch.setattr(libvips, "LIBRARY_BYTES", 0)
    monkeypatch.setattr(libvips, "LIBRARY_ROWS", 0)


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    load = ImageFile.ImageFile.load

    def of_one_pixel(self: ImageFile.ImageFile) -> Any:
        return load(self) if self.size == (1, 1) else pytest.fail("Pillow reads all of it")

    monkeypatch.setattr(ImageFile.ImageFile, "load", of_one_pixel)


def samples(mode: str) -> Samples:
    photograph = small_photograph(WIDTH, HEIGHT)
    channels = {"L": (1,), "LA": (1, 0), "RGB": (0, 1, 2), "RGBA": (0, 1, 2, 1)}[mode]
    return np.ascontiguousarray(photograph[..., channels])


def file_bytes(mode: str, format: str, **options: Any) -> bytes:
    pixels, buffer = samples(mode), io.BytesIO()
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def assert_same(picture: PixelSource, whole: Picture) -> None:
    """In strips that overlap, and from the top once more."""
    for _ in range(2):
        for top, bottom in ((0, 90), (60, 200), (200, 201), (250, whole.height)):
            assert np.array_equal(picture.rows(top, bottom), whole.pixels[top:bottom])
    assert (picture.width, picture.height, picture.grey) == (whole.width, whole.height, whole.grey)
    assert (picture.alpha is None) == (whole.alpha is None)
    assert picture.alpha is None or whole.alpha is None or np.array_equal(picture.alpha, whole.alpha)
    assert (picture.icc, picture.exif, picture.xmp) == (whole.icc, whole.exif, whole.xmp)
    assert picture.notices == whole.notices


# ----------------------------------------------------------------------------------------------------------------- reading

READ_IN_STRIPS = [
    *(("PNG", mode, METADATA) for mode in ("L", "LA", "RGB", "RGBA")),
    *(("JPEG", mode, {"subsampling": way, **METADATA}) for mode in ("L", "RGB") for way in (0, 1, 2)),
    ("JPEG", "RGB", {"progressive": True, "quality": 30}),
    *(("TIFF", "RGB", {"compression": f"tiff_{way}"}) for way in ("lzw", "deflate", "adobe_deflate")),
    ("TIFF", "L", {"compression": "packbits", "icc_profile": b"a profile"}),
]


@needs_libvips
@pytest.mark.parametrize(("format", "mode", "options"), READ_IN_STRIPS)
def test_strips_are_what_pillow_reads(
    format: str, mode: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 4096)
    data = file_bytes(mode, format, **options)
    whole = read_picture(data)
    request.getfixturevalue("never_loaded")
    with open_picture(data) as picture:
        assert_same(picture, whole)


@needs_libvips
def test_tiles_of_a_tiff_are_read_a_row_at_a_time(never_loaded: None) -> None:
    pixels, held = samples("RGB"), []
    tiled = libvips.libvips().Image.new_from_array(pixels)
    data = tiled.tiffsave_buffer(compression="lzw", tile=True, tile_width=64, tile_height=32, predictor="horizontal")
    with open_picture(data, afford=lambda *needed: held.append(needed[2])) as picture:
        assert_same(picture, Picture(pixels, exif=picture.exif))
    assert len(held) == 1 and 2 * 64 * 32 * 3 < held[0] < 2 * 2 * 64 * 32 * 3


@needs_libvips
def test_metadata_behind_a_pngs_pixels_are_found(never_loaded: None) -> None:
    data = file_bytes("RGB", "PNG")
    late = chunk(b"tEXt", b"date:create\0today") + chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + b"<x/>")
    with open_picture(data[:-12] + late + data[-12:]) as picture:
        assert picture.xmp == b"<x/>"
        assert np.array_equal(picture.rows(0, HEIGHT), samples("RGB"))


@needs_libvips
def test_what_must_be_converted_is_left_to_pillow() -> None:
    """Turned (the EXIF of one of them behind the pixels), interlaced or keyed, of 16 bits, with a palette, of four inks."""
    turned = Image.Exif()
    turned[0x0112] = 6
    plain = file_bytes("RGB", "PNG")
    photograph = Image.fromarray(samples("RGB"))
    late = chunk(b"eXIf", turned.tobytes().removeprefix(b"Exif\0\0"))
    files = [file_bytes("RGB", "PNG", exif=turned.tobytes()), plain[:-12] + late + plain[-12:]]
    files.append(file_bytes("RGB", "JPEG", exif=turned.tobytes()))
    files.append(file_bytes("L", "PNG", transparency=120))
    for image, format in (
        (Image.fromarray(samples("L")[..., 0].astype(np.uint16) * 257), "PNG"),
        (photograph.quantize(16), "PNG"),
        (photograph.convert("CMYK"), "JPEG"),
        (photograph.convert("CMYK"), "TIFF"),
    ):
        buffer = io.BytesIO()
        image.save(buffer, format)
        files.append(buffer.getvalue())
    for data in files:
        with open_picture(data) as picture:
            assert_same(picture, read_picture(data))


@needs_libvips
@pytest.mark.parametrize(("format", "damage"), [("PNG", "cut"), ("PNG", "check"), ("JPEG", "cut"), ("TIFF", "cut")])
def test_broken_files_are_refused_by_name_without_a_word_on_stderr(
    format: str, damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 4096)
    data = file_bytes("RGB", format, **({"compression": "tiff_deflate"} if format == "TIFF" else {}))
    path = tmp_path / "broken"
    if damage == "cut" and format == "TIFF":  # its directory is at the end
        data = data[: len(data) // 2] + bytes(len(data) // 4) + data[3 * len(data) // 4 :]
    elif damage == "cut":
        data = data[: len(data) // 2]
    else:  # a wrong check of the pixels' chunk, which itself is whole
        data = data[:-16] + bytes(4) + data[-12:]
    path.write_bytes(data)
    reported = r"broken: a damaged or truncated image \(.+\); get the file again"
    with pytest.raises(FileError, match=reported), open_picture(path) as picture:
        picture.rows(0, 100)
        picture.rows(100, HEIGHT)
    assert capfd.readouterr() == ("", "")


@needs_libvips
def test_a_file_that_cannot_be_read_on_says_what_the_system_said() -> None:
    class Failing(io.BytesIO):
        broken = False

        def read(self, size: int | None = -1) -> bytes:
            if self.broken:
                raise OSError(5, "Input/output error")
            return super().read(size)

    rough = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rough).save(buffer, "PNG")
    file = Failing(buffer.getvalue())
    with pytest.raises(FileError, match="Input/output error"), open_picture(file) as picture:
        assert np.array_equal(picture.rows(0, 10), rough[:10])
        file.broken = True
        picture.rows(10, 400)


def test_where_libvips_is_missing_pillow_reads_and_a_refusal_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_bytes("RGB", "PNG")
    monkeypatch.setattr(libvips, "libvips", lambda: None)
    with open_picture(data) as picture:
        assert_same(picture, read_picture(data))

    def refuse(width: int, height: int, held: int) -> None:
        memory.check("reading", held + 1, held, "raise the limit")

    advice = r"raise the limit, or pip install 'hpcm-codec\[large\]'"
    with pytest.raises(HpcmError, match=advice), open_picture(data, afford=refuse):
        pass


def test_estimates_grow_with_the_width_and_the_way_that_takes_less_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def of(width: int, height: int, **info: bool) -> int | None:
        image = Image.open(io.BytesIO(file_bytes("RGB", "JPEG")))
        image._size = width, height  # type: ignore[attr-defined]
        image.info.update(info)
        return libvips.held_bytes(image, "RGB")

    small, large = of(7000, 5000), of(32768, 32768)
    assert small is not None and large is not None
    assert small == of(7000, 140_000) and small < 4 * 7000 * 5000 < large < 0.4e9
    assert of(32768, 32768, progressive=True) == large + 6 * 2**30
    assert of(150_000, 200) is None  # a band as high as the picture


def test_a_normal_start_does_not_import_pyvips() -> None:
    code = "import sys, hpcm_codec.images; print('pyvips' in sys.modules)"
    reported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert reported == "False\n"


# ----------------------------------------------------------------------------------------------------------------- writing


def strips_of(picture: Picture, rows: int) -> StripPicture:
    strips = (picture.pixels[top : top + rows] for top in range(0, picture.height, rows))
    fields = (picture.alpha, picture.icc, picture.exif, picture.xmp)
    return StripPicture(picture.width, picture.height, picture.grey, strips, *fields)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("work_bytes", [1, 5000, 2**20])
def test_a_png_in_strips_is_the_picture_with_its_metadata(
    mode: str, work_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcm_codec.images.png.WORK_BYTES", work_bytes)
    monkeypatch.setattr("hpcm_codec.images.writing._image_of", lambda *rest: pytest.fail("an image is filled"))
    planes = samples(mode)
    colours = 1 if mode[0] == "L" else 3
    alpha = np.ascontiguousarray(planes[..., colours]) if mode.endswith("A") else None
    exif = EXIF.tobytes().removeprefix(b"Exif\0\0")
    picture = Picture(np.ascontiguousarray(planes[..., :colours]), alpha, b"a profile", exif, b"<x/>")
    file = io.BytesIO()
    assert write_picture(strips_of(picture, 64), file, "PNG") == ()
    again = Image.open(io.BytesIO(file.getvalue()))
    again.load()  # checks included
    assert again.mode == mode and np.array_equal(np.asarray(again).reshape(planes.shape), planes)
    by_pillow = file_bytes(mode, "PNG", compress_level=LEVEL, **METADATA)
    assert len(file.getvalue()) < 1.03 * len(by_pillow)  # filters are as well chosen
    written = read_picture(file.getvalue())
    assert (written.icc, written.exif, written.xmp) == (b"a profile", exif, b"<x/>")


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))))
def test_any_samples_come_back_from_a_png_in_strips(pixels: Samples) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpcm_codec.images.png.WORK_BYTES", 20)
        file = io.BytesIO()
        write_picture(strips_of(Picture(pixels), 4), file, "PNG")
    assert np.array_equal(read_picture(file.getvalue()).pixels, pixels)


def test_a_png_is_being_written_before_the_last_strip_is_decoded(tmp_path: Path, no_leftovers: None) -> None:
    written: list[int] = []
    file = io.BytesIO()

    def strips() -> Iterator[Samples]:
        for _ in range(3):
            written.append(len(file.getvalue()))
            yield np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
        raise HpcmError("the last strip is broken")

    with pytest.raises(HpcmError, match="the last strip"):
        write_picture(StripPicture(300, 800, False, strips()), file, "PNG")
    assert written[0] < 100 < 100_000 < written[1] < written[2]
    with pytest.raises(HpcmError, match="the last strip"):
        write_picture(StripPicture(300, 800, False, strips()), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_large_pngs_are_estimated_to_hold_their_transparency_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcm_codec.images.picture.LARGE_PIXELS", 2**24)
    work = held_bytes("PNG", 32768, 32768, alpha=False, exif=True)
    assert work < 60e6 and held_bytes("PNG", 32768, 32768, alpha=True, exif=True) == work + 2**30
    assert held_bytes("PNG", 4096, 4096, alpha=False, exif=False) > 4 * 2**24
