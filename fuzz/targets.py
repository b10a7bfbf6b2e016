"""What is fuzzed: two functions that take any bytes and must return or raise HpcmError, whatever the bytes are.

Random changes hardly ever get past a CRC-32. So bit 0 of the byte at offset 5 (of the checkpoint's identity, which no input has right
anyway) asks for `repaired`: the checks are made to agree, as an attacker would. Its other bits choose what is asked of the decoder.
Every input is thus a .hpcm file, more or less, that `hpcm info` explains.
"""

from __future__ import annotations

import io
import sys
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

import hpcm_codec.pillow  # noqa: F401 - registers the format
from hpcm_codec import api
from hpcm_codec.bitstream import container
from hpcm_codec.bitstream.byte_reader import LARGEST_NUMBER
from hpcm_codec.cli.info import describe_file
from hpcm_codec.codec import Codec
from hpcm_codec.constants import DEFAULT_MAX_PIXELS, SCALES
from hpcm_codec.engines.ports import DecoderPort
from hpcm_codec.errors import HpcmError
from hpcm_codec.extensions import extras_in
from hpcm_codec.images import Extras, Picture, decode_alpha, picture_to_pil, write_picture

sys.path.append(str(Path(__file__).resolve().parent))
from small_model import checkpoint

OPTIONS_AT = 5  # the first byte of the identity
REPAIR, PARTIAL, REGION, GREATER_LIMIT = 1, 2, 4, 8
SCALES_SHIFT = 4  # two bits: how many of the finest scales are left out
FORGE = 64  # symbol checks agree as well
IDENTITY = slice(5, 13)
MAX_PIXELS = 80_000  # 1100×64 pixels, which are two tiles, but not much more
MEMORY = 2**30
ALPHA_PIXELS = 2**16
WRITTEN_AS = ("PNG", "JPEG", "WEBP", "TIFF", "PPM")


def options_of(data: bytes) -> int:
    return data[OPTIONS_AT] if len(data) > OPTIONS_AT else 0


def repaired(data: bytes, identity: bytes) -> bytes:
    """The same file with a known identity and every CRC-32 right; unchanged where its header cannot be read."""
    changed = bytearray(data)
    changed[IDENTITY] = identity
    try:
        head, *chunks = container.describe_stream(changed, LARGEST_NUMBER**2)
    except HpcmError:
        return data
    seed = zlib.crc32(changed[: head.size])
    for chunk in chunks:
        end = chunk.offset + chunk.size
        if chunk.size >= container.CRC_BYTES and end <= len(changed):
            start_of_check = end - container.CRC_BYTES
            check = zlib.crc32(changed[chunk.offset : start_of_check], seed)
            changed[start_of_check:end] = check.to_bytes(container.CRC_BYTES, "little")
    return bytes(changed)


class Agreeing(int):
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


class ForgedPort(DecoderPort):
    """A decoder's port whose symbol check agrees with any file's."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, Agreeing() if name == "symbol_check" else value)


@cache
def codec() -> Codec:
    """The codec of the small model, on the CPU."""
    return api.kept_codec(checkpoint(), "cpu")


def fuzz_container(data: bytes) -> bool:
    """Header, chunks and metadata: everything that reads a file without decoding its pixels. Returns whether the file is sound."""
    if options_of(data) & REPAIR:
        data = repaired(data, data[IDENTITY])
    limit = LARGEST_NUMBER**2 if options_of(data) & GREATER_LIMIT else DEFAULT_MAX_PIXELS
    stream = None
    for truncated in (False, True):
        for scale in SCALES:
            try:
                stream = container.parse_stream(data, max_pixels=limit, allow_truncated=truncated, scale=scale)
            except HpcmError as error:
                assert "\n" not in str(error)
                continue
            if scale == SCALES[-1] and not stream.problems:
                assert container.write_stream(stream) == data, "the encoding is not canonical"
    problem: HpcmError | None = None
    try:
        described, problem = describe_file(data)
        assert described["sound"] == (problem is None)
        with Image.open(io.BytesIO(data)) as image:
            assert image.width * image.height <= DEFAULT_MAX_PIXELS
    except HpcmError as error:
        problem = error
    if stream is not None:
        _use_extensions(stream)
    return problem is None and stream is not None


def _use_extensions(stream: container.HpcmStream) -> None:
    """Alpha and metadata go where a decoder would take them."""
    extensions, header = stream.extensions, stream.header
    if container.ALPHA in extensions and header.width * header.height <= ALPHA_PIXELS:
        with suppress(HpcmError):
            decode_alpha(extensions[container.ALPHA], header.width, header.height)
    icc, exif, xmp = (extensions.get(kind) for kind in (container.ICC, container.EXIF, container.XMP))
    picture = Picture(np.zeros((1, 1, 3), np.uint8), icc=icc, exif=exif, xmp=xmp, extras=extras_in(extensions)[0])
    picture_to_pil(picture)
    if any((picture.icc, picture.exif, picture.xmp)) or picture.extras != Extras():
        for format in WRITTEN_AS:
            with suppress(HpcmError):
                write_picture(picture, io.BytesIO(), format)


def fuzz_decode(data: bytes) -> bool:
    """From bytes to pixels, as `hpcm_codec.decode` and `hpcm decode` do it. Returns whether there was a picture."""
    options = options_of(data)
    if options & REPAIR:
        data = repaired(data, codec().identity)
    port = ForgedPort if options & FORGE else DecoderPort
    try:
        with (
            patch("hpcm_codec.engines.torch_engine.DecoderPort", port),
            patch("hpcm_codec.engines.integer.DecoderPort", port),
        ):
            image = api.decode(
                data,
                checkpoint(),
                device="cpu",
                max_pixels=MAX_PIXELS,
                region=(3, 0, 5, 7) if options & REGION else None,
                scale=SCALES[3 - (options >> SCALES_SHIFT & 3)],
                partial=bool(options & PARTIAL),
                memory=MEMORY,
            )
    except HpcmError as error:
        assert "\n" not in str(error)
        return False
    assert image.width * image.height <= MAX_PIXELS
    return True


TARGETS = {"container": fuzz_container, "decode": fuzz_decode}
