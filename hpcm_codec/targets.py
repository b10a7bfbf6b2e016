"""Encode to a file size or to a fidelity instead of a quality: a search over the qualities that give different files.

In a model of 201 qualities the analysis transform does not depend on the quality, so it runs once; each step of the bisection is one pass
of the context model, and for a fidelity one synthesis. Eight steps are enough. A family of n models has n qualities, and each step that
tries another of them loads it and analyses the picture with it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpcm_codec.constants import DEFAULT_QUALITY
from hpcm_codec.errors import HpcmError

if TYPE_CHECKING:
    from hpcm_codec.codec import Codec, Encoded
    from hpcm_codec.engines.interface import Latents
    from hpcm_codec.images import PixelSource


class TargetError(HpcmError):
    """No quality reaches the target; the message names the nearest result."""


@dataclass(frozen=True)
class Target:
    """What a file has to reach. kind "quality": that quality (0 .. 100); "bytes": the best of at most so many bytes; "bpp": the best of at
    most so many bits a pixel; "psnr": the smallest of at least so many dB."""

    kind: Literal["quality", "bytes", "bpp", "psnr"] = "quality"
    value: float = DEFAULT_QUALITY

    def stored_quality(self, codec: Codec) -> float | None:
        """The quality that files of a codec store; None if another quantity is asked for."""
        return codec.nearest_quality(self.value) if self.kind == "quality" else None

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
    if (stored := target.stored_quality(codec)) is not None:
        return Reached(codec.encode(picture, stored), stored, None)
    qualities = codec.qualities
    analyses = _Analyses(codec, picture)
    limit = target.most_bytes(picture.width * picture.height)
    tried: dict[float, tuple[bytes, float]] = {}

    def measure(quality: float) -> float:
        """The file's bytes, or its PSNR."""
        if quality not in tried:
            member, analysed = analyses.at(quality)
            if limit is not None:
                data = member.bytes_of_analysed(picture, analysed, quality)
                tried[quality] = (data, len(data))
            else:
                encoded = member.encode_analysed(picture, analysed, quality)
                tried[quality] = (encoded.data, _fidelity(member, picture, encoded))
        return tried[quality][1]

    if limit is not None:
        chosen = bisect_right(qualities, limit, key=measure) - 1
        if chosen < 0:
            raise TargetError(
                f"cannot be made as small as {limit:.0f} bytes: at quality {qualities[0]:g} it takes {measure(qualities[0]):.0f}",
                advice="ask for more, make the picture smaller, or leave its metadata out with --strip",
            )
        return Reached(tried[qualities[chosen]][0], qualities[chosen], None)
    chosen = bisect_left(qualities, target.value, key=measure)
    if chosen == len(qualities):
        raise TargetError(
            f"cannot be kept at {target.value:g} dB: quality {qualities[-1]:g} gives {measure(qualities[-1]):.2f} dB",
            advice="ask for less, or use a lossless format",
        )
    data, fidelity = tried[qualities[chosen]]
    return Reached(data, qualities[chosen], fidelity)


class _Analyses:
    """The analysis of a picture by the model of the last quality; made again when a quality is of another model."""

    def __init__(self, codec: Codec, picture: PixelSource) -> None:
        self._codec, self._picture = codec, picture
        self._last: tuple[Codec, Latents] | None = None

    def at(self, quality: float) -> tuple[Codec, Latents]:
        """The model that encodes at a quality, loaded, and its latents before rounding."""
        if self._last is None or self._last[0].identity != self._codec.identity_at(quality):
            self._last = None  # a model's memory is free before the next is loaded
            member = self._codec.at(quality)
            self._last = member, member.analyse(self._picture)
        return self._last


def _fidelity(codec: Codec, picture: PixelSource, encoded: Encoded) -> float:
    from hpcm_codec.images.fidelity import psnr_of_strips

    return psnr_of_strips(picture, codec.reconstruct_strips(encoded.latents, encoded.header))
