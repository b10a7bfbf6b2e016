"""Encode to a file size or to a fidelity instead of a quality: a search over the 201 qualities that a file can have.

The analysis transform does not depend on the quality, so it runs once; each step of the bisection is one pass of the
context model, and for a fidelity one synthesis. Eight steps are enough.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpcm_codec.bitstream.quality import quality_code, quality_of
from hpcm_codec.constants import DEFAULT_QUALITY, LARGEST_QUALITY_CODE
from hpcm_codec.errors import HpcmError

if TYPE_CHECKING:
    from hpcm_codec.codec import Codec, Encoded
    from hpcm_codec.images import PixelSource

ALL_CODES = range(LARGEST_QUALITY_CODE + 1)


class TargetError(HpcmError):
    """No quality reaches the target; the message names the nearest result."""


@dataclass(frozen=True)
class Target:
    """What a file has to reach. kind "quality": that quality (0 .. 100); "bytes": the best of at most so many bytes; "bpp": the best of at
    most so many bits a pixel; "psnr": the smallest of at least so many dB."""

    kind: Literal["quality", "bytes", "bpp", "psnr"] = "quality"
    value: float = DEFAULT_QUALITY

    @property
    def stored_quality(self) -> float | None:
        """The quality, in the half steps that files store; None if another quantity is asked for."""
        return quality_of(quality_code(self.value)) if self.kind == "quality" else None

    @property
    def kept_latents(self) -> int:
        """How often the encoder keeps the latents of the whole picture."""
        return {"quality": 0, "bytes": 1, "bpp": 1, "psnr": 2}[self.kind]

    def most_bytes(self, pixels: int) -> float | None:
        """The limit of a picture's file in bytes; None without one."""
        return {"bytes": self.value, "bpp": self.value * pixels / 8}.get(self.kind)


@dataclass(frozen=True)
class Reached:
    """data: the file's bytes; quality: the one that was chosen; psnr: in dB over all samples, None for a size target."""

    data: bytes
    quality: float
    psnr: float | None


def encode_to_target(codec: Codec, picture: PixelSource, target: Target) -> Reached:
    """The best file that meets the target; raises TargetError when none does.

    The file has at most the requested size, metadata included, or at least the requested PSNR. The latents of the whole
    picture are kept in memory, 5 bytes a pixel; for a PSNR also the decoded ones of one try.
    """
    if (quality := target.stored_quality) is not None:
        return Reached(codec.encode(picture, quality), quality, None)
    analysed = codec.analyse(picture)
    limit = target.most_bytes(picture.width * picture.height)
    tried: dict[int, tuple[bytes, float]] = {}

    def measure(code: int) -> float:
        """The file's bytes, or its PSNR."""
        if code not in tried:
            if limit is not None:
                data = codec.bytes_of_analysed(picture, analysed, quality_of(code))
                tried[code] = (data, len(data))
            else:
                encoded = codec.encode_analysed(picture, analysed, quality_of(code))
                tried[code] = (encoded.data, _fidelity(codec, picture, encoded))
        return tried[code][1]

    if limit is not None:
        chosen = bisect_right(ALL_CODES, limit, key=measure) - 1
        if chosen < 0:
            raise TargetError(
                f"cannot be made as small as {limit:.0f} bytes: at quality 0 it takes {measure(0):.0f}",
                advice="ask for more, make the picture smaller, or leave its metadata out with --strip",
            )
        return Reached(tried[chosen][0], quality_of(chosen), None)
    chosen = bisect_left(ALL_CODES, target.value, key=measure)
    if chosen == len(ALL_CODES):
        raise TargetError(
            f"cannot be kept at {target.value:g} dB: quality 100 gives {measure(LARGEST_QUALITY_CODE):.2f} dB",
            advice="ask for less, or use a lossless format",
        )
    return Reached(tried[chosen][0], quality_of(chosen), tried[chosen][1])


def _fidelity(codec: Codec, picture: PixelSource, encoded: Encoded) -> float:
    from hpcm_codec.images.fidelity import psnr_of_strips

    return psnr_of_strips(picture, codec.reconstruct_strips(encoded.latents, encoded.header))
