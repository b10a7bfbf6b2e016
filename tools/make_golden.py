"""Make the golden files anew: `python tools/make_golden.py`, after the shipped checkpoint has changed.

Six pictures of our own (two crops of the free photographs in examples/, four drawn here) at three qualities each.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.codec import load_codec
from hpcm_codec.constants import DEFAULT_MODEL
from hpcm_codec.images import Picture, read_picture
from hpcm_codec.selftest import GOLDEN_FOLDER, INDEX_NAME

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
QUALITIES = (5, 47.5, 95)


def pictures() -> dict[str, Picture]:
    """Name → picture: photographs, text-like edges, noise, a grey ramp, and one that takes two tiles."""
    rows, columns = np.mgrid[0:96, 0:160]
    noise = np.random.default_rng(7).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    stripes = np.where((rows // 3 + columns // 5) % 4 == 0, 20, 235).astype(np.uint8)
    ramp = np.clip(rows + columns, 0, 255).astype(np.uint8)[..., None]
    wide = 128 + 90 * np.sin(np.arange(1100)[None, :, None] / np.array([7.0, 19.0, 53.0])) * np.ones((40, 1, 1))
    return {
        "chelsea": _crop("chelsea.png", 60, 110, 192, 256),
        "coffee": _crop("coffee.png", 100, 150, 128, 192),
        "noise": Picture(noise),
        "stripes": Picture(np.repeat(stripes[..., None], 3, axis=2)),
        "ramp": Picture(ramp),
        "wide": Picture(wide.round().astype(np.uint8)),
    }


def _crop(name: str, top: int, left: int, height: int, width: int) -> Picture:
    pixels: NDArray[np.uint8] = read_picture(EXAMPLES / name).pixels
    return Picture(np.ascontiguousarray(pixels[top : top + height, left : left + width]))


def main() -> None:
    codec = load_codec(DEFAULT_MODEL, "cpu", "exact")
    GOLDEN_FOLDER.mkdir(exist_ok=True)
    for old in GOLDEN_FOLDER.glob("*.hpcm"):
        old.unlink()
    digests = {}
    for name, picture in pictures().items():
        for quality in QUALITIES:
            data = codec.encode(picture, quality)
            file = f"{name}-{quality:g}.hpcm"
            (GOLDEN_FOLDER / file).write_bytes(data)
            digests[file] = codec.symbol_digest(data)
    index = {"model": DEFAULT_MODEL, "identity": codec.identity.hex(), "files": digests}
    (GOLDEN_FOLDER / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    print(f"{len(digests)} files, {sum(f.stat().st_size for f in GOLDEN_FOLDER.iterdir())} bytes in {GOLDEN_FOLDER}")


if __name__ == "__main__":
    main()
