"""HEIC and JPEG XL are read and written where their plug-ins are installed; else the error names what to install."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from conftest import small_photograph
from hpcm_codec.cli.main import main
from hpcm_codec.errors import FileError
from hpcm_codec.images import ORIENTATION, Picture, open_picture, plugins, read_picture, write_picture
from test_images import SRGB, exif_with, noise, read_exif

FORMATS = [
    pytest.param(name, marks=pytest.mark.skipif(not plugins.is_there(name), reason=f"no plug-in for {name}"))
    for name in plugins.NAMES
]
EXTENSIONS = {"HEIF": "heic", "JXL": "jxl"}


def written(picture: Picture, format: str) -> bytes:
    buffer = io.BytesIO()
    assert write_picture(picture, buffer, format) == ()
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_pictures_come_back_to_the_last_bit(format: str, alpha: bool, channels: int) -> None:
    picture = Picture(noise(21, 34, channels), noise(21, 34) if alpha else None)
    data = written(picture, format)
    assert plugins.format_of(data[:12]) == format
    again = read_picture(data)
    expected = picture.pixels if format == "JXL" else np.broadcast_to(picture.pixels, (21, 34, 3))
    assert (again.pixels == expected).all() and again.notices == ()
    if picture.alpha is None:
        assert again.alpha is None
    else:
        assert again.alpha is not None and np.array_equal(again.alpha, picture.alpha)
    with open_picture(data) as opened:
        assert (opened.rows(0, 21) == expected).all()


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_come_back(format: str) -> None:
    exif = exif_with(1).removeprefix(b"Exif\0\0")
    again = read_picture(written(Picture(noise(21, 34, 3), icc=SRGB, exif=exif), format))
    assert again.exif is not None and read_exif(again.exif)[0x010F] == "maker"
    assert again.icc is not None and again.icc[36:40] == b"acsp"


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_whose_decoder_turns_it_is_not_turned_again(format: str) -> None:
    pixels = noise(21, 34, 3)
    settings: dict[str, Any] = {"lossless": True} if format == "JXL" else {"quality": -1, "chroma": 444}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, exif=exif_with(6), **settings)
    picture = read_picture(buffer.getvalue())
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        assert (picture.pixels == np.asarray(image)).all()
    assert picture.exif is None or read_exif(picture.exif).get(ORIENTATION, 1) == 1
    with open_picture(buffer.getvalue()) as opened:
        assert opened.exif == picture.exif and (opened.rows(0, opened.height) == picture.pixels).all()


@pytest.mark.parametrize("format", FORMATS)
def test_the_commands_take_and_give_them(format: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    name = f"a.{EXTENSIONS[format]}"
    (tmp_path / "in" / name).write_bytes(written(Picture(small_photograph()), format))
    runner = CliRunner()
    done = runner.invoke(main, ["encode", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    done = runner.invoke(main, ["decode", str(tmp_path / "out" / "a.hpcm"), "-o", str(tmp_path / name)])
    assert done.exit_code == 0, done.stderr
    assert read_picture(tmp_path / name).pixels.shape == (64, 96, 3)


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"\0\0\0\x18ftypheic", "HEIC"), (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL")],
)
def test_missing_plugins_are_reported(start: bytes, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugins, "is_there", lambda format: False)
    monkeypatch.setattr("hpcm_codec.images.reading._readers", lambda: ["PNG", "JPEG"])
    with pytest.raises(FileError, match=rf"{name}, whose reader is not installed; pip install 'hpcm-codec\[formats\]'"):
        read_picture(start + bytes(100))
    with pytest.raises(FileError, match=rf"{name} needs a writer that is not installed; pip install"):
        write_picture(Picture(noise(4, 4, 3)), tmp_path / f"a.{'heic' if name == 'HEIC' else 'jxl'}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_refused_in_a_line(format: str) -> None:
    data = written(Picture(noise(21, 34, 3)), format)
    for damaged in (data[:20], data[: len(data) // 2], data[:12] + bytes(len(data) - 12)):
        with pytest.raises(FileError) as caught:
            read_picture(damaged)
        assert "\n" not in str(caught.value)
