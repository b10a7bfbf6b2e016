"""Pictures of every kind come in as 8-bit RGB or grey with their metadata, or are refused with a reason."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from hpcm_codec import images
from hpcm_codec.errors import CorruptStreamError, FileError
from hpcm_codec.images import (
    FORMATS,
    Picture,
    decode_alpha,
    encode_alpha,
    format_for,
    picture_from_pil,
    picture_to_pil,
    read_picture,
    write_picture,
)
from hpcm_codec.images.limits import our_limits
from hpcm_codec.images.repair import repaired

ODD = Path(__file__).parent.parent.parent / "shared" / "data" / "odd"
REFUSED = {
    *("made_empty.jpg", "made_not_an_image.png", "made_truncated_png.png", "pillow_broken.png"),
    *("pillow_broken_data_stream.png", "pillow_decompression_bomb.gif"),
    *("pillow_truncated_image.png", "pngsuite_xcrn0g04.png", "pngsuite_xhdn0g08.png", "pngsuite_xs1n0g01.png"),
}
odd_files = sorted(path.name for path in ODD.glob("*") if path.name != "INDEX.txt") if ODD.is_dir() else []
needs_odd = pytest.mark.skipif(not odd_files, reason=f"{ODD} is not here")
dice = np.random.default_rng(1)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return dice.integers(0, 256, shape, dtype=np.uint8)


def file_bytes(image: Image.Image, format: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, chunks: bytes = b"") -> bytes:
    """A PNG put together by hand, for the kinds that Pillow does not write."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour_type, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + chunks
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


@pytest.fixture(autouse=True)
def no_warning_of_pillow_leaks() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# -------------------------------------------------------------------------------------------------------------- odd files


@needs_odd
@pytest.mark.parametrize("name", odd_files)
def test_every_odd_file_is_read_or_refused_with_a_reason(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(FileError) as caught:
            read_picture(ODD / name)
        message = str(caught.value)
        assert name in message and "\n" not in message and "; " in message
        return
    picture = read_picture(ODD / name)
    content = io.BytesIO((ODD / name).read_bytes())
    with our_limits(0), repaired(content)[0] as file, Image.open(file) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ImageOps.exif_transpose(image)
        rgba = np.asarray(expected.convert("RGBA"))
        frames = getattr(image, "n_frames", 1)
    assert (picture.width, picture.height) == expected.size
    assert any("frames" in notice for notice in picture.notices) == (frames > 1)
    assert picture.pixels.dtype == np.uint8 and picture.pixels.shape[2] == (1 if picture.grey else 3)
    assert picture.pixels.flags.c_contiguous and picture.pixels.flags.writeable
    if image.mode == "I;16":
        values = np.asarray(expected).astype(float)
        assert (picture.pixels[..., 0] == np.floor(values * 255 / 65535 + 0.5)).all()
        assert picture.notices == ("16 bits per sample reduced to 8",)
    elif "basn4a16" not in name:
        assert picture.grey == (image.mode in ("1", "L", "LA"))
        assert (picture.pixels == rgba[..., : picture.pixels.shape[2]]).all()
    transparent = "transparency" in image.info or "A" in image.mode
    assert (picture.alpha is not None) == transparent
    if picture.alpha is not None and image.mode != "I;16":
        assert (picture.alpha == rgba[..., 3]).all()
    if picture.exif is not None:
        assert read_exif(picture.exif).get(images.ORIENTATION, 1) == 1


@needs_odd
def test_16_bit_files_are_reduced_by_rounding_not_clipped() -> None:
    picture = read_picture(ODD / "made_gray16.png")
    assert picture.pixels.max() > 200 and len(np.unique(picture.pixels)) > 50
    assert len(np.unique(read_picture(ODD / "pngsuite_basn0g16.png").pixels)) > 50


@needs_odd
def test_grey_with_alpha_of_16_bits_stays_grey() -> None:
    picture = read_picture(ODD / "pngsuite_basn4a16.png")
    assert picture.grey and picture.alpha is not None and picture.alpha.min() == 0


@needs_odd
@pytest.mark.parametrize("format", sorted(FORMATS))
def test_odd_files_survive_being_written(format: str, tmp_path: Path) -> None:
    for name in sorted(set(odd_files) - REFUSED):
        picture = read_picture(ODD / name)
        if picture.width * picture.height > 500_000:
            continue
        buffer = io.BytesIO()
        if picture.alpha is not None and picture.alpha.min() < 255 and not FORMATS[format].alpha:
            with pytest.raises(FileError, match="transparency"):
                write_picture(picture, buffer, format)
            continue
        write_picture(picture, buffer, format)
        again = read_picture(buffer.getvalue())
        if format != "JPEG":
            assert (again.pixels == picture.pixels).all()


# ------------------------------------------------------------------------------------------------------------------ modes


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "PA", "La", "RGBa"])
def test_pillow_images_of_byte_modes_keep_their_colours(mode: str) -> None:
    base = Image.fromarray(noise(9, 7, 4), "RGBA")
    image = base.convert({"La": "LA", "PA": "LA", "P": "RGB"}.get(mode, "RGBA")).convert(mode)
    picture = picture_from_pil(image)
    assert picture.grey == (mode in ("1", "L", "LA", "La"))
    if mode not in ("La", "RGBa"):
        expected = np.asarray(image.convert("RGBA"))
        assert (picture.pixels == expected[..., : picture.pixels.shape[2]]).all()
        assert picture.alpha is None or (picture.alpha == expected[..., 3]).all()
    assert (picture.alpha is not None) == (mode in ("LA", "RGBA", "PA", "La", "RGBa"))


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    rgb = Image.new("RGB", (5, 4), (200, 120, 40))
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = ImageCms.applyTransform(rgb, to_lab)
        assert image is not None
    else:
        image = rgb.convert(mode)
    image.info["icc_profile"] = b"of another space"
    picture = picture_from_pil(image)
    assert np.abs(picture.pixels.astype(int) - [200, 120, 40]).max() <= 3
    if mode == "LAB":
        assert picture.notices == ("Lab converted to RGB",) and picture.icc is None


