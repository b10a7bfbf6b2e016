"""Samples of any Pillow mode as 8-bit grey or RGB, and alpha."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL import TiffImagePlugin as tiff

from hpcm_codec.images.picture import Samples


def samples_of(
    image: Image.Image, raw_mode: str, notices: list[str], lower_bytes: Samples | None = None
) -> tuple[Samples, Samples | None]:
    """8-bit pixels (H×W×1 or H×W×3) and alpha of a loaded image of any mode. lower_bytes: of its 16-bit samples, H×W×3, where wanted."""
    mode = image.mode
    if mode in ("L", "1", "RGB", "RGBX"):
        pixels = _array(image.convert("RGB") if mode == "RGBX" else image.convert("L") if mode == "1" else image)
        return pixels, _keyed_alpha(pixels, image, raw_mode, lower_bytes)
    if mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        samples = _array(image.convert({"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}.get(mode, mode)))
        colours = 1 if mode in ("LA", "La") or raw_mode.startswith("LA") else 3  # Pillow spreads 16-bit LA to RGBA
        return samples[..., :colours], samples[..., -1]
    if mode.startswith("I") or mode == "F":
        values = _unwrapped(np.asarray(image), image)
        alpha = None
        key = image.info.get("transparency")
        if isinstance(key, int):
            alpha = np.where(values == key, 0, 255).astype(np.uint8)
        reduced = _from_floats(values, notices) if mode == "F" else _from_integers(values, _has_16_bits(image), notices)
        return reduced[..., None], alpha
    if mode == "P":
        transparent = "transparency" in image.info or (image.palette is not None and image.palette.mode.endswith("A"))
        samples = _array(image.convert("RGBA" if transparent else "RGB"))
        return samples[..., :3], samples[..., 3] if transparent else None
    if mode == "CMYK":
        return _array(_cmyk_to_rgb(image, notices)), None
    if mode == "LAB":
        notices.append("Lab converted to RGB")
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, to_rgb)
        assert converted is not None  # only an in-place transform gives None
        return _array(converted), None
    return _array(image.convert("RGB")), None  # YCbCr, HSV and whatever else has three colours


def _array(image: Image.Image) -> Samples:
    samples = np.asarray(image, dtype=np.uint8)
    return samples[..., None] if samples.ndim == 2 else samples


def lower_bytes_of(image: Image.Image, raw_mode: str) -> Samples | None:
    """The lower bytes (H×W×3) of a PNG of 16-bit colours one of which is transparent; None for others, or when it is loaded.

    Pillow keeps the upper bytes only; here its decoder gets the opposite byte order, so that it keeps the lower ones.
    """
    if image.format != "PNG" or raw_mode != "RGB;16B" or "transparency" not in image.info:
        return None
    file = image.fp  # type: ignore[attr-defined]
    start = file.tell()
    file.seek(0)
    with Image.open(file, formats=["PNG"]) as other:
        other.tile = [tile._replace(args="RGB;16L") for tile in other.tile]
        samples = _array(other)
    file.seek(start)
    return samples


def _keyed_alpha(
    pixels: Samples, image: Image.Image, raw_mode: str, lower_bytes: Samples | None = None
) -> Samples | None:
    """Alpha of an image of which one colour is transparent (PNG's tRNS, GIF's transparent index); None when none is."""
    key: Any = image.info.get("transparency")
    if not isinstance(key, (int, tuple)):
        return None
    colour = np.array(key if isinstance(key, tuple) else [key], dtype=np.int64)
    if len(colour) != pixels.shape[2]:
        return None
    if lower_bytes is not None:
        return np.where(((pixels == colour >> 8) & (lower_bytes == colour & 255)).all(axis=-1), 0, 255).astype(np.uint8)
    if ";16" in raw_mode or colour.max() > 255:
        colour >>= 8  # the upper bytes are all that a loaded image has
    colour *= {"L;2": 85, "L;4": 17}.get(raw_mode, 1)  # Pillow spreads the samples to 0 .. 255, but not the key
    return np.where((pixels == colour).all(axis=-1), 0, 255).astype(np.uint8)


def _unwrapped(values: NDArray[Any], image: Image.Image) -> NDArray[Any]:
    """Grey samples as the file has them; Pillow's are signed even where those of a TIFF are not."""
    tags: Any = getattr(image, "tag_v2", {})
    unsigned = tags.get(tiff.BITSPERSAMPLE) == (32,) and tags.get(tiff.SAMPLEFORMAT, (1,)) == (1,)
    return values.view(np.uint32) if values.dtype == np.int32 and unsigned else values


def _has_16_bits(image: Image.Image) -> bool:
    """Whether white is 65535, by the image's mode or by its format; else Pillow's 32 bits hold samples of any range."""
    return image.mode != "I" or image.format == "PPM"


def _from_integers(values: NDArray[Any], sixteen_bits: bool, notices: list[str]) -> Samples:
    """Deep grey samples to 8 bits: 0 .. 65535 by rounding, 0 .. 255 of 32 bits as they are, anything else from its own range."""
    values = values.astype(np.int64)
    smallest, largest = int(values.min()), int(values.max())
    if smallest < 0 or largest > 65535:
        return _spread(values, smallest, largest, 65535, notices)
    if largest <= 255 and not sixteen_bits:
        notices.append("samples of 32 bits, of 0 to 255, taken as 8 bits")
        return values.astype(np.uint8)
    notices.append("16 bits per sample reduced to 8")
    return _scaled(values, 0, 65535)


def _from_floats(values: NDArray[Any], notices: list[str]) -> Samples:
    """Floating point samples to 8 bits: 0 .. 1 by rounding, anything else from its own range. What is infinite is white or black."""
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    smallest, largest = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 1.0)
    if not finite.all():
        notices.append(
            "infinite samples taken as white, negatively infinite ones and those that are no numbers as black"
        )
    filled = np.where(finite, values, smallest)
    if smallest < 0 or largest > 1:
        samples = _spread(filled, smallest, largest, 1, notices)
    else:
        notices.append("floating point samples reduced to 8 bits")
        samples = _scaled(filled, 0, 1)
    samples[~finite] = 0
    samples[np.isposinf(values)] = 255
    return samples


def _spread(values: NDArray[Any], low: float, high: float, white: float, notices: list[str]) -> Samples:
    """Samples that lie from `low` to `high`; a single value has no range, and is white or black as it lies above `white` or below 0."""
    if low == high:
        notices.append(f"samples are {low:g} throughout, taken as {'white' if low > white else 'black'}")
        return np.full(values.shape, 255 if low > white else 0, np.uint8)
    notices.append(f"samples from {low:g} to {high:g} spread over 8 bits")
    return _scaled(values, low, high)


def _scaled(values: NDArray[Any], low: float, high: float) -> Samples:
    return np.floor((values - low) * 255 / (high - low) + 0.5).astype(np.uint8)


def _cmyk_to_rgb(image: Image.Image, notices: list[str]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            converted = None  # a broken profile, or one of another colour space
        if converted is not None:
            notices.append("CMYK converted to RGB through its ICC profile")
            return converted
    notices.append("CMYK converted to RGB without a profile, colours are approximate")
    return image.convert("RGB")
