"""Of a file with several pictures the one that is shown first is taken, wherever its frames begin to be counted."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from conftest import case
from hpcm_codec.images import open_picture, picture_from_pil, read_picture
from test_images import file_bytes, noise

NOTICE = "all {} layers taken as one picture"


def psd(composite: np.ndarray, layers: list[np.ndarray]) -> bytes:
    """A Photoshop file of RGB layers as large as their composite (Adobe's file format specification, without compression)."""
    height, width, _ = composite.shape

    def planes(pixels: np.ndarray) -> list[bytes]:
        return [pixels[..., channel].tobytes() for channel in range(3)]

    channels = b"".join(struct.pack(">hI", channel, 2 + height * width) for channel in range(3))
    extra = struct.pack(">II", 0, 0) + b"\0\0\0\0"
    record = struct.pack(">4iH", 0, 0, height, width, 3) + channels + b"8BIMnorm" + bytes([255, 0, 0, 0])
    records = (record + struct.pack(">I", len(extra)) + extra) * len(layers)
    content = b"".join(b"\0\0" + plane for layer in layers for plane in planes(layer))
    info = struct.pack(">h", len(layers)) + records + content
    info = struct.pack(">I", len(info)) + info
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, height, width, 8, 3)
    return head + struct.pack(">III", 0, 0, len(info)) + info + b"\0\0" + b"".join(planes(composite))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_composite_of_a_layered_psd_is_read(count: int) -> None:
    composite, layers = noise(5, 8, 3), [noise(5, 8, 3) for _ in range(count)]
    data = psd(composite, layers)
    notices = (NOTICE.format(count),) if count > 1 else ()
    picture = read_picture(data)
    assert (picture.pixels == composite).all() and picture.notices == notices
    with open_picture(data) as opened:
        assert (opened.rows(0, 5) == composite).all() and opened.notices == notices
    with Image.open(io.BytesIO(data)) as image:
        assert (picture_from_pil(image).pixels == composite).all()


def test_a_layer_that_a_program_has_turned_to_is_what_it_encodes() -> None:
    layers = [noise(5, 8, 3), noise(5, 8, 3)]
    with Image.open(io.BytesIO(psd(noise(5, 8, 3), layers))) as image:
        image.seek(2)
        assert (picture_from_pil(image).pixels == layers[1]).all()


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_read(format: str) -> None:
    frames = [Image.fromarray(noise(5, 8, 3)) for _ in range(3)]
    lossless = {"lossless": True} if format == "WEBP" else {}
    data = file_bytes(frames[0], format, save_all=True, append_images=frames[1:], **lossless)
    picture = read_picture(data)
    assert picture.notices == ("first of 3 frames taken",)
    if format != "GIF":
        assert (picture.pixels == np.asarray(frames[0])).all()
    with Image.open(io.BytesIO(data)) as image:
        image.seek(2)
        assert (picture_from_pil(image).pixels == picture.pixels).all()


def test_the_layered_case_is_read() -> None:
    picture = read_picture(case("l2.psd"))
    assert (picture.width, picture.height) == (64, 48) and picture.notices == (NOTICE.format(2),)