@pytest.mark.parametrize(
    ("values", "expected", "notice"),
    [
        (np.array([[0, 128, 129, 65535]], np.uint16), [0, 0, 1, 255], "16 bits per sample reduced to 8"),
        (np.array([[0, 128, 129, 65535]], np.int32), [0, 0, 1, 255], "16 bits per sample reduced to 8"),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255], "samples from -100 to 100 spread over 8 bits"),
        (np.array([[0, 0.25, 1]], np.float32), [0, 64, 255], "floating point samples reduced to 8 bits"),
        (np.array([[0, 10, 20]], np.float32), [0, 128, 255], "samples from 0 to 20 spread over 8 bits"),
    ],
)
def test_deep_samples_are_reduced_with_a_notice(values: np.ndarray[Any, Any], expected: list[int], notice: str) -> None:
    picture = picture_from_pil(Image.fromarray(values))
    assert picture.pixels[0, :, 0].tolist() == expected
    assert picture.notices == (notice,)


def test_deep_netpbm_is_noticed() -> None:
    for data in (b"P6 1 1 65535\n" + b"\xff\xff\x80\x00\x00\x00", b"P5 1 1 65535\n\xff\xff", b"P5 1 1 1023\n\x03\xff"):
        picture = read_picture(data)
        assert picture.pixels[0, 0, 0] == 255
        assert picture.notices == ("16 bits per sample reduced to 8",)


@pytest.mark.parametrize(("depth", "key", "factor"), [(1, 1, 255), (2, 1, 85), (4, 9, 17), (8, 77, 1)])
def test_a_transparent_grey_of_any_bit_depth_becomes_alpha(depth: int, key: int, factor: int) -> None:
    values = [(key + step) % 2**depth for step in range(8)]
    row = int("".join(f"{value:0{depth}b}" for value in values), 2).to_bytes(depth, "big")
    picture = read_picture(png(8, 1, depth, 0, b"\0" + row, png_chunk(b"tRNS", key.to_bytes(2, "big"))))
    assert picture.pixels[0, :, 0].tolist() == [value * factor for value in values]
    assert picture.alpha is not None
    assert picture.alpha[0].tolist() == [0 if value == key else 255 for value in values]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_becomes_alpha(depth: int) -> None:
    size = depth // 8
    key, other = (bytes([value]) * size for value in (200, 100))
    rows = b"\0" + key * 3 + key * 2 + other
    colour = b"".join(part.rjust(2, b"\0") for part in (key, key, key))
    picture = read_picture(png(2, 1, depth, 2, rows, png_chunk(b"tRNS", colour)))
    assert picture.pixels.tolist() == [[[200, 200, 200], [200, 200, 100]]]
    assert picture.alpha is not None and picture.alpha.tolist() == [[0, 255]]
    assert picture.notices == (("16 bits per sample reduced to 8",) if depth == 16 else ())


