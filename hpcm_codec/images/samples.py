"""Samples of any Pillow mode as 8-bit grey or RGB, and alpha."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from hpcm_codec.images.picture import Samples


def samples_of(image: Image.Image, raw_mode: str, notices: list[str]) -> tuple[Samples, Samples | None]:
    """8-bit pixels (H×W×1 or H×W×3) and alpha of a loaded image of any mode."""
    mode = image.mode
    if mode in ("L", "1", "RGB", "RGBX"):
        pixels = _array(image.convert("RGB") if mode == "RGBX" else image.convert("L") if mode == "1" else image)
        return pixels, _keyed_alpha(pixels, image, raw_mode)
    if mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        samples = _array(image.convert({"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}.get(mode, mode)))
        colours = 1 if mode in ("LA", "La") or raw_mode.startswith("LA") else 3  # Pillow spreads 16-bit LA to RGBA
        return samples[..., :colours], samples[..., -1]
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image)
        alpha = None
        key = image.info.get("transparency")
        if isinstance(key, int):
            alpha = np.where(values == key, 0, 255).astype(np.uint8)
        return _reduced(values, notices)[..., None], alpha
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


def _keyed_alpha(pixels: Samples, image: Image.Image, raw_mode: str) -> Samples | None:
    """Alpha of an image of which one colour is transparent (PNG's tRNS, GIF's transparent index); None when none is."""
    key: Any = image.info.get("transparency")
    if not isinstance(key, (int, tuple)):
        return None
    colour = np.array(key if isinstance(key, tuple) else [key], dtype=np.int64)
    if len(colour) != pixels.shape[2]:
        return None
    if ";16" in raw_mode:
        colour >>= 8  # Pillow keeps the upper byte of 16-bit colours
    colour *= {"L;2": 85, "L;4": 17}.get(raw_mode, 1)  # Pillow spreads the samples to 0 .. 255, but not the key
    return np.where((pixels == colour).all(axis=-1), 0, 255).astype(np.uint8)


def _reduced(values: NDArray[Any], notices: list[str]) -> Samples:
    """Deep grey samples to 8 bits: 0 .. 65535 by rounding, 0 .. 1 in floating point likewise, anything else from its own range."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values.astype(np.float64))
        low, high, kind = 0.0, 1.0, "floating point samples"
    else:
        values = values.astype(np.int64)
        low, high, kind = 0.0, 65535.0, "16 bits per sample"
    smallest, largest = float(values.min()), float(values.max())
    if smallest < low or largest > high:
        low, high = smallest, largest
        notices.append(f"samples from {low:g} to {high:g} spread over 8 bits")
    else:
        notices.append(f"{kind} reduced to 8{' bits' if kind.startswith('f') else ''}")
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
