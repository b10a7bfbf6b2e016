"""Training pictures as one memory-mapped file of decoded pixels, and endless random crops from it.

Decoding JPEG for every crop would cost more than a small model's step; a packed file (uint8 RGB pixels, picture after
picture, with a JSON index beside it) is decoded once and then only paged in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.images import read_picture

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".ppm", ".bmp"}
_INDEX_VERSION = 1


def image_files(folder: Path) -> list[Path]:
    """All picture files below a folder, sorted; raises FileError when there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileError(f"{folder}: no pictures below this folder; give one with {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def pack_pictures(folder: Path, output: Path, smallest_side: int = 128) -> int:
    """Decode every picture below `folder` into `output` (and `output`.json); returns how many were packed.

    Grey pictures become RGB; pictures with a side under `smallest_side` pixels and unreadable ones are left out.
    """
    entries, start = [], 0
    partial = output.with_name(output.name + ".partial")
    with partial.open("wb") as target:
        for path in image_files(folder):
            try:
                pixels = read_picture(path).pixels
            except HpcmError:
                continue
            if min(pixels.shape[:2]) < smallest_side:
                continue
            rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
            target.write(np.ascontiguousarray(rgb).tobytes())
            entries.append({"start": start, "height": rgb.shape[0], "width": rgb.shape[1]})
            start += rgb.size
    if not entries:
        partial.unlink()
        raise FileError(f"{folder}: no picture here is at least {smallest_side} pixels on both sides")
    index = {"version": _INDEX_VERSION, "pictures": entries}
    output.with_name(output.name + ".json").write_text(json.dumps(index))
    partial.replace(output)
    return len(entries)


class PackedPictures:
    """A packed file, opened for random access. Indexing gives a picture as uint8 H×W×3, mapped, not copied."""

    def __init__(self, path: Path) -> None:
        index_path = path.with_name(path.name + ".json")
        try:
            index = json.loads(index_path.read_text())
            self._pixels: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise FileError(f"{path}: not a packed training file ({error}); make one with `hpcm train pack`") from error
        if index.get("version") != _INDEX_VERSION:
            raise FileError(f"{index_path}: index version {index.get('version')} is not {_INDEX_VERSION}; pack again")
        self._entries = index["pictures"]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        entry = self._entries[number]
        height, width = entry["height"], entry["width"]
        flat = self._pixels[entry["start"] : entry["start"] + height * width * 3]
        return flat.reshape(height, width, 3)

    def large_enough(self, edge: int) -> list[int]:
        """The numbers of the pictures that hold a crop of that edge; raises FileError when there is none."""
        usable = [i for i, e in enumerate(self._entries) if min(e["height"], e["width"]) >= edge]
        if not usable:
            raise FileError(f"no packed picture is {edge} pixels on both sides", advice="train with smaller crops")
        return usable

    def crops(self, edge: int, batch: int, generator: np.random.Generator) -> Iterator[Tensor]:
        """Endless batches, uint8 B×3×edge×edge: random pictures, positions and flips.

        Pictures smaller than the edge are left out; raises FileError when none is large enough.
        """
        usable = self.large_enough(edge)
        while True:
            crops = []
            for number in generator.choice(usable, size=batch):
                picture = self[int(number)]
                top = int(generator.integers(picture.shape[0] - edge + 1))
                left = int(generator.integers(picture.shape[1] - edge + 1))
                crop = picture[top : top + edge, left : left + edge]
                if generator.integers(2):
                    crop = crop[:, ::-1]
                if generator.integers(2):
                    crop = crop[::-1]
                if generator.integers(2):
                    crop = crop.transpose(1, 0, 2)
                crops.append(torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))))
            yield torch.stack(crops)

    def sample(self, edge: int, batch: int) -> Tensor:
        """The same crops at every call, B×3×edge×edge in [0, 1]."""
        return next(self.crops(edge, batch, np.random.default_rng(0))).float() / 255