def test_cmyk_without_a_profile_is_converted_with_a_notice() -> None:
    picture = read_picture(file_bytes(Image.new("CMYK", (3, 3), (0, 255, 255, 0)), "JPEG"))
    assert picture.pixels[0, 0, 0] > 200 and picture.pixels[0, 0, 1] < 50
    assert any(notice.startswith("CMYK converted to RGB without") for notice in picture.notices)


def test_cmyk_with_a_useless_profile_is_converted_and_the_profile_dropped() -> None:
    for profile in (b"broken", SRGB):
        picture = read_picture(file_bytes(Image.new("CMYK", (3, 3)), "JPEG", icc_profile=profile))
        assert picture.icc is None and picture.notices[0].startswith("CMYK converted to RGB without")


def test_cmyk_goes_through_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    def converted(image: Image.Image, source: Any, target: Any, outputMode: str) -> Image.Image:
        assert image.mode == "CMYK" and source.read() == b"ink" and outputMode == "RGB"
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", converted)  # no free ink profile is small enough to carry
    picture = read_picture(file_bytes(Image.new("CMYK", (3, 3)), "JPEG", icc_profile=b"ink"))
    assert picture.pixels[0, 0].tolist() == [1, 2, 3]
    assert picture.icc is None and picture.notices == ("CMYK converted to RGB through its ICC profile",)


def test_the_first_frame_is_taken_with_a_notice() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for format in ("PNG", "GIF", "TIFF", "WEBP"):
        settings: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
        data = file_bytes(frames[0], format, save_all=True, append_images=frames[1:], **settings)
        picture = read_picture(data)
        assert picture.notices == ("first of 3 frames taken",)
        assert picture.pixels[0, 0].tolist() == [255, 0, 0]


# --------------------------------------------------------------------------------------------------------------- metadata


