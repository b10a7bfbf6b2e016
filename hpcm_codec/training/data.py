"""Training pictures as one memory-mapped file of decoded pixels, and random crops from it.

Decoding JPEG for every crop would cost more than a small model's step; a packed file (uint8 RGB pixels, picture after
picture, with a JSON index beside it) is decoded once and then only paged in.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hpcm_codec.errors import FileError, HpcmError, printable
from hpcm_codec.images import read_picture
from hpcm_codec.system.files import write_atomically

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".ppm", ".bmp"}
_INDEX_VERSION = 1


def image_files(folder: Path) -> list[Path]:
    """All picture files below a folder, sorted; raises FileError when there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileError(f"{folder}: no pictures below this folder; give one with {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def pack_pictures(
    folder: Path, output: Path, smallest_side: int = 128, leaving_out: Callable[[Path, str], object] = lambda *_: None
) -> int:
    """Decode every picture below `folder` into `output` (and `output`.json), whole or not at all; returns how many were packed.

    Grey pictures become RGB; pictures with a side under `smallest_side` pixels and unreadable ones are left out.
    leaving_out: called with each of these and the reason. Raises FileError where the files cannot be written, or nothing is left.
    """
    entries: list[dict[str, int]] = []
    left_out: list[str] = []

    def leave_out(path: Path, reason: str) -> None:
        left_out.append(f"{printable(path.name)}: {reason}")
        leaving_out(path, reason)

    def write(target: BinaryIO) -> None:
        start = 0
        for path in image_files(folder):
            try:
                pixels = read_picture(path).pixels
            except HpcmError as error:
                leave_out(path, error.reason)
                continue
            height, width = pixels.shape[:2]
            if min(height, width) < smallest_side:
                leave_out(path, f"has {width}×{height} pixels, fewer than {smallest_side} on a side")
                continue
            rgb = np.broadcast_to(pixels, (height, width, 3))
            target.write(np.ascontiguousarray(rgb).data)
            entries.append({"start": start, "height": height, "width": width})
            start += rgb.size
        if not entries:
            more = f", and {len(left_out) - 1} more" if len(left_out) > 1 else ""
            advice = f"give sound pictures of at least {smallest_side}×{smallest_side} pixels"
            raise FileError(f"no picture here can be used ({left_out[0]}{more})", file=folder, advice=advice)
        index = json.dumps({"version": _INDEX_VERSION, "pictures": entries})
        write_atomically(output.with_name(output.name + ".json"), index.encode(), overwrite=True)

    write_atomically(output, write, overwrite=True)
    return len(entries)


class PackedPictures:
    """A packed file, opened for random access. Indexing gives a picture as uint8 H×W×3, mapped, not copied."""

    def __init__(self, path: Path) -> None:
        self.path = path
        index_path = path.with_name(path.name + ".json")
        if path.is_file() and not index_path.exists():
            reason = f"no file of packed pictures: there is no {printable(index_path.name)} beside it"
            advice = "give a folder of pictures, or a file that `hpcm train pack` made"
            raise FileError(reason, file=path, advice=advice)
        try:
            index = json.loads(index_path.read_text())
            self._pixels: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise FileError(f"{path}: not a packed training file ({error}); make one with `hpcm train pack`") from error
        if index.get("version") != _INDEX_VERSION:
            raise FileError(f"{index_path}: index version {index.get('version')} is not {_INDEX_VERSION}; pack again")
        self._entries = index["pictures"]
        self._usable: dict[int, list[int]] = {}
        last = self._entries[-1]
        if self._pixels.size != last["start"] + last["height"] * last["width"] * 3:
            raise FileError(f"{path}: not the file that {index_path.name} describes; pack again")

    def __reduce__(self) -> tuple[type[PackedPictures], tuple[Path]]:
        """Another process opens the file itself; the pixels are not pickled."""
        return PackedPictures, (self.path,)

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

    def crop(self, edge: int, generator: np.random.Generator, smallest_scale: float = 1.0) -> Tensor:
        """A crop, uint8 3×edge×edge: random picture, position and flips.

        smallest_scale: the picture is shrunk first, by a random factor between this and 1 (uniform in the logarithm) but never so
                        far that it no longer holds the crop. Only the part that becomes the crop is read and filtered.
        Pictures smaller than the edge are left out; raises FileError when none is large enough.
        """
        if edge not in self._usable:
            self._usable[edge] = self.large_enough(edge)
        usable = self._usable[edge]
        picture = self[usable[int(generator.integers(len(usable)))]]
        height, width = picture.shape[:2]
        side = edge
        if smallest_scale < 1:
            largest_side = min(edge / smallest_scale, height, width)
            side = int(edge * (largest_side / edge) ** generator.random())
        top = int(generator.integers(height - side + 1))
        left = int(generator.integers(width - side + 1))
        crop = picture[top : top + side, left : left + side]
        if side > edge:  # Pillow's filters widen with the factor: no aliasing
            crop = np.asarray(Image.fromarray(crop).resize((edge, edge), Image.Resampling.BICUBIC))
        if generator.integers(2):
            crop = crop[:, ::-1]
        if generator.integers(2):
            crop = crop[::-1]
        if generator.integers(2):
            crop = crop.transpose(1, 0, 2)
        return torch.from_numpy(crop.transpose(2, 0, 1).copy())

    def sample(self, edge: int, batch: int) -> Tensor:
        """The same crops at every call, B×3×edge×edge in [0, 1]; a smaller multiple of 64 where no picture holds that edge."""
        largest = max(min(entry["height"], entry["width"]) for entry in self._entries)
        edge = min(edge, max(64, largest // 64 * 64))
        generator = np.random.default_rng(0)
        return torch.stack([self.crop(edge, generator) for _ in range(batch)]).float() / 255
