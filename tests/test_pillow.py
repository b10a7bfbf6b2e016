"""`import hpcm_codec.pillow`: Pillow opens, shows, saves and verifies .hpcm files."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hpcm_codec.pillow  # noqa: F401 - registers the format
from conftest import small_photograph
from hpcm_codec.codec import Codec
from hpcm_codec.errors import CorruptStreamError, UsageError


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


def test_damage_is_told_by_name(compressed: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.hpcm"
    damaged.write_bytes(compressed.read_bytes()[:-9])
    with pytest.raises(CorruptStreamError, match=r"damaged\.hpcm: cut short"):
        Image.open(damaged)


def test_verify_accepts_a_sound_file(compressed: Path) -> None:
    with Image.open(compressed) as image:
        image.verify()


def test_a_failed_save_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Image.fromarray(small_photograph()).save(tmp_path / "bad.hpcm", quality=700)
    assert not (tmp_path / "bad.hpcm").exists()
