"""`encode` and `decode`, the functions that most programs need, and the cache of codecs that they load."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpcm_codec import arguments
from hpcm_codec.bitstream.container import Header, parse_stream
from hpcm_codec.codec import Codec
from hpcm_codec.constants import DEFAULT_MAX_PIXELS, DEFAULT_MODEL, DEFAULT_QUALITY, FINEST_SCALE
from hpcm_codec.errors import UnsupportedError, UsageError
from hpcm_codec.images import Picture, open_picture, picture_from_pil, picture_to_pil, read_picture
from hpcm_codec.images.arrays import array_of, is_tensor, picture_from_array, picture_from_tensor, tensor_of
from hpcm_codec.system.devices import device_of
from hpcm_codec.tiles.memory import check, decoding_bytes, encoding_bytes
from hpcm_codec.weights.families import Family
from hpcm_codec.weights.registry import (
    find_checkpoint,
    known_checkpoints,
    known_name,
    models_folder,
    shipped_checkpoints,
)
from hpcm_codec.weights.stored import StoredCheckpoint, read_models

if TYPE_CHECKING:
    from torch import Tensor

ImageLike = Union[str, os.PathLike[str], Image.Image, NDArray[Any], "Tensor"]
Output = Literal["pil", "numpy", "torch"]
Region = tuple[int, int, int, int]


def encode(
    image: ImageLike,
    quality: float = DEFAULT_QUALITY,
    model: str | Codec = DEFAULT_MODEL,
    *,
    device: str = "auto",
    profile: str = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    memory: int | None = None,
) -> bytes:
    """An image as the bytes of a .hpcm file.

    image:      a path; a Pillow image of any mode; a numpy array H×W×C or H×W, or a torch tensor C×H×W (on any device), of uint8 or of
                floating point samples in [0, 1], C = 1 for grey, 2 for grey and alpha, 3 for RGB, 4 for RGBA.
    quality:    0 (smallest) to 100, in half steps; a family of models takes the nearest of its own.
    model:      a checkpoint's or family's name or path, or a Codec that is loaded already (which has its device and profile).
    device:     "cpu", "cuda", or "auto" for CUDA where there is one.
    profile:    "exact" (the file decodes on every machine), "float", or "auto" for exact where the checkpoint has it.
    max_pixels: larger pictures are refused; those from a path before memory is allocated for them.
    memory:     most bytes that the program may use for a picture from a path; None means a quarter of the machine's memory.
    Raises HpcmError: FileError for what cannot be read or is too large, MemoryLimitError for pictures that would need more memory,
    UsageError for invalid arguments, including unsupported shapes, dtypes and ranges.

    >>> import numpy as np
    >>> from hpcm_codec import decode, encode
    >>> grey = encode(np.full((40, 60), 0.5), quality=20)  # H×W, floating point
    >>> decode(grey, output="numpy").shape
    (40, 60, 1)
    """
    quality = arguments.quality(quality)
    max_pixels = arguments.whole("max_pixels", max_pixels)
    memory = memory if memory is None else arguments.whole("memory", memory)
    codec = model if isinstance(model, Codec) else kept_codec(model, device, profile)
    if not isinstance(image, (str, os.PathLike)):
        picture = as_picture(image)
        if picture.width * picture.height > max_pixels:
            raise UsageError(f"a picture of {picture.width}×{picture.height} pixels is above the limit of {max_pixels}")
        return codec.encode(picture, quality)

    def afford(width: int, height: int, held: int) -> None:
        needed = encoding_bytes(width, height, held, tiles=codec.tile_workers)
        check(f"encoding {width}×{height} pixels", needed, memory, "allow more memory")

    with open_picture(image, max_pixels=max_pixels, afford=afford) as source:
        return codec.encode(source, quality)


@overload
def decode(
    data: bytes,
    model: str | Codec | None = None,
    *,
    output: Literal["pil"] = "pil",
    device: str = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    region: Region | None = None,
    scale: str = FINEST_SCALE,
    partial: bool = False,
    memory: int | None = None,
) -> Image.Image: ...
@overload
def decode(
    data: bytes,
    model: str | Codec | None = None,
    *,
    output: Literal["numpy"],
    device: str = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    region: Region | None = None,
    scale: str = FINEST_SCALE,
    partial: bool = False,
    memory: int | None = None,
) -> NDArray[np.uint8]: ...
@overload
def decode(
    data: bytes,
    model: str | Codec | None = None,
    *,
    output: Literal["torch"],
    device: str = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    region: Region | None = None,
    scale: str = FINEST_SCALE,
    partial: bool = False,
    memory: int | None = None,
) -> Tensor: ...
def decode(
    data: bytes,
    model: str | Codec | None = None,
    *,
    output: Output = "pil",
    device: str = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    region: Region | None = None,
    scale: str = FINEST_SCALE,
    partial: bool = False,
    memory: int | None = None,
) -> Image.Image | NDArray[np.uint8] | Tensor:
    """The picture of a .hpcm file's bytes.

    model:      a checkpoint's name or path, or a loaded Codec; None means the one that the file names, if it is known here.
    output:     "pil": a Pillow image of mode L, LA, RGB or RGBA, with ICC profile, EXIF and XMP in its `info`; "numpy": an array H×W×C;
                "torch": a tensor C×H×W on the CPU; both uint8, C = 1 for grey, 2 for grey and alpha, 3 for RGB, 4 for RGBA.
    device:     where the model runs: "cpu", "cuda", or "auto" for CUDA where there is one.
    max_pixels: larger pictures are refused before memory is allocated for them.
    region:     x, y, width, height in pixels: only this part, decoded from the tiles it touches; the same as the crop of the whole.
    scale:      "hyper", "s1", "s2" or "s3": the finest one to decode. Finer chunks of the file need not have arrived.
    partial:    decode the undamaged part of truncated or damaged data, instead of raising; `Codec.decode` also reports what is missing.
    memory:     most bytes that the program may use; None means a quarter of the machine's memory.
    Raises HpcmError: CorruptStreamError for damaged data, UnsupportedError for another model's file or a newer format,
    MemoryLimitError for pictures that would need more memory, UsageError for a region outside the picture and other invalid arguments.

    >>> import torch
    >>> from hpcm_codec import decode, encode
    >>> data = encode(torch.rand(3, 64, 96), quality=50)  # C×H×W in [0, 1]
    >>> decode(data).size, decode(data, output="torch").shape
    ((96, 64), torch.Size([3, 64, 96]))
    >>> decode(data, output="numpy", region=(10, 20, 30, 40)).shape
    (40, 30, 3)
    >>> decode(data[:-10], partial=True).mode  # a file that was cut short
    'RGB'
    """
    if output not in ("pil", "numpy", "torch"):
        raise UsageError(f"there is no output {output!r}", advice="use pil, numpy or torch")
    data = arguments.bytes_of_file(data)
    max_pixels = arguments.whole("max_pixels", max_pixels)
    memory = memory if memory is None else arguments.whole("memory", memory)
    region = region if region is None else arguments.region(region)
    stream = parse_stream(data, max_pixels=max_pixels, allow_truncated=partial, scale=scale)
    grid = stream.header.grid
    area = grid[0].picture_pixels if region is None else grid.region(*region)
    width, height = area.width, area.height
    held = 8 * width * height + 2 * len(data)  # the result, and room for transparency
    tiles = model.tile_workers if isinstance(model, Codec) else 1
    needed = decoding_bytes(width, height, held, tiles)
    check(f"decoding {width}×{height} pixels", needed, memory, "allow more, or decode a region")
    codec = model if isinstance(model, Codec) else codec_for(stream.header, model, device)
    strips = codec.decode_parsed(stream, region)
    if output == "pil":
        return picture_to_pil(strips)
    picture = strips.whole()
    return array_of(picture) if output == "numpy" else tensor_of(picture)


def as_picture(image: ImageLike) -> Picture:
    """Any of the images that `encode` accepts, as the `Picture` that a codec takes."""
    if isinstance(image, (str, os.PathLike)):
        return read_picture(image)
    if isinstance(image, Image.Image):
        return picture_from_pil(image)
    if isinstance(image, np.ndarray):
        return picture_from_array(image)
    if is_tensor(image):
        return picture_from_tensor(image)
    raise UsageError(f"an image is a path, a Pillow image, a numpy array or a torch tensor, not {type(image).__name__}")


def kept_codec(model: str = DEFAULT_MODEL, device: str = "auto", profile: str = "auto") -> Codec:
    """The codec of a model on a device, loaded at its first use and cached; all spellings of a model share one codec."""
    if not isinstance(model, (str, os.PathLike)):
        raise UsageError(f"a model is a checkpoint's name or path, or a Codec, not {type(model).__name__}")
    return _kept(find_checkpoint(os.fspath(model)).resolve(), device_of(device), profile)


@cache
def _kept(checkpoint: Path, device: str, profile: str) -> Codec:
    """A codec of either profile has the weights of the one that was loaded."""
    if profile == "auto":
        return Codec(_kept_models(checkpoint), device)
    return _kept(checkpoint, device, "auto").with_profile(profile)


@cache
def _kept_models(checkpoint: Path) -> StoredCheckpoint | Family:
    """A checkpoint's file, read once: the identity of the default model is needed before its engines are made."""
    return read_models(str(checkpoint))


def codec_for(header: Header, model: str | None = None, device: str = "auto") -> Codec:
    """The cached codec that decodes a file: of the named model, or else of the known checkpoint that the file's header names.

    Raises UnsupportedError when no known checkpoint made it.
    """
    identity = header.checkpoint_id
    if model is not None:
        return kept_codec(model, device)
    # the usual case first: it has to be read anyway
    shipped = shipped_checkpoints().get(DEFAULT_MODEL)
    if shipped is not None and _kept_models(shipped.resolve()).identity == identity:
        return kept_codec(DEFAULT_MODEL, device)
    if (name := known_name(identity)) is not None:
        return kept_codec(name, device)
    folder = models_folder() or "a folder that HPCM_MODELS names"
    raise UnsupportedError(
        f"made with the model {identity.hex()}, which is not among those here ({', '.join(known_checkpoints()) or 'none'})",
        advice=f"put the checkpoint it was made with into {folder}, or name it with --model; the project's "
        "checkpoints/README.md says where earlier ones are",
    )
