"""Large pictures: read, coded and written a row of tiles at a time, within a limit of memory that is checked first, and without seams."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageFile

import hpcm_codec
from conftest import SHARED, small_photograph
from hpcm_codec.bitstream import container
from hpcm_codec.cli.main import main
from hpcm_codec.codec import Codec
from hpcm_codec.errors import FileError, HpcmError, MemoryLimitError, UsageError
from hpcm_codec.images import Picture, Samples, StripPicture, held_bytes, open_picture, read_picture, write_picture
from hpcm_codec.images.plain import tiff_start
from hpcm_codec.targets import Target, encode_to_target
from hpcm_codec.tiles import memory
from hpcm_codec.tiles.grid import TileGrid

ODD = SHARED / "data" / "odd"
odd_files = sorted(path.name for path in ODD.glob("*") if path.name != "INDEX.txt") if ODD.is_dir() else []
WIDTH, HEIGHT = 70, 2100  # one column of three tiles


def hpcm(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def file_bytes(pixels: Samples, format: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, format, **settings)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def tall() -> Picture:
    return Picture(small_photograph(WIDTH, HEIGHT), icc=b"profile", xmp=b"<x/>")


@pytest.fixture(scope="module")
def tall_stream(codec: Codec, tall: Picture) -> bytes:
    return codec.encode(tall, 50)


# ----------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.skipif(not odd_files, reason=f"{ODD} is not here")
@pytest.mark.parametrize("name", odd_files)
def test_rows_are_those_that_reading_the_whole_picture_gives(name: str) -> None:
    try:
        whole = read_picture(ODD / name)
    except FileError as error:
        with pytest.raises(FileError) as found, open_picture(ODD / name) as picture:
            picture.rows(0, picture.height)
        assert str(found.value) == str(error)
        return
    with open_picture(ODD / name) as picture:
        assert (picture.height, picture.width, picture.grey) == (whole.height, whole.width, whole.grey)
        middle = whole.height // 2
        for top, bottom in ((0, middle), (middle // 2, whole.height), (middle, middle + 1)):
            assert np.array_equal(picture.rows(top, bottom), whole.pixels[top:bottom])
        assert (picture.alpha is None) == (whole.alpha is None)
        assert picture.alpha is None or whole.alpha is None or np.array_equal(picture.alpha, whole.alpha)
        assert (picture.icc, picture.exif, picture.xmp) == (whole.icc, whole.exif, whole.xmp)
        assert sorted(picture.notices) == sorted(whole.notices)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("format", ["PPM", "TIFF", "BMP"])
def test_plain_formats_are_read_in_strips_and_never_loaded(
    format: str, grey: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = small_photograph(61, 300)[..., : 1 if grey else 3]
    data = file_bytes(pixels, format)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("Pillow reads all of it"))
    held: list[int] = []
    with open_picture(data, afford=lambda *needed: held.append(needed[2])) as picture:
        for top, bottom in ((0, 130), (66, 256), (299, 300)):
            assert np.array_equal(picture.rows(top, bottom), pixels[top:bottom])
    assert held == [0]


def test_a_tiff_of_many_strips_is_read_across_them() -> None:
    pixels = small_photograph(61, 300)
    begin, end = tiff_start(61, 300, False, {})
    with open_picture(begin + pixels.tobytes() + end) as picture:
        assert np.array_equal(picture.rows(60, 200), pixels[60:200])


def test_a_plain_file_that_was_cut_short_is_refused() -> None:
    data = file_bytes(small_photograph(61, 300), "PPM")
    with pytest.raises(FileError, match="truncated"), open_picture(data[:-100], name="cut.ppm") as picture:
        picture.rows(0, 300)


def test_memory_is_announced_before_it_is_used(tmp_path: Path) -> None:
    class TooMuch(HpcmError):
        pass

    def refuse(width: int, height: int, held: int) -> None:
        assert (width, height) == (64, 32) and 4 * 64 * 32 <= held < 40 * 64 * 32
        raise TooMuch("too much")

    deep = Image.fromarray(np.arange(2048, dtype=np.uint16).reshape(32, 64))
    deep.save(tmp_path / "deep.png")
    Image.new("P", (64, 32)).save(tmp_path / "palette.png")
    Image.new("RGB", (64, 32)).save(tmp_path / "photo.jpg", progressive=True)
    Image.new("LA", (64, 32)).save(tmp_path / "alpha.png")
    for path in tmp_path.iterdir():
        with pytest.raises(TooMuch, match="too much"), open_picture(path, afford=refuse):
            pass


def test_our_limit_of_pixels_takes_the_place_of_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_bytes(small_photograph(96, 64), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with open_picture(data) as picture:
        assert picture.width == 96
    with pytest.raises(FileError, match="above the limit of 6143"), open_picture(data, max_pixels=96 * 64 - 1):
        pass
    assert Image.MAX_IMAGE_PIXELS == 1000


# ------------------------------------------------------------------------------------------------------------------ coding


class Watched(Picture):
    """A picture that notes which rows are asked for."""

    asked: list[tuple[int, int]]

    def rows(self, top: int, bottom: int) -> Samples:
        self.asked.append((top, bottom))
        return super().rows(top, bottom)


def test_encoding_asks_for_each_row_of_tiles_once_with_its_halo(
    codec: Codec, tall: Picture, tall_stream: bytes
) -> None:
    watched = Watched(tall.pixels, icc=tall.icc, xmp=tall.xmp)
    watched.asked = []
    assert codec.encode(watched, 50) == tall_stream
    assert watched.asked == [(0, 800), (608, 1504), (1312, 2100)]
    assert codec.encode_with_latents(tall, 50).data == tall_stream


def test_files_from_strips_are_those_from_the_whole_picture(
    codec: Codec, tall: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Picture(tall.pixels)
    for name, settings in (("a.ppm", {}), ("a.png", {}), ("a.tif", {"compression": "tiff_lzw"})):
        Image.fromarray(tall.pixels).save(tmp_path / name, **settings)
        assert hpcm_codec.encode(tmp_path / name, 50, device="cpu") == codec.encode(plain, 50)
        with monkeypatch.context() as patch:  # as if it were large: by libvips, where that is here
            patch.setattr("hpcm_codec.images.picture.LARGE_PIXELS", 0)
            patch.setattr("hpcm_codec.images.libvips.LIBRARY_BYTES", 0)
            patch.setattr("hpcm_codec.images.libvips.LIBRARY_ROWS", 0)
            assert hpcm("encode", tmp_path / name, "-f", "-o", tmp_path / "a.hpcm").exit_code == 0
        assert (tmp_path / "a.hpcm").read_bytes() == codec.encode(plain, 50)


def test_decoding_gives_a_strip_for_every_row_of_tiles(codec: Codec, tall_stream: bytes) -> None:
    strips = list(codec.decode_strips(tall_stream).strips)
    assert [len(strip) for strip in strips] == [704, 704, 692]
    assert np.array_equal(np.concatenate(strips), codec.decode(tall_stream).pixels)


def test_targets_take_pictures_in_strips_and_measure_what_is_decoded(codec: Codec) -> None:
    pixels = small_photograph(64, 1100)
    with open_picture(file_bytes(pixels, "PPM")) as picture:
        reached = encode_to_target(codec, picture, Target("psnr", 29.0))
    error = np.mean((codec.decode(reached.data).pixels.astype(float) - pixels) ** 2)
    assert reached.psnr == pytest.approx(10 * np.log10(255**2 / error))


# ----------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (61, 130)])
def test_a_tiff_of_ours_is_read_by_pillow_with_its_metadata(size: tuple[int, int], grey: bool) -> None:
    pixels = small_photograph(*size)[..., : 1 if grey else 3].copy()
    file = io.BytesIO()
    assert write_picture(Picture(pixels, icc=b"a profile", xmp=b"<odd/>"), file, "TIFF") == ()
    again = read_picture(file.getvalue())
    assert np.array_equal(again.pixels, pixels)
    assert (again.icc, again.xmp, again.exif) == (b"a profile", b"<odd/>", None)


@pytest.mark.parametrize(
    ("name", "large"), [(f"a.{kind}", False) for kind in ("ppm", "tif", "png", "bmp", "webp")] + [("a.png", True)]
)
def test_strips_become_the_picture_in_every_format(
    codec: Codec,
    tall_stream: bytes,
    name: str,
    large: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leftovers: None,
) -> None:
    if large:
        monkeypatch.setattr("hpcm_codec.images.picture.LARGE_PIXELS", 0)
    (tmp_path / "a.hpcm").write_bytes(tall_stream)
    done = hpcm("decode", tmp_path / "a.hpcm", "-o", tmp_path / name)
    assert done.exit_code == 0, done.output
    assert np.array_equal(np.asarray(Image.open(tmp_path / name)), codec.decode(tall_stream).pixels)


def test_rows_are_written_before_the_last_is_decoded(tmp_path: Path, no_leftovers: None) -> None:
    written: list[int] = []
    file = io.BytesIO()

    def strips():
        for _ in range(3):
            written.append(len(file.getvalue()))
            yield np.zeros((2, 4, 3), np.uint8)
        raise HpcmError("the last strip is broken")

    with pytest.raises(HpcmError, match="the last strip"):
        write_picture(StripPicture(4, 8, False, strips()), file, "PPM")
    assert written == [11, 35, 59]
    for name in ("a.ppm", "a.png"):
        with pytest.raises(HpcmError, match="the last strip"):
            write_picture(StripPicture(4, 8, False, strips()), tmp_path / name)
        assert not (tmp_path / name).exists()


# ------------------------------------------------------------------------------------------------------------------ memory


def test_the_default_is_a_quarter_of_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.machine_memory() > 2**28
    monkeypatch.setattr(memory, "machine_memory", lambda: 64 * 2**30)
    assert memory.default_limit() == 16 * 2**30
    monkeypatch.setattr(memory, "machine_memory", lambda: 2 * 2**30)
    assert memory.default_limit() == 2**30


def test_only_what_must_be_held_grows_with_the_picture() -> None:
    million, gigapixel = (1000, 1000), (32768, 32768)
    assert memory.encoding_bytes(*million, held=0) < 10**9 < memory.encoding_bytes(*gigapixel, held=0) < 1.5 * 10**9
    assert memory.decoding_bytes(*million, held=0) < 10**9 < memory.decoding_bytes(*gigapixel, held=0) < 2 * 10**9
    for format in ("PPM", "TIFF"):
        assert held_bytes(format, *gigapixel, alpha=False, exif=False) == 0
    assert held_bytes("TIFF", *gigapixel, alpha=False, exif=True) >= 4 * 2**30
    assert held_bytes("BMP", *gigapixel, alpha=False, exif=False) >= 4 * 2**30


def test_encoding_that_does_not_fit_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leftovers: None
) -> None:
    Image.new("RGB", (5000, 4000)).save(tmp_path / "large.png")
    Image.new("RGB", (5000, 4000)).save(tmp_path / "large.ppm")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("work was done"))
    monkeypatch.setattr("hpcm_codec.batch.machine.Machine.codec", lambda *rest: pytest.fail("work was done"))
    for name, options in (
        ("large.png", ["--memory", "600MB"]),
        ("large.ppm", ["--memory", "600MB"]),
        ("large.ppm", ["--size", "1MB", "--memory", "800MB"]),
    ):
        done = hpcm("encode", tmp_path / name, "-o", tmp_path / "out.hpcm", *options)
        assert done.exit_code == 1 and not (tmp_path / "out.hpcm").exists()
        assert (
            "encoding 5000×4000 pixels takes about " in done.stderr
            and "bytes of memory, above the limit" in done.stderr
        )
    with pytest.raises(MemoryLimitError) as refused:
        hpcm_codec.encode(tmp_path / "large.png", device="cpu", memory=600_000_000)
    assert refused.value.needed > refused.value.limit == 600_000_000


def file_of_empty_tiles(width: int, height: int, codec: Codec) -> bytes:
    """A file of that size whose tiles hold nothing, for what looks at the header alone."""
    header = container.Header(width, height, 100, codec.identity, grey=False, float_profile=codec.profile == "float")
    tile = container.TileStreams(b"", b"", b"", b"", 0)
    return container.write_stream(container.HpcmStream(header, (tile,) * len(header.grid), {}))


def test_decoding_that_does_not_fit_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Codec, no_leftovers: None
) -> None:
    data = file_of_empty_tiles(9000, 8000, codec)
    (tmp_path / "large.hpcm").write_bytes(data)
    monkeypatch.setattr("hpcm_codec.batch.machine.Machine.codec_for", lambda *rest: pytest.fail("work was done"))
    done = hpcm("decode", tmp_path / "large.hpcm", "--memory", "900MB")
    assert done.exit_code == 1 and "decoding 9000×8000 pixels to PNG takes about" in done.stderr
    with pytest.raises(MemoryLimitError):
        hpcm_codec.decode(data, device="cpu", memory=900_000_000)
    monkeypatch.setattr(
        "hpcm_codec.batch.machine.Machine.codec_for", lambda *rest: (_ for _ in ()).throw(HpcmError("work!"))
    )
    for options in (["-o", tmp_path / "large.ppm"], ["--region", "8000,0,500,500"]):  # these fit
        assert "work!" in hpcm("decode", tmp_path / "large.hpcm", "--memory", "1.2GB", *options).stderr


def test_a_codecs_tile_workers_count_towards_the_memory_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    Image.new("RGB", (3000, 2000)).save(tmp_path / "large.ppm")
    data = file_of_empty_tiles(3000, 2000, codec)
    for method in ("encode", "decode_parsed"):
        monkeypatch.setattr(codec, method, lambda *rest: (_ for _ in ()).throw(HpcmError("work!")))
    for workers, error, words in ((1, HpcmError, "work!"), (2, MemoryLimitError, "above the limit")):
        monkeypatch.setattr(codec, "tile_workers", workers)
        with pytest.raises(error, match=words):
            enough = memory.encoding_bytes(3000, 2000, held=0)
            hpcm_codec.encode(tmp_path / "large.ppm", model=codec, memory=enough)
        with pytest.raises(error, match=words):
            enough = memory.decoding_bytes(3000, 2000, held=8 * 3000 * 2000 + 2 * len(data))
            hpcm_codec.decode(data, codec, memory=enough)


def test_sizes_of_memory_that_make_no_sense_are_refused(photograph: Path, compressed: Path) -> None:
    for command, path in (("encode", photograph), ("decode", compressed)):
        done = hpcm(command, path, "-f", "-o", "x.png", "--memory", "much")
        assert done.exit_code == 2 and "--memory takes bytes" in done.stderr
    with pytest.raises(UsageError):
        memory.parse_size("0", "--memory")
    assert json.loads(hpcm("encode", photograph, "--json", "--memory", "1GiB").stdout)["width"] == 96


# ------------------------------------------------------------------------------------------------------------------- seams


def squared_errors(codec: Codec, pixels: Samples, quality: float, upright: bool) -> np.ndarray:
    """Mean squared error of each pixel, coded as it lies or turned, so that the border between tiles lies the other way."""
    turned = pixels.swapaxes(0, 1) if upright else pixels
    decoded = codec.decode(codec.encode(Picture(np.ascontiguousarray(turned)), quality)).pixels
    errors = np.square(decoded.astype(float) - turned).mean(axis=-1)
    return errors.T if upright else errors


@pytest.mark.parametrize(("quality", "upright"), [(50, False), (100, True)])
def test_no_seam_16_pixels_around_tile_borders_are_as_good_as_without_the_border(
    codec: Codec, kodak: Path, quality: float, upright: bool
) -> None:
    """Two crops of a mosaic, in which the border between two tiles falls on other pixels: each shows the other's border without one.

    A band's error depends on what the picture shows there, so it is compared with the same pixels, not with others; that of a single band
    still varies by chance by some tenths of a dB, so eighteen are taken together.
    """
    names = sorted(kodak.glob("kodim*.png"))
    flat = [pixels[160:352] for pixels in (read_picture(name).pixels for name in names) if pixels.shape[1] == 768]
    starts, width = (64, 320), 1088
    first_tile = TileGrid(width, 192)[0].pixels.width
    with_border: list[Any] = []
    without: list[Any] = []
    for mosaic in (np.concatenate(pair, axis=1) for pair in zip(flat[::2], flat[1::2], strict=True)):
        parts = [mosaic[:, start : start + width] for start in starts]
        errors = [squared_errors(codec, part, quality, upright) for part in parts]
        for here, there in ((0, 1), (1, 0)):
            border = starts[here] + first_tile
            for picture, found in ((here, with_border), (there, without)):
                column = border - starts[picture]
                found.append(errors[picture][:, column - 8 : column + 8].mean())
    assert len(with_border) == 18
    assert abs(10 * np.log10(np.mean(with_border) / np.mean(without))) < 0.1
