"""`import hpcm_codec.pillow`: Pillow opens, shows, saves and verifies .hpcm files."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

import hpcm_codec.pillow
from conftest import small_photograph
from hpcm_codec.bitstream import container
from hpcm_codec.codec import Codec
from hpcm_codec.errors import CorruptStreamError, HpcmError, UsageError


def test_opening_and_loading_gives_the_codecs_own_pixels(compressed: Path, codec: Codec) -> None:
    with Image.open(compressed) as image:
        assert (image.format, image.mode, image.size, image.info["quality"]) == ("HPCM", "RGB", (96, 64), 40)
        assert np.array_equal(np.asarray(image), codec.decode(compressed.read_bytes()).pixels)


def test_opening_alone_needs_no_torch(compressed: Path) -> None:
    code = (
        "import sys, hpcm_codec.pillow; from PIL import Image;"
        "image = Image.open(sys.argv[1]); assert image.size == (96, 64); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(compressed)], check=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"])
def test_any_mode_can_be_saved(mode: str, tmp_path: Path) -> None:
    Image.fromarray(small_photograph()).convert(mode).save(tmp_path / "copy.hpcm", quality=80)
    with Image.open(tmp_path / "copy.hpcm") as image:
        expected = {"RGB": "RGB", "L": "L", "RGBA": "RGBA", "LA": "LA", "P": "RGB", "1": "L", "CMYK": "RGB"}
        assert image.mode == expected[mode]
        image.load()


def test_quality_and_metadata_are_passed_on(tmp_path: Path) -> None:
    original = Image.fromarray(small_photograph())
    exif = Image.Exif()
    exif[0x010F] = "maker"
    sizes = []
    for quality in (10, 90):
        target = tmp_path / f"{quality}.hpcm"
        original.save(target, quality=quality, icc_profile=b"profile", exif=exif)
        sizes.append(target.stat().st_size)
        with Image.open(target) as image:
            assert image.info["icc_profile"] == b"profile"
            assert image.getexif()[0x010F] == "maker"
    assert sizes[0] < sizes[1]


def test_files_in_memory_work_both_ways() -> None:
    buffer = io.BytesIO()
    Image.fromarray(small_photograph()).save(buffer, "HPCM")
    buffer.seek(0)
    with Image.open(buffer) as image:
        assert image.convert("L").size == (96, 64)


class CountingFile(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("metadata", [0, 100_000])
def test_opening_reads_no_further_than_the_metadata(metadata: int) -> None:
    header = container.Header(3000, 2000, 77, bytes(8), grey=True, float_profile=False)
    tile = container.TileStreams(bytes(100), bytes(10**5), bytes(10**5), bytes(10**6), 0)
    extensions = {container.XMP: bytes(metadata)} if metadata else {}
    stream = container.HpcmStream(header, (tile,) * len(header.grid), extensions)
    file = CountingFile(container.write_stream(stream))
    with Image.open(file, formats=["HPCM"]) as image:  # what other plug-ins that are loaded read is theirs
        assert (image.mode, image.size, image.info["quality"]) == ("L", (3000, 2000), 38.5)
        assert len(image.info.get("xmp", b"")) == metadata
    assert file.count <= 2 * metadata + hpcm_codec.pillow.FIRST_READ + 100


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_damaged_pixels_are_reported_with_the_file_when_they_are_needed(compressed: Path, scale: int) -> None:
    data = compressed.read_bytes()
    place = container.describe_stream(data)[scale].offset
    for damaged in (data[:place], data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]):
        compressed.write_bytes(damaged)
        with Image.open(compressed) as image:
            assert image.size == (96, 64)
            with pytest.raises(CorruptStreamError, match=r"photo\.hpcm: (cut short|damaged)"):
                image.load()
        with Image.open(compressed) as image, pytest.raises(CorruptStreamError, match=r"photo\.hpcm"):
            image.verify()


def test_a_damaged_header_is_reported_with_the_file_at_once(compressed: Path) -> None:
    data = compressed.read_bytes()
    for damaged in (data[:16], data[:13] + b"\x55" + data[14:], data[:4] + b"\xff" + data[5:], data[:3] + b"\x02"):
        compressed.write_bytes(damaged)
        with pytest.raises(HpcmError, match=r"photo\.hpcm: (cut short|damaged|written by a newer)"):
            Image.open(compressed)


def test_a_header_that_makes_no_sense_is_refused_without_reading_on() -> None:
    file = CountingFile(b"HPC\x01\xff" + bytes(10**6))
    with pytest.raises(CorruptStreamError, match="quality code 255"):
        Image.open(file)
    assert file.count < 50_000


def test_verify_accepts_a_sound_file(compressed: Path) -> None:
    with Image.open(compressed) as image:
        image.verify()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("given", ["by the file", "as bytes", "as an object", "left out"])
def test_pictures_are_saved_upright_however_their_exif_is_given(orientation: int, given: str) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", orientation
    buffer = io.BytesIO()
    Image.fromarray(small_photograph(64, 40)).save(buffer, "PNG", exif=exif)
    settings: dict[str, dict[str, Any]] = {
        "as bytes": {"exif": exif.tobytes()},
        "as an object": {"exif": exif},
        "left out": {"exif": b""},
    }
    with Image.open(buffer) as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).astype(float)
        saved = io.BytesIO()
        image.save(saved, "HPCM", quality=100, **settings.get(given, {}))
    with Image.open(saved) as image:
        assert np.abs(np.asarray(image) - expected).mean() < 5
        assert image.getexif().get(0x0112, 1) == 1
        assert image.getexif().get(0x010F) == (None if given == "left out" else "maker")


def test_a_failed_save_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Image.fromarray(small_photograph()).save(tmp_path / "bad.hpcm", quality=700)
    assert not (tmp_path / "bad.hpcm").exists()


def assert_same_image(found: Image.Image, expected: Image.Image) -> None:
    assert (found.mode, found.size, found.info) == (expected.mode, expected.size, expected.info)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda image: pickle.loads(pickle.dumps(image))])
def test_an_opened_image_can_be_copied_and_pickled(compressed: Path, loaded: bool, copied) -> None:
    with Image.open(compressed) as image:
        if loaded:
            image.load()
        again = copied(image)
        assert_same_image(again, image)
    assert_same_image(pickle.loads(pickle.dumps(again)), again)


def test_pixels_of_an_image_closed_too_early_are_refused_in_words(compressed: Path) -> None:
    with Image.open(compressed) as image:
        pass
    for use in (image.load, lambda: image.convert("L"), lambda: pickle.dumps(image)):
        with pytest.raises(ValueError, match="closed before its pixels were read") as caught:
            use()
        assert isinstance(caught.value, HpcmError)
    with Image.open(compressed) as image:
        image.load()
    assert image.getpixel((0, 0))


def test_what_a_program_changes_in_exif_is_what_is_saved() -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", 6
    buffer = io.BytesIO()
    Image.fromarray(small_photograph()).save(buffer, "PNG", exif=exif)

    def saved(image: Image.Image) -> Image.Image:
        target = io.BytesIO()
        image.save(target, "HPCM")
        return Image.open(target)

    with Image.open(buffer) as image:
        del image.getexif()[0x0112]
        again = saved(image)
        assert again.size == (96, 64) and 0x0112 not in again.getexif() and again.getexif()[0x010F] == "maker"
    with Image.open(buffer) as image:
        image.getexif()[0x0112] = 3
        image.getexif()[0x010F] = "another"
        again = saved(image)
        assert again.size == (96, 64) and again.getexif()[0x0112] == 1 and again.getexif()[0x010F] == "another"
    with Image.open(buffer) as image:
        image.getexif().clear()
        assert "exif" not in saved(image).info and saved(image).size == (96, 64)
    plain = Image.fromarray(small_photograph())
    plain.getexif()[0x010F] = "new"
    assert saved(plain).getexif()[0x010F] == "new"


@pytest.mark.parametrize("content", [b"HPC", b"HPCx", b"HPC is the beginning of a text", b"HPC\x11" + bytes(100)])
def test_a_foreign_file_is_no_image_to_pillow(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    for opened in (path, io.BytesIO(content)):
        with pytest.raises(OSError) as caught:
            Image.open(opened)
        assert isinstance(caught.value, UnidentifiedImageError) and isinstance(caught.value, HpcmError)
        assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


def test_damaged_pixels_are_an_oserror_to_pillow(compressed: Path) -> None:
    compressed.write_bytes(compressed.read_bytes()[:-9])
    with Image.open(compressed) as image, pytest.raises(OSError, match=r"photo\.hpcm: cut short"):
        image.load()


@pytest.mark.parametrize("kept", [0.4, 0.7, 0.95])
def test_what_there_is_of_a_cut_file_is_shown_on_demand(
    kept: float, compressed: Path, codec: Codec, monkeypatch
) -> None:
    data = compressed.read_bytes()[: int(kept * compressed.stat().st_size)]
    compressed.write_bytes(data)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(compressed) as image:
        assert np.array_equal(np.asarray(image), codec.decode(data, partial=True).pixels)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"exif": "abc"}, "exif is bytes, not str"),
        ({"exif": b"abc"}, "exif is no EXIF"),
        ({"exif": 5}, "exif is bytes, not int"),
        ({"xmp": "<x/>"}, r"xmp is bytes, not str; encode it: text\.encode\(\)"),
        ({"icc_profile": "sRGB"}, "icc_profile is bytes, not str"),
        (
            {"icc_profile": bytes(16) + b"CMYK" + bytes(16) + b"acsp"},
            "icc_profile is of CMYK, which the pixels are not",
        ),
        ({"quality": "50"}, "quality is a number, not '50'"),
        ({"model": 5}, "a model is a checkpoint's name or path, or a Codec, not int"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Image.fromarray(small_photograph()).save(io.BytesIO(), "HPCM", **settings)
