"""The two functions most programs need, and the codecs they keep loaded."""

from __future__ import annotations

import os
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpcm_codec.checkpoints import DEFAULT_MODEL, shipped_checkpoints
from hpcm_codec.codec import DEFAULT_QUALITY, FINEST_SCALE, Codec, load_codec
from hpcm_codec.container import DEFAULT_MAX_PIXELS, parse_header
from hpcm_codec.errors import UnsupportedError, UsageError
from hpcm_codec.images import Picture, open_picture, picture_from_pil, picture_to_pil, read_picture
from hpcm_codec.memory import check, decoding_bytes, encoding_bytes
from hpcm_codec.shipped import shipped_name

ImageLike = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]


def encode(
    image: ImageLike,
    quality: float = DEFAULT_QUALITY,
    model: str = DEFAULT_MODEL,
    *,
    device: str = "auto",
    profile: str = "auto",
    memory: int | None = None,
) -> bytes:
    """An image as the bytes of a .hpcm file.

    image:   a path, a Pillow image, or a numpy array of uint8: H×W×3 (RGB), H×W×4 (RGBA), H×W or H×W×1 (grey).
    quality: 0 (smallest) to 100.
    model:   a checkpoint's name or path.
    device:  "cpu", "cuda", or "auto" for CUDA where there is one.
    profile: "exact" (the file decodes on every machine), "float", or "auto" for exact where the checkpoint has it.
    memory:  the most bytes that the program may take for a picture from a path; None is a quarter of the machine's.
    Raises HpcmError: FileError for what cannot be read, MemoryLimitError for what would take more memory, UsageError for arguments that
    make no sense.
    """
    codec = kept_codec(model, device, profile)
    if not isinstance(image, (str, os.PathLike)):
        return codec.encode(as_picture(image), quality)

    def afford(width: int, height: int, held: int) -> None:
        check(f"encoding {width}×{height} pixels", encoding_bytes(width, height, held), memory, "allow more memory")

    with open_picture(image, afford=afford) as picture:
        return codec.encode(picture, quality)


def decode(
    data: bytes,
    model: str | None = None,
    *,
    device: str = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    region: tuple[int, int, int, int] | None = None,
    scale: str = FINEST_SCALE,
    memory: int | None = None,
) -> Image.Image:
    """The picture of a .hpcm file's bytes: a Pillow image of mode L, LA, RGB or RGBA, metadata in its `info`.

    model:      a checkpoint's name or path; None takes the one the file names, if it is shipped.
    max_pixels: larger pictures are refused before memory is taken for them.
    region:     x, y, width, height in pixels: only this part, decoded from the tiles it touches; the same as the crop of the whole.
    scale:      "hyper", "s1", "s2" or "s3": the finest one to decode. Finer chunks of the file need not have arrived.
    memory:     the most bytes that the program may take; None is a quarter of the machine's.
    Raises HpcmError: CorruptStreamError for damaged data, UnsupportedError for another model's or a newer format's, MemoryLimitError for
    what would take more memory, UsageError for a region that is not inside the picture.
    """
    header = parse_header(data, max_pixels)
    width, height = (header.width, header.height) if region is None else region[2:]
    held = 8 * width * height + 2 * len(data)  # the Pillow image, and room for transparency
    check(
        f"decoding {width}×{height} pixels",
        decoding_bytes(width, height, held),
        memory,
        "allow more, or decode a region",
    )
    codec = codec_for(data, model, device, max_pixels)
    return picture_to_pil(codec.decode_strips(data, max_pixels, scale=scale, region=region))


def as_picture(image: ImageLike) -> Picture:
    """What the codec takes, made of what a program has (see `encode`)."""
    if isinstance(image, (str, os.PathLike)):
        return read_picture(image)
    if isinstance(image, Image.Image):
        return picture_from_pil(image)
    if not isinstance(image, np.ndarray):
        raise UsageError(f"an image is a path, a Pillow image or a numpy array, not {type(image).__name__}")
    if image.dtype != np.uint8:
        raise UsageError(f"an image array holds uint8 samples, not {image.dtype}")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise UsageError(f"an image array is H×W×3, H×W×4, H×W×1 or H×W, not {'×'.join(map(str, image.shape))}")
    alpha = np.ascontiguousarray(image[..., 3]) if image.shape[2] == 4 else None
    return Picture(np.require(image[..., : min(3, image.shape[2])], requirements=["C", "W"]), alpha)


@cache
def kept_codec(model: str = DEFAULT_MODEL, device: str = "auto", profile: str = "auto") -> Codec:
    """The codec of a model on a device, loaded at the first call and kept."""
    return load_codec(model, device, profile)


def codec_for(
    data: bytes, model: str | None = None, device: str = "auto", max_pixels: int = DEFAULT_MAX_PIXELS
) -> Codec:
    """The kept codec that decodes a file: of the named model, or else of the shipped checkpoint that the file names.

    Raises CorruptStreamError when the file's header cannot be read, UnsupportedError when no shipped checkpoint made it.
    """
    identity = parse_header(data, max_pixels).checkpoint_id
    if model is not None:
        return kept_codec(model, device)
    # the usual case first: a loaded codec knows its identity, a checkpoint's has to be computed
    if DEFAULT_MODEL in shipped_checkpoints() and (codec := kept_codec(DEFAULT_MODEL, device)).identity == identity:
        return codec
    if (name := shipped_name(identity)) is not None:
        return kept_codec(name, device)
    raise UnsupportedError(
        f"made with the model {identity.hex()}, which is not among those here "
        f"({', '.join(shipped_checkpoints()) or 'none'})",
        advice="decode with --model naming the checkpoint it was made with",
    )
