"""One picture in several versions for looking at: the original, ours, and the other codecs at the same file size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcm_codec.errors import UsageError
from hpcm_codec.evaluation.codecs import HPCM, encode_to_size
from hpcm_codec.evaluation.metrics import ms_ssim
from hpcm_codec.evaluation.perceptual import FLIP, SSIMULACRA2, TITLES, measure_perceptual
from hpcm_codec.evaluation.subjects import Subject
from hpcm_codec.images import Picture, Samples, picture_to_pil
from hpcm_codec.images.fidelity import psnr
from hpcm_codec.targets import Target, encode_to_target

ORIGINAL = "Original"
WEBP_LARGEST_SIDE = 16383  # pixels


@dataclass(frozen=True)
class Version:
    """name: the codec's; quality: its own. pixels: uint8 H×W×C, decoded. The original has neither size nor figures."""

    name: str
    pixels: Samples
    quality: float | None = None
    bytes: int | None = None
    psnr: float | None = None
    ms_ssim: float | None = None
    short: bool = False
    ssimulacra2: float | None = None
    flip: float | None = None

    @property
    def bpp(self) -> float | None:
        """Bits per pixel of the whole file."""
        return None if self.bytes is None else 8 * self.bytes / (self.pixels.shape[0] * self.pixels.shape[1])

    def in_words(self) -> str:
        """One line: size and figures."""
        if self.bytes is None or self.psnr is None:
            height, width = self.pixels.shape[:2]
            return f"{width}×{height} pixels"
        parts = [f"{self.bytes:,} bytes", f"{self.bpp:.3f} bpp", f"{self.psnr:.2f} dB"]
        if self.ms_ssim is not None:
            parts.append(f"MS-SSIM {self.ms_ssim:.4f}")
        for measure, digits in ((SSIMULACRA2, 1), (FLIP, 4)):
            if (value := getattr(self, measure)) is not None:
                parts.append(f"{TITLES[measure]} {value:.{digits}f}")
        parts.append(f"quality {self.quality:g}")
        return ", ".join(parts) + (" (its largest file)" if self.short else "")


@dataclass(frozen=True)
class Slider:
    """A picture's versions, the original first. name: the picture's."""

    name: str
    versions: tuple[Version, ...]

    def for_page(self) -> dict[str, Any]:
        """The data for the page's script, with the exact pixels of every version."""
        height, width = self.versions[0].pixels.shape[:2]
        return {
            "name": self.name,
            "width": int(width),
            "height": int(height),
            "versions": [
                {"name": version.name, "detail": version.in_words(), "src": data_address(version.pixels)}
                for version in self.versions
            ],
        }


def versions_of(
    name: str, picture: Picture, subjects: Sequence[Subject], target: Target, perceptual: Sequence[str] = ()
) -> Slider:
    """Encode and decode the picture: the first codec meets the target, the others the first one's file size.

    A codec that cannot make a file of that size is shown with the nearest one. Metadata and alpha are left out.
    perceptual: what is measured beside PSNR and MS-SSIM (see `perceptual`).
    Raises UsageError for a target that the first codec cannot be given, TargetError for one out of its reach.
    """
    picture = Picture(picture.pixels)
    versions = [Version(ORIGINAL, picture.pixels)]
    size = None
    for subject in subjects:
        if size is None:
            quality, data, short = _meeting(subject, picture, target)
            size = len(data)
        else:
            match = encode_to_size(subject.codec, picture, size)
            quality, data, short = match.quality, match.data, match.short
        pixels = subject.codec.decode(data).pixels
        figures = (psnr(picture.pixels, pixels), ms_ssim(picture.pixels, pixels))
        perceived = measure_perceptual(perceptual, picture.pixels, pixels)
        versions.append(Version(subject.name, pixels, quality, len(data), *figures, short, **perceived))
    return Slider(name, tuple(versions))


def _meeting(subject: Subject, picture: Picture, target: Target) -> tuple[float, bytes, bool]:
    """(quality, file, whether it stays below the size asked for)."""
    if subject.choice.kind == HPCM:
        from hpcm_codec.codec import Codec

        assert isinstance(subject.codec, Codec)
        reached = encode_to_target(subject.codec, picture, target)
        return reached.quality, reached.data, False
    if target.kind == "quality":
        return target.value, subject.codec.encode(picture, target.value), False
    limit = target.most_bytes(picture.width * picture.height)
    if limit is None:
        raise UsageError(f"a PSNR can be asked of hpcm, not of {subject.name}", advice="name hpcm first in --codec")
    match = encode_to_size(subject.codec, picture, int(limit))
    return match.quality, match.data, match.short


def data_address(pixels: Samples) -> str:
    """A `data:` address with exactly these pixels (uint8 H×W×1 or H×W×3): lossless WebP, or PNG where that is too large."""
    image = picture_to_pil(Picture(pixels))
    buffer = io.BytesIO()
    if max(image.size) <= WEBP_LARGEST_SIDE:
        kind, colours = "webp", image.convert("RGB") if image.mode != "RGB" else image
        colours.save(buffer, "WEBP", lossless=True, quality=50, method=3)
    else:
        kind = "png"
        image.save(buffer, "PNG", compress_level=6)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
