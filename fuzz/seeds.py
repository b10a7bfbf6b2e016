"""Writes the seeds of the corpus: sound files of every kind, small, of the model that is made for fuzzing.

    python fuzz/seeds.py [FOLDER]     # FOLDER/container and FOLDER/decode; default: fuzz/corpus

What the fuzzer has found besides is kept beside them and is not made here.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent))
from small_model import checkpoint
from targets import FORGE, GREATER_LIMIT, IDENTITY, OPTIONS_AT, PARTIAL, REGION, REPAIR, SCALES_SHIFT

from hpcm_codec.api import kept_codec
from hpcm_codec.bitstream import container
from hpcm_codec.images import EXIF_PREFIX, Picture
from hpcm_codec.tiles.grid import TileGrid

CORPUS = Path(__file__).resolve().parent / "corpus"


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x010F], tags[0x0112] = "maker", orientation
    return tags.tobytes().removeprefix(EXIF_PREFIX)


def picture(width: int, height: int, channels: int = 3, **more: object) -> Picture:
    """Smooth in one half, noise in the other."""
    random = np.random.default_rng(width * height)
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = 128 + 90 * np.sin(rows / 7) + 30 * (columns > width / 2)
    noise = random.normal(0, 40, (height, width, channels)) * (columns < width / 2)[..., None]
    return Picture((smooth[..., None] + noise).clip(0, 255).astype(np.uint8), **more)  # type: ignore[arg-type]


def with_options(data: bytes, options: int) -> bytes:
    """The file with an option byte in place of its identity; REPAIR is always set."""
    identity = bytes([options | REPAIR]) + bytes(7)
    return data[: IDENTITY.start] + identity + data[IDENTITY.stop :]


def container_seeds() -> dict[str, bytes]:
    """Arbitrary payloads: they are not decoded here."""

    def stream(width: int, height: int, extensions: dict[int, bytes], grey: bool = False) -> bytes:
        header = container.Header(width, height, 100, bytes(8), grey, float_profile=grey)
        tile = container.TileStreams(b"h", b"s1", b"", b"s333", 0x1234)
        count = len(TileGrid(width, height))
        return container.write_stream(container.HpcmStream(header, (tile,) * count, extensions))

    from hpcm_codec.images import encode_alpha

    metadata = {container.ICC: b"profile", container.EXIF: exif(1), container.XMP: b"<x/>"}
    alpha = {container.ALPHA: encode_alpha(np.arange(35, dtype=np.uint8).reshape(5, 7))}
    texts = {container.TEXTS: b"\x07Comment\x05hello\x05Title\x01t"}
    extras = {container.IPTC: b"\x1c\x02\x78\0\1c", container.RESOLUTION: b"\x38\x45\xb4\0" * 2, **texts}
    plain, tiles = stream(8, 6, {}), stream(1030, 2050, {}, grey=True)
    return {
        "plain": with_options(plain, 0),
        "tiles": with_options(tiles, GREATER_LIMIT),
        "metadata": with_options(stream(7, 5, metadata), 0),
        "alpha": with_options(stream(7, 5, alpha), 0),
        "everything": with_options(stream(7, 5, {**alpha, **metadata, 200: b"later"}), 0),
        "extras": with_options(stream(7, 5, extras), 0),
        "cut": with_options(tiles[:-60], 0),
    }


def decode_seeds() -> dict[str, bytes]:
    """Pictures of both profiles, whole, cut, in part and at every scale."""
    exact, floating = (kept_codec(checkpoint(), "cpu", profile) for profile in ("exact", "float"))
    alpha = np.random.default_rng(0).integers(0, 256, (7, 9), dtype=np.uint8)
    colour = exact.encode(picture(64, 60), 30)
    grey = exact.encode(picture(20, 30, 1), 70)
    seeds = {
        "colour": with_options(colour, 0),
        "float": with_options(floating.encode(picture(40, 50), 0), 0),
        "grey": with_options(grey, 0),
        "alpha": with_options(exact.encode(picture(9, 7, alpha=alpha, exif=exif(1)), 100), REGION),
        "tiles": with_options(exact.encode(picture(1030, 9), 0), REGION),
        "cut": with_options(grey[: len(grey) * 2 // 3], PARTIAL),
        "forged": with_options(colour, FORGE),
    }
    for left_out, scale in ((1, "s2"), (2, "s1"), (3, "hyper")):
        seeds[scale] = with_options(grey, left_out << SCALES_SHIFT)
    # an escape whose length never ends: bits that are all ones
    stream = container.parse_stream(colour)
    ones = replace(stream.tiles[0], hyper=b"\xff" * 3000, s1=b"\xff" * 64)
    seeds["ones"] = with_options(container.write_stream(replace(stream, tiles=(ones,))), 2 << SCALES_SHIFT)
    assert all(data[OPTIONS_AT] & REPAIR for data in seeds.values())
    return seeds


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else CORPUS
    for target, seeds in (("container", container_seeds()), ("decode", decode_seeds())):
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            (folder / target / f"seed-{name}").write_bytes(data)


if __name__ == "__main__":
    main()
