"""Encode to a file size or to a fidelity instead of a quality: a search over the 201 qualities that a file can name.

The analysis transform does not depend on the quality, so it runs once; each step of the bisection is one pass of the
context model, and for a fidelity one synthesis. Eight steps find the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.bitstream.container import LARGEST_NUMBER, LARGEST_QUALITY_CODE, parse_header
from hpcm_codec.codec import Codec, Encoded
from hpcm_codec.errors import HpcmError
from hpcm_codec.evaluation.metrics import psnr_of_error
from hpcm_codec.images import PixelSource


class TargetError(HpcmError):
    """No quality reaches the target; the message says what is nearest."""


@dataclass(frozen=True)
class Target:
    """kind "bytes": a file of at most `value` bytes, as good as possible; "psnr": at least `value` dB, as small as possible."""

    kind: Literal["bytes", "psnr"]
    value: float


@dataclass(frozen=True)
class Reached:
    """data: the file's bytes; quality: the one that was chosen; psnr: in dB over all samples, None for a size target."""

    data: bytes
    quality: float
    psnr: float | None


def encode_to_target(codec: Codec, picture: PixelSource, target: Target) -> Reached:
    """The best file that meets the target; raises TargetError when none does.

    A size target is met from below (whole file, metadata included), a fidelity target from above. The latents of the whole picture
    are kept, 5 bytes a pixel; for a fidelity also the decoded ones of one try.
    """
    analysed = codec.analyse(picture)
    tried: dict[int, tuple[bytes, float]] = {}

    def measure(code: int) -> float:
        if code not in tried:
            if target.kind == "bytes":
                data = codec.bytes_of_analysed(picture, analysed, code / 2)
                tried[code] = (data, len(data))
            else:
                encoded = codec.encode_analysed(picture, analysed, code / 2)
                tried[code] = (encoded.data, _fidelity(codec, picture, encoded))
        return tried[code][1]

    def result(code: int) -> Reached:
        data, value = tried[code]
        return Reached(data, code / 2, value if target.kind == "psnr" else None)

    if target.kind == "bytes":
        chosen = _last_that(lambda code: measure(code) <= target.value)
        if chosen is None:
            raise TargetError(
                f"cannot be made as small as {target.value:.0f} bytes: at quality 0 it takes {measure(0):.0f}",
                advice="ask for more, make the picture smaller, or leave its metadata out with --strip",
            )
        return result(chosen)
    below = _last_that(lambda code: measure(code) < target.value)
    if below == LARGEST_QUALITY_CODE:
        raise TargetError(
            f"cannot be kept at {target.value:g} dB: quality 100 gives {measure(LARGEST_QUALITY_CODE):.2f} dB",
            advice="ask for less, or use a lossless format",
        )
    chosen = 0 if below is None else below + 1
    measure(chosen)
    return result(chosen)


def _fidelity(codec: Codec, picture: PixelSource, encoded: Encoded) -> float:
    header = parse_header(encoded.data, max_pixels=LARGEST_NUMBER**2)
    return psnr_of_strips(picture, codec.reconstruct_strips(encoded.latents, header))


def psnr_of_strips(picture: PixelSource, strips: Iterable[NDArray[np.uint8]]) -> float:
    """PSNR in dB over all samples, of a decoded picture in strips (uint8 h×W×C) from top to bottom; infinite where nothing differs."""
    squares, top = 0.0, 0
    for strip in strips:
        squares += float(np.square(picture.rows(top, top + len(strip)).astype(np.int32) - strip).sum(dtype=np.float64))
        top += len(strip)
    return psnr_of_error(squares / (picture.height * picture.width * (1 if picture.grey else 3)))


def _last_that(holds: Callable[[int], bool]) -> int | None:
    """The largest quality code for which a condition holds, if it holds from 0 up to there; None if not even for 0."""
    if not holds(0):
        return None
    low, high = 0, LARGEST_QUALITY_CODE + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
