"""Sound pictures with large metadata, and pictures with a small fault that no pixel depends on, are read; others are refused by name."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from conftest import case, small_photograph
from hpcm_codec.errors import FileError
from hpcm_codec.images import Picture, limits, open_picture, read_picture, write_picture
from hpcm_codec.images.repair import NO_JPEG_END
from test_images import SRGB, file_bytes, noise, png, png_chunk

TWO_MB = 2 * 2**20


def png_of(pixels: np.ndarray, chunks: bytes) -> bytes:
    height, width, _ = pixels.shape
    return png(width, height, 8, 2, b"".join(b"\0" + row.tobytes() for row in pixels), chunks)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(TWO_MB))),
        png_chunk(b"tEXt", b"workflow\0" + b"a" * TWO_MB),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x/>" + b" " * TWO_MB)),
        png_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(SRGB + bytes(TWO_MB))),
    ],
    ids=["zTXt", "tEXt", "iTXt", "iCCP"],
)
def test_metadata_of_more_than_a_megabyte_is_no_damage(chunk: bytes) -> None:
    pixels = noise(4, 6, 3)
    data = png_of(pixels, chunk)
    with open_picture(data) as opened:
        assert (opened.rows(0, 4) == pixels).all()
    picture = read_picture(data)
    assert (picture.pixels == pixels).all()
    assert b"iCCP" not in chunk or picture.icc == SRGB + bytes(TWO_MB)
    assert b"XML" not in chunk or picture.xmp == b"<x/>" + b" " * TWO_MB


def test_a_large_profile_comes_back_from_the_png_that_we_write() -> None:
    written = io.BytesIO()
    write_picture(Picture(noise(4, 6, 3), icc=SRGB + bytes(TWO_MB)), written, "PNG")
    assert read_picture(written.getvalue()).icc == SRGB + bytes(TWO_MB)


@pytest.mark.parametrize(("each", "times"), [(limits.TEXT_CHUNK_BYTES + 1, 1), (limits.TEXT_CHUNK_BYTES - 1, 5)])
def test_what_unpacks_to_more_than_our_limits_is_refused_by_name(each: int, times: int) -> None:
    packed = zlib.compress(bytes(each), 1)
    data = png_of(noise(4, 6, 3), b"".join(png_chunk(b"zTXt", b"%d\0\0" % n + packed) for n in range(times)))
    with pytest.raises(FileError, match="64 MiB") as caught:
        read_picture(data)
    assert "damaged" not in str(caught.value)


def test_limits_of_pillow_are_put_back_by_the_last_who_reads() -> None:
    def now() -> tuple[object, ...]:
        return Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY

    before = now()
    first, second = limits.our_limits(2**40), limits.our_limits(2**20)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert now() == (2**40, limits.TEXT_CHUNK_BYTES, limits.TEXT_BYTES)
    second.__exit__(None, None, None)
    assert now() == before


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"eXIf", b"prIv"])
@pytest.mark.parametrize("after", [False, True])
def test_a_part_besides_the_pixels_with_a_wrong_checksum_is_left_out(kind: bytes, after: bool) -> None:
    pixels = noise(4, 6, 3)
    wrong = bytearray(png_chunk(kind, b"Comment\0\0x"))
    wrong[-1] ^= 1
    data = png_of(pixels, b"" if after else bytes(wrong))
    if after:
        data = data[:-12] + wrong + data[-12:]
    picture = read_picture(data)
    assert (picture.pixels == pixels).all()
    assert len(picture.notices) == 1 and f"({kind.decode()}) is wrong" in picture.notices[0]
    with open_picture(data) as opened:
        assert (opened.rows(0, 4) == pixels).all() and opened.notices == picture.notices


def test_a_wrong_checksum_of_what_pixels_need_is_refused_without_the_advice_to_convert_to_png() -> None:
    data = bytearray(png_of(noise(4, 6, 3), b""))
    data[8 + 8 + 13] ^= 1  # IHDR's
    with pytest.raises(FileError) as caught:
        read_picture(bytes(data))
    assert "convert" not in str(caught.value)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_without_its_end_mark_is_read(mode: str, missing: int, progressive: bool) -> None:
    data = file_bytes(Image.fromarray(small_photograph()).convert(mode), "JPEG", progressive=progressive)
    whole, cut = read_picture(data), read_picture(data[:-missing])
    assert (cut.pixels == whole.pixels).all() and cut.notices == (NO_JPEG_END,) and whole.notices == ()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [6, 12, 100, 1000])
def test_a_jpeg_that_lacks_pixels_is_refused(missing: int, progressive: bool) -> None:
    data = file_bytes(Image.fromarray(small_photograph()), "JPEG", progressive=progressive, quality=90)
    with pytest.raises(FileError, match="truncated"):
        read_picture(data[:-missing])


def test_a_progressive_jpeg_that_lacks_whole_scans_is_refused() -> None:
    data = file_bytes(Image.fromarray(small_photograph()), "JPEG", progressive=True)
    last_scan = data.rindex(b"\xff\xda")
    with pytest.raises(FileError, match="truncated"):
        read_picture(data[: data.rindex(b"\xff\xc4", 0, last_scan)])


def test_a_jpeg_that_has_its_end_mark_and_more_behind_it_is_left_alone() -> None:
    data = file_bytes(Image.fromarray(small_photograph()), "JPEG") + b"more of another program"
    assert read_picture(data).notices == ()


@pytest.mark.parametrize("name", ["bigtxtz.png", "badtext.png", "jnoeoi.jpg"])
def test_cases_that_were_called_damaged_are_read(name: str, tmp_path: Path) -> None:
    picture = read_picture(case(name))
    assert (picture.width, picture.height) == (64, 48)
    assert len(picture.notices) == 1
