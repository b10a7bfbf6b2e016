"""What a picture has besides its pixels (alpha, profile, metadata) as payloads of extension chunks; and back: IPTC data, resolution, texts.

docs/bitstream.md, section 5, has the payloads. They are read as anything from outside: what does not fit them is left out with a notice,
and costs nobody the picture.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from hpcm_codec.bitstream.byte_reader import ByteReader, varint_bytes
from hpcm_codec.bitstream.container import ALPHA, EXIF, ICC, IPTC, RESOLUTION, TEXTS, XMP
from hpcm_codec.errors import CorruptStreamError
from hpcm_codec.images.alpha import encode_alpha
from hpcm_codec.images.extras import INCH, TEXTS_BYTES, dpi_that_fits, is_keyword, thousandths
from hpcm_codec.images.picture import Extras, PixelSource


def extensions_of(picture: PixelSource) -> dict[int, bytes]:
    """The picture's alpha and metadata as extension chunks."""
    alpha = None if picture.alpha is None else encode_alpha(picture.alpha)
    parts = {ALPHA: alpha, ICC: picture.icc, EXIF: picture.exif, XMP: picture.xmp, **payloads_of(picture.extras)}
    return {kind: payload for kind, payload in parts.items() if payload is not None}


def payloads_of(extras: Extras) -> dict[int, bytes]:
    """Extension chunks by type."""
    found = {}
    if extras.iptc is not None:
        found[IPTC] = extras.iptc
    if extras.dpi is not None and dpi_that_fits(extras.dpi) is not None:
        found[RESOLUTION] = struct.pack("<II", *(thousandths(value) for value in extras.dpi))
    if extras.texts:
        found[TEXTS] = b"".join(_text_bytes(entry) for entry in extras.texts)
    return found


def extras_in(extensions: Mapping[int, bytes]) -> tuple[Extras, tuple[str, ...]]:
    """The extras in a file's extension chunks, and a notice for each that makes no sense."""
    notices: list[str] = []
    dpi, texts = None, tuple[tuple[str, str], ...]()
    if (payload := extensions.get(RESOLUTION)) is not None:
        if len(payload) == 8 and (found := struct.unpack("<II", payload)) and 0 not in found:
            dpi = found[0] / 1000 * INCH, found[1] / 1000 * INCH
        else:
            notices.append("its resolution makes no sense, it was left out")
    if (payload := extensions.get(TEXTS)) is not None:
        try:
            texts = _texts_in(payload)
        except (CorruptStreamError, ValueError):
            notices.append("its texts make no sense, they were left out")
    return Extras(extensions.get(IPTC) or None, dpi, texts), tuple(notices)


def _text_bytes(entry: tuple[str, str]) -> bytes:
    parts = (part.encode("utf-8", "replace") for part in entry)
    return b"".join(varint_bytes(len(part)) + part for part in parts)


def _texts_in(payload: bytes) -> tuple[tuple[str, str], ...]:
    if len(payload) > TEXTS_BYTES:
        raise ValueError("too many")
    reader, found = ByteReader(memoryview(payload), 0), []
    while reader.offset < len(payload):
        keyword, text = (bytes(reader.take(reader.varint("a text"), "a text")).decode("utf-8") for _ in range(2))
        if not is_keyword(keyword):
            raise ValueError("not a keyword")
        found.append((keyword, text))
    return tuple(found)
