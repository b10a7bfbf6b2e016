"""`import hpcm_codec.pillow`: Pillow opens, shows, saves and verifies .hpcm files."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

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
def test_damage_of_the_pixels_is_told_by_name_when_they_are_needed(compressed: Path, scale: int) -> None:
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


def test_damage_of_the_header_is_told_by_name_at_once(compressed: Path) -> None:
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
    settings = {"as bytes": {"exif": exif.tobytes()}, "as an object": {"exif": exif}, "left out": {"exif": b""}}
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