def read_exif(content: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(images.EXIF_PREFIX + content)
    return exif


def exif_with(orientation: int, endian: str = "<") -> bytes:
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F] = "maker"
    exif[images.ORIENTATION] = orientation
    exif[0x9286] = b"comment"
    return exif.tobytes()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_reset_and_nothing_else_of_exif_changes(orientation: int, format: str) -> None:
    raw = exif_with(orientation, "<" if orientation % 2 else ">")
    alpha = format != "JPEG"
    source = Image.fromarray(noise(5, 8, 4 if alpha else 3))
    data = file_bytes(source, format, exif=raw, **({"lossless": True} if format == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    picture = read_picture(data)
    assert (picture.pixels == expected[..., :3]).all()
    assert picture.alpha is None or (picture.alpha == expected[..., 3]).all()
    assert picture.exif is not None
    body = raw.removeprefix(images.EXIF_PREFIX)
    assert len(picture.exif) == len(body)
    assert sum(a != b for a, b in zip(picture.exif, body, strict=True)) == (orientation != 1)
    parsed = read_exif(picture.exif)
    assert (parsed[images.ORIENTATION], parsed[0x010F]) == (1, "maker")


def test_orientation_in_xmp_is_reset_with_the_other() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6" other="6"/></x:xmpmeta>'
    data = file_bytes(Image.fromarray(noise(4, 6, 3)), "WEBP", xmp=xmp, lossless=True)
    picture = read_picture(data)
    assert (picture.width, picture.height) == (4, 6)
    assert picture.xmp == xmp.replace(b'Orientation="6"', b'Orientation="1"')


def test_a_tiff_is_turned_once_and_keeps_what_its_exif_says_of_the_picture() -> None:
    source = noise(4, 6, 3)
    tags = Image.Exif()
    tags[0x010F], tags[images.ORIENTATION] = "maker", 6
    picture = read_picture(file_bytes(Image.fromarray(source), "TIFF", exif=tags, icc_profile=SRGB))
    assert (picture.pixels == np.rot90(source, -1)).all()
    assert picture.icc == SRGB and picture.exif is not None
    assert read_exif(picture.exif)[0x010F] == "maker"
    assert images.ORIENTATION not in read_exif(picture.exif)


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_broken_exif_is_carried_along_without_harm(exif: bytes) -> None:
    data = file_bytes(Image.fromarray(noise(4, 6, 3)), "JPEG", exif=images.EXIF_PREFIX + exif)
    picture = read_picture(data)
    assert (picture.width, picture.height) == (6, 4)
    assert picture.exif == (exif or None)
    for format in ("PNG", "JPEG", "WEBP", "TIFF"):
        write_picture(picture, io.BytesIO(), format)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("grey", [False, True])
def test_icc_exif_and_xmp_are_kept_byte_for_byte(format: str, grey: bool) -> None:
    exif = exif_with(1).removeprefix(images.EXIF_PREFIX)
    picture = Picture(noise(8, 8, 1 if grey else 3), icc=SRGB, exif=exif, xmp=b"<x:xmpmeta>\xc3\xa9</x:xmpmeta>")
    buffer = io.BytesIO()
    notices = write_picture(picture, buffer, format)
    again = read_picture(buffer.getvalue())
    assert (again.exif, again.xmp) == (picture.exif, picture.xmp)
    if grey and format == "WEBP":  # which has no grey pictures for a grey profile to describe
        assert again.icc is None and notices == ("WEBP cannot hold this ICC profile, it was left out",)
    else:
        assert again.icc == SRGB and notices == ()


def test_icc_and_xmp_survive_tiff_and_exif_keeps_its_values() -> None:
    exif = exif_with(1).removeprefix(images.EXIF_PREFIX)
    buffer = io.BytesIO()
    assert write_picture(Picture(noise(8, 8, 3), icc=SRGB, exif=exif, xmp=b"<x/>"), buffer, "TIFF") == ()
    again = read_picture(buffer.getvalue())
    assert (again.icc, again.xmp) == (SRGB, b"<x/>")
    assert again.exif is not None and read_exif(again.exif)[0x010F] == "maker"


def test_metadata_that_does_not_fit_is_left_out_with_a_notice() -> None:
    exif = b"II*\0\x08\0\0\0\0\0" + bytes(70000)
    picture = Picture(noise(8, 8, 3), icc=SRGB, exif=exif, xmp=bytes(70000))
    buffer = io.BytesIO()
    assert [notice.split(",")[0] for notice in write_picture(picture, buffer, "JPEG")] == [
        "JPEG cannot hold this EXIF",
        "JPEG cannot hold this XMP",
    ]
    assert read_picture(buffer.getvalue()).icc == SRGB
    assert len(write_picture(picture, io.BytesIO(), "BMP")) == 3


# ---------------------------------------------------------------------------------------------------------------- refusals


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "missing.png", "missing.png: no such file"),
        (tmp_path, "is a directory"),
        ("zero\0byte.png", "not a possible file name"),
    ):
        with pytest.raises(FileError, match=reason) as caught:
            read_picture(path)
        assert caught.value.exit_status == 5


def test_a_picture_above_the_limit_is_refused_before_its_pixels_are_read() -> None:
    data = file_bytes(Image.new("L", (20, 10)), "PNG")
    assert read_picture(data, max_pixels=200).width == 20
    with pytest.raises(FileError, match="20×10 pixels, above the limit of 199"):
        read_picture(data, max_pixels=199)
    with pytest.raises(FileError, match="claims more pixels|above the limit"):
        read_picture(png(2**31 - 1, 2**31 - 1, 8, 2, b""))


def test_bytes_and_streams_are_named_as_the_caller_likes() -> None:
    for source in (b"not an image", io.BytesIO(b"not an image")):
        with pytest.raises(FileError, match="stdin: not an image"):
            read_picture(source, name="stdin")
    with pytest.raises(FileError, match="the image: not an image: it is empty"):
        read_picture(b"")


def test_a_pipe_can_be_read() -> None:
    data = file_bytes(Image.new("RGB", (4, 4), "red"), "PNG")
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(data)
    with os.fdopen(reading, "rb") as file:
        assert read_picture(file).pixels[0, 0].tolist() == [255, 0, 0]


SAMPLES = {
    format: file_bytes(Image.fromarray(noise(16, 16, 3)), format)
    for format in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_damaged_images_end_in_a_picture_or_an_error_of_ours(format: str, data: st.DataObject) -> None:
    damaged = bytearray(SAMPLES[format])
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 200)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        picture = read_picture(bytes(damaged[:cut]), max_pixels=10**6)
    except FileError as error:
        assert "\n" not in str(error)
    else:
        assert picture.pixels.shape[2] in (1, 3)


# ----------------------------------------------------------------------------------------------------------------- writing


