"""Pictures of other sizes: --resize and --max-edge, both ways; and inputs that stay as they are because they are smaller."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from conftest import small_photograph
from hpcm_codec import Codec, Picture
from hpcm_codec.bitstream.container import parse_header
from hpcm_codec.cli.main import main
from hpcm_codec.constants import SCALES
from hpcm_codec.errors import UsageError
from hpcm_codec.images import Extras, StripPicture, read_picture
from hpcm_codec.images.resizing import Resizing, fitted, parse_resizing, resized, scale_for, thumbnail
from test_images import exif_with, noise, read_exif
from test_orientation import LONG, SHORT, exif_of_entries


def hpcm(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("640x480", (640, 480)),
        ("640x", (640, 320)),
        ("x480", (960, 480)),
        (" 7 X 9 ", (7, 9)),
        ("50%", (500, 250)),
        ("150%", (1500, 750)),
        ("0.01%", (1, 1)),
        ("12.5 %", (125, 63)),
    ],
)
def test_sizes_are_as_they_are_written(text: str, size: tuple[int, int]) -> None:
    assert parse_resizing(text).size(1000, 500) == size


@pytest.mark.parametrize(
    "text", ["", "x", "0x5", "5x0", "-5x5", "5", "%", "0%", "5.5x5", "5x5x5", "99999999x5", "1e9%", "50", "٣x٣"]
)
def test_sizes_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--resize takes 640x480"):
        parse_resizing(text)


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.integers(1, 10**5))
def test_the_longer_side_is_at_most_as_long_as_asked(width: int, height: int, edge: int) -> None:
    found = fitted(width, height, edge)
    assert max(found) == min(edge, max(width, height)) and min(found) >= 1
    assert Resizing(max_edge=edge).size(width, height) == found


def picture(width: int, height: int, grey: bool = False, alpha: bool = False) -> Picture:
    pixels = small_photograph(width, height)
    return Picture(pixels[..., :1].copy() if grey else pixels, noise(height, width) if alpha else None)


def of_strips(whole: Picture, rows: int) -> StripPicture:
    strips = (whole.pixels[top : top + rows] for top in range(0, whole.height, rows))
    return StripPicture(whole.width, whole.height, whole.grey, strips, whole.alpha)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("size", [(40, 25), (200, 300), (7, 200), (1, 1)])
def test_it_is_pillows_filter(size: tuple[int, int], grey: bool, alpha: bool) -> None:
    whole = picture(97, 61, grey, alpha)
    found = resized(whole, size)
    image = Image.fromarray(
        np.dstack([whole.pixels, whole.alpha]) if whole.alpha is not None else whole.pixels.squeeze()
    )
    expected = np.asarray(image.resize(size, Image.Resampling.LANCZOS)).reshape(size[1], size[0], -1)
    channels = found.pixels if found.alpha is None else np.dstack([found.pixels, found.alpha])
    assert channels.shape == expected.shape
    assert np.abs(channels.astype(int) - expected).mean() < 3  # what is shrunk much is shrunk in two steps
    if size == (200, 300):
        assert (channels == expected).all()


@pytest.mark.parametrize("rows", [1, 7, 64, 300])
@pytest.mark.parametrize("edge", [3, 20, 150])
def test_thumbnails_do_not_depend_on_how_the_rows_come(rows: int, edge: int) -> None:
    whole = picture(301, 257)
    found, expected = thumbnail(of_strips(whole, rows), edge), thumbnail(of_strips(whole, 257), edge)
    assert isinstance(found, Picture) and isinstance(expected, Picture)
    assert (found.pixels == expected.pixels).all() and max(found.width, found.height) == edge


def test_a_picture_that_is_small_enough_is_not_changed() -> None:
    strips = of_strips(picture(30, 20), 5)
    assert thumbnail(strips, 30) is strips


def test_metadata_follow_the_size() -> None:
    exif = exif_of_entries([(0x0100, SHORT, 97), (0x0101, LONG, 61)], ">", ((0xA002, LONG, 97), (0xA003, SHORT, 61)))
    xmp = b'<r tiff:ImageWidth="97" exif:PixelYDimension="61" other="97"/>'
    extras = Extras(b"iptc", (72.0, 72.0))
    whole = Picture(small_photograph(97, 61), icc=b"profile", exif=exif, xmp=xmp, notices=("said",), extras=extras)
    found = resized(whole, (40, 30))
    parsed = read_exif(found.exif or b"")
    own = parsed.get_ifd(ExifTags.IFD.Exif)
    assert (parsed[0x0100], parsed[0x0101], own[0xA002], own[0xA003]) == (40, 30, 40, 30)
    assert found.xmp == b'<r tiff:ImageWidth="40" exif:PixelYDimension="30" other="97"/>'
    assert (found.icc, found.notices, found.extras) == (b"profile", ("said",), extras)
    broken = Picture(small_photograph(97, 61), exif=b"II*\0\xff")
    assert resized(broken, (40, 30)).exif == b"II*\0\xff"


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (("--resize", "50%"), (48, 32)),
        (("--resize", "30x70"), (30, 70)),
        (("--max-edge", 24), (24, 16)),
        (("--max-edge", 500), (96, 64)),
    ],
)
def test_encode_changes_the_size(
    options: tuple[object, ...], size: tuple[int, int], photograph: Path, codec: Codec
) -> None:
    target = photograph.with_suffix(".hpcm")
    assert hpcm("encode", photograph, *options, "--measure-psnr", "--json").exit_code == 0
    header = parse_header(target.read_bytes())
    assert (header.width, header.height) == size
    expected = resized(read_picture(photograph), size) if size != (96, 64) else read_picture(photograph)
    assert target.read_bytes() == codec.encode(expected)
    again = hpcm("encode", photograph, *options, "--resume")
    assert again.exit_code == 0 and "finished before" in again.stderr


def test_a_size_beyond_the_limits_is_refused(photograph: Path) -> None:
    done = hpcm("encode", photograph, "--resize", "100000x100000")
    assert done.exit_code != 0 and "above the limit" in done.stderr and not photograph.with_suffix(".hpcm").exists()
    assert hpcm("encode", photograph, "--resize", "50%", "--max-edge", 5).exit_code == 2


@pytest.mark.parametrize(("edge", "size"), [(24, (24, 16)), (1, (1, 1)), (96, (96, 64)), (5000, (96, 64))])
def test_decode_makes_thumbnails(
    edge: int, size: tuple[int, int], compressed: Path, tmp_path: Path, codec: Codec
) -> None:
    target = tmp_path / "a.png"
    assert hpcm("decode", compressed, "-o", target, "--max-edge", edge).exit_code == 0
    found, whole = read_picture(target), codec.decode(compressed.read_bytes())
    assert (found.width, found.height) == size
    if size == (24, 16):
        expected = np.asarray(Image.fromarray(whole.pixels).resize(size, Image.Resampling.LANCZOS))
        assert np.abs(found.pixels.astype(int) - expected).mean() < 2
    again = hpcm("decode", compressed, "-o", target, "--max-edge", edge, "--resume")
    assert again.exit_code == 0 and "finished before" in again.stderr


def test_thumbnails_of_a_region_and_with_transparency(tmp_path: Path, codec: Codec) -> None:
    (tmp_path / "a.hpcm").write_bytes(codec.encode(picture(97, 61, alpha=True), 60))
    target = tmp_path / "a.png"
    assert hpcm("decode", tmp_path / "a.hpcm", "-o", target, "--max-edge", 20, "--region", "10,20,40,30").exit_code == 0
    found = read_picture(target)
    assert (found.width, found.height) == (20, 15) and found.alpha is not None


def test_a_small_thumbnail_needs_no_finest_scale(tmp_path: Path, codec: Codec) -> None:
    assert [scale_for(shrunk, SCALES) for shrunk in (1, 8, 63.9, 64, 1000)] == ["s3", "s3", "s3", "s2", "s2"]
    data = codec.encode(picture(640, 320), 60)
    cut = data[: len(data) - 40]  # in s3
    (tmp_path / "a.hpcm").write_bytes(cut)
    assert hpcm("decode", tmp_path / "a.hpcm", "-o", tmp_path / "a.png", "--max-edge", 10).exit_code == 0
    whole = np.asarray(Image.fromarray(codec.decode(data).pixels).resize((10, 5), Image.Resampling.LANCZOS))
    assert np.abs(read_picture(tmp_path / "a.png").pixels.astype(int) - whole).mean() < 8
    assert hpcm("decode", tmp_path / "a.hpcm", "-o", tmp_path / "b.png", "--max-edge", 20).exit_code == 3


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with a picture that becomes smaller, and one whose file is smaller than any of ours."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(small_photograph(200, 150)).save(folder / "photo.png")
    Image.new("1", (16, 16)).save(folder / "tiny.png")
    return folder


def rows(path: Path) -> dict[str, dict[str, object]]:
    return {Path(row["path"]).name: row for row in map(json.loads, path.read_text().splitlines())}


def test_inputs_that_would_become_larger_are_copied(mixed: Path, tmp_path: Path) -> None:
    out, manifest = tmp_path / "out", tmp_path / "m.jsonl"
    exif = exif_with(1)
    tiny = (mixed / "tiny.png").read_bytes()
    assert len(tiny) < 80 and exif
    done = hpcm("encode", mixed, "-o", out, "--keep-smaller", "--manifest", manifest, "-q", 95)
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["photo.hpcm", "tiny.png"]
    assert (out / "tiny.png").read_bytes() == tiny and "copied as" in done.stderr
    found = rows(manifest)
    assert (found["tiny.png"]["status"], found["photo.png"]["status"]) == ("copied", "done")
    assert found["tiny.png"]["copied"] == str(out / "tiny.png") and found["tiny.png"]["bytes"] == len(tiny)
    before = manifest.read_text()
    again = hpcm("encode", mixed, "-o", out, "--keep-smaller", "--manifest", manifest, "-q", 95, "--resume")
    assert again.exit_code == 0 and "2 of 2 were finished before" in again.stderr and manifest.read_text() == before
    (out / "tiny.png").unlink()
    again = hpcm("encode", mixed, "-o", out, "--keep-smaller", "--manifest", manifest, "-q", 95, "--resume")
    assert again.exit_code == 0 and (out / "tiny.png").read_bytes() == tiny
    again = hpcm("encode", mixed, "-o", out, "--keep-smaller", "-q", 95, "--resume")  # without the manifest
    assert again.exit_code == 0, again.stderr


def test_a_copy_beside_its_input_is_the_input(mixed: Path) -> None:
    done = hpcm("encode", mixed, "--keep-smaller", "-q", 95)
    assert done.exit_code == 0 and sorted(path.name for path in mixed.iterdir()) == [
        "photo.hpcm",
        "photo.png",
        "tiny.png",
    ]


def test_a_copy_replaces_no_other_file(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tiny.png").write_bytes(b"another")
    done = hpcm("encode", mixed, "-o", tmp_path / "out", "--keep-smaller", "-q", 95)
    assert done.exit_code == 5 and (tmp_path / "out" / "tiny.png").read_bytes() == b"another"


@pytest.mark.parametrize("options", [("--strip",), ("--resize", "50%"), ("--max-edge", 5)])
def test_copies_are_refused_where_inputs_are_to_change(
    options: tuple[object, ...], mixed: Path, tmp_path: Path
) -> None:
    assert hpcm("encode", mixed, "-o", tmp_path / "out", "--keep-smaller", *options).exit_code == 2
    assert hpcm("encode", mixed / "tiny.png", "-o", tmp_path / "a.hpcm", "--keep-smaller").exit_code == 2