def test_the_format_follows_the_extension() -> None:
    for name, format in (
        ("a.PNG", "PNG"),
        ("a.b.jpeg", "JPEG"),
        ("a.webp", "WEBP"),
        ("a.tif", "TIFF"),
        ("a.pnm", "PPM"),
    ):
        assert format_for(name) == format
    for name in ("a.xyz", "a", ".png"):
        with pytest.raises(FileError, match=r"\.png .*\.jpg .*\.webp .*\.tif"):
            format_for(name)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("with_alpha", [False, True])
@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"JPEG"}))
def test_lossless_formats_are_lossless(format: str, with_alpha: bool, grey: bool, tmp_path: Path) -> None:
    picture = Picture(noise(9, 7, 1 if grey else 3), noise(9, 7) if with_alpha else None)
    path = tmp_path / f"a{FORMATS[format].extensions[0]}"
    if with_alpha and not FORMATS[format].alpha:
        with pytest.raises(FileError, match="transparency.*choose PNG"):
            write_picture(picture, path)
        assert not path.exists()
        return
    write_picture(picture, path)
    again = read_picture(path)
    assert (again.pixels == picture.pixels).all()
    assert picture.alpha is None or (again.alpha is not None and np.array_equal(again.alpha, picture.alpha))
    assert again.grey == (grey and FORMATS[format].grey)


def test_jpeg_takes_an_opaque_alpha_and_refuses_any_other() -> None:
    pixels = noise(9, 7, 3)
    write_picture(Picture(pixels, np.full((9, 7), 255, np.uint8)), io.BytesIO(), "JPEG")
    with pytest.raises(FileError, match="transparency, which JPEG cannot hold; choose PNG or WebP"):
        write_picture(Picture(pixels, np.full((9, 7), 254, np.uint8)), io.BytesIO(), "JPEG")


def test_jpeg_is_written_without_chroma_subsampling() -> None:
    buffer = io.BytesIO()
    write_picture(Picture(noise(16, 16, 3)), buffer, "JPEG")
    with Image.open(buffer) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


def test_existing_files_are_overwritten_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(FileError, match="exists already"):
        write_picture(Picture(noise(4, 4, 3)), path)
    assert path.read_bytes() == b"old"
    write_picture(Picture(noise(4, 4, 3)), path, overwrite=True)
    assert read_picture(path).width == 4


def test_what_a_format_cannot_hold_is_refused() -> None:
    wide = Picture(np.zeros((1, 16384, 3), np.uint8))
    with pytest.raises(FileError, match="WEBP holds at most 16383 pixels a side"):
        write_picture(wide, io.BytesIO(), "WEBP")
    with pytest.raises(FileError, match="no output format GIF"):
        write_picture(wide, io.BytesIO(), "GIF")


def test_a_picture_goes_to_pillow_and_back() -> None:
    for channels in (1, 3):
        for alpha in (None, noise(5, 6)):
            picture = Picture(noise(5, 6, channels), alpha, icc=SRGB, exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0", xmp=b"<x/>")
            again = picture_from_pil(picture_to_pil(picture))
            assert (again.pixels == picture.pixels).all()
            assert (again.alpha is None) == (alpha is None)
            assert alpha is None or again.alpha is None or np.array_equal(again.alpha, alpha)
            assert (again.icc, again.exif, again.xmp) == (picture.icc, picture.exif, picture.xmp)


# ------------------------------------------------------------------------------------------------------------- alpha plane


@pytest.mark.parametrize("shape", [(1, 1), (300, 1), (65, 63)])
def test_alpha_comes_back_bit_exact(shape: tuple[int, int]) -> None:
    alpha = noise(*shape)
    again = decode_alpha(encode_alpha(alpha), shape[1], shape[0])
    assert (again == alpha).all() and again.dtype == np.uint8 and again.flags.writeable


def test_an_alpha_plane_of_another_size_or_kind_is_refused_before_decoding() -> None:
    good = encode_alpha(noise(6, 5))
    rgb = file_bytes(Image.new("RGB", (5, 6)), "PNG")
    bomb = png(2**31 - 1, 2**31 - 1, 8, 0, b"")
    for payload in (b"", b"nonsense", rgb, bomb, good[:-30], good[:40] + b"\0" + good[41:]):
        with pytest.raises(CorruptStreamError, match="alpha plane"):
            decode_alpha(payload, 5, 6)
    with pytest.raises(CorruptStreamError, match="picture's size"):
        decode_alpha(good, 6, 5)
