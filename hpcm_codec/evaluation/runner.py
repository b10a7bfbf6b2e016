"""Measure a codec on a data set: real files, really decoded.

Every picture is encoded to the bytes of a whole file, and those bytes are decoded again; nothing is estimated. Metadata and
transparency are removed before encoding, so that all codecs have the same task.

`measure` measures one picture at one quality, `means_of` takes means over pictures, `summarise` puts them into the form of CompressAI's
results files. `campaign` makes many measurements.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hpcm_codec.errors import HpcmError, UsageError
from hpcm_codec.evaluation.codecs import PictureCodec, VerifiableCodec
from hpcm_codec.evaluation.machine import PeakMemory
from hpcm_codec.evaluation.metrics import SMALLEST_SIDE, ms_ssim, ms_ssim_db
from hpcm_codec.evaluation.perceptual import MODULES, measure_perceptual
from hpcm_codec.images import Picture
from hpcm_codec.images.fidelity import psnr

# Digits after the point that are kept: far below the accuracy of any measurement here.
DIGITS = 6


class MismatchError(HpcmError):
    """The decoder's pixels differ from the encoder's reconstruction."""


@dataclass(frozen=True)
class Row:
    """One picture at one quality.

    quality: the codec's own; or, if another codec's file size was the target, the quality of that codec, and `setting` is the own one.
    bytes:   size of the whole file; bpp: its bits per pixel.
    psnr:    in dB, infinite when the pixels are identical.
    ms_ssim: 0 to 1, None for pictures with a side below 161 pixels.
    Times are in seconds of wall clock; memory is the most bytes the process held meanwhile, None where the system
    does not report it.
    ssimulacra2, flip: as `perceptual` measures them, None where they were not measured.
    """

    image: str
    quality: float
    width: int
    height: int
    bytes: int
    bpp: float
    psnr: float
    ms_ssim: float | None
    encoding_time: float
    decoding_time: float
    setting: float | None = None
    encoding_memory: int | None = None
    decoding_memory: int | None = None
    ssimulacra2: float | None = None
    flip: float | None = None


def measure(
    codec: PictureCodec,
    picture: Picture,
    quality: float,
    name: str,
    verify: bool = False,
    perceptual: Sequence[str] = (),
) -> Row:
    """Encode, decode and compare one picture.

    verify:     also check that decoding gave exactly the encoder's own reconstruction.
    perceptual: what else to measure, names of `perceptual.MODULES`.
    Raises MismatchError when it did not, UsageError when the codec does not know; and whatever the codec raises.
    """
    picture = Picture(picture.pixels)
    encoded = None
    memory = PeakMemory()
    start = time.perf_counter()
    if not verify:
        data = codec.encode(picture, quality)
    elif isinstance(codec, VerifiableCodec):
        encoded = codec.encode_with_latents(picture, quality)
        data = encoded.data
    else:
        raise UsageError(
            "this codec's encoder does not know what a decoder must arrive at", advice="leave out --verify"
        )
    encoding_time = time.perf_counter() - start
    encoding_memory = memory.taken()
    start = time.perf_counter()
    decoded = codec.decode(data)
    decoding_time = time.perf_counter() - start
    decoding_memory = memory.taken()
    if isinstance(codec, VerifiableCodec) and encoded is not None:
        promised = codec.reconstruct(encoded.latents, encoded.header)
        if not np.array_equal(promised, decoded.pixels):
            raise MismatchError(f"{name} at quality {quality:g} does not decode to what its encoder reconstructed")
    similarity = ms_ssim(picture.pixels, decoded.pixels)
    perceived = measure_perceptual(perceptual, picture.pixels, decoded.pixels)
    return Row(
        image=name,
        quality=quality,
        width=picture.width,
        height=picture.height,
        bytes=len(data),
        bpp=round(8 * len(data) / (picture.width * picture.height), DIGITS),
        psnr=round(psnr(picture.pixels, decoded.pixels), DIGITS),
        ms_ssim=None if similarity is None else round(similarity, DIGITS),
        encoding_time=round(encoding_time, DIGITS),
        decoding_time=round(decoding_time, DIGITS),
        encoding_memory=encoding_memory,
        decoding_memory=decoding_memory,
        **{measure: round(value, DIGITS) for measure, value in perceived.items()},
    )


@dataclass(frozen=True)
class Means:
    """Means over the pictures at one quality.

    ms_ssim is the mean over the pictures that are large enough for it, None without any; ms_ssim_db is of that mean.
    ssimulacra2, flip: over the pictures that have them, None without any.
    Memory is not a mean but the most that any picture took, in bytes, None where it was not measured.
    """

    quality: float
    bpp: float
    psnr: float
    ms_ssim: float | None
    ms_ssim_db: float | None
    encoding_time: float
    decoding_time: float
    encoding_memory: int | None = None
    decoding_memory: int | None = None
    ssimulacra2: float | None = None
    flip: float | None = None


def means_of(rows: Sequence[Row]) -> list[Means]:
    """The means per quality, by rising quality."""
    result = []
    for quality in sorted({row.quality for row in rows}):
        here = [row for row in rows if row.quality == quality]
        similarity = _mean_of_known([row.ms_ssim for row in here])
        result.append(
            Means(
                quality,
                _mean([row.bpp for row in here]),
                _mean([row.psnr for row in here]),
                similarity,
                None if similarity is None else round(ms_ssim_db(similarity), DIGITS),
                _mean([row.encoding_time for row in here]),
                _mean([row.decoding_time for row in here]),
                max((row.encoding_memory for row in here if row.encoding_memory is not None), default=None),
                max((row.decoding_memory for row in here if row.decoding_memory is not None), default=None),
                _mean_of_known([row.ssimulacra2 for row in here]),
                _mean_of_known([row.flip for row in here]),
            )
        )
    return result


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), DIGITS)


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there; None without any."""
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def perceptual_of(figures: Sequence[Row] | Sequence[Means]) -> list[str]:
    """The perceptual measures of which there is any figure."""
    return [name for name in MODULES if any(getattr(one, name) is not None for one in figures)]


MEMORY = ("encoding_memory", "decoding_memory")


def summarise(name: str, description: str, rows: Sequence[Row], *, memory: bool = False, **more: Any) -> dict[str, Any]:
    """The results object that is written as JSON: CompressAI's keys, then ours.

    memory: with the peaks of memory, which like times differ from run to run.
    more:   further entries ("machine", "checkpoint"…). A figure that is infinite or could not be taken is None.
    """
    means = means_of(rows)
    left_out = {"setting"} if all(row.setting is None for row in rows) else set()
    left_out |= set() if memory else set(MEMORY)
    perceptual = perceptual_of(rows)
    left_out |= set(MODULES) - set(perceptual)
    small = {row.image for row in rows if row.ms_ssim is None}
    if small:
        description += f"; MS-SSIM without {len(small)} pictures with a side below {SMALLEST_SIDE} pixels"
    return {
        "name": name,
        "description": description,
        "results": {
            "bpp": [point.bpp for point in means],
            "psnr-rgb": [_finite(point.psnr) for point in means],
            "ms-ssim-rgb": [point.ms_ssim for point in means],
            "ms-ssim-rgb-db": [_finite(point.ms_ssim_db) for point in means],
            "encoding_time": [point.encoding_time for point in means],
            "decoding_time": [point.decoding_time for point in means],
            **{key: [getattr(point, key) for point in means] for key in (*perceptual, *(MEMORY if memory else ()))},
        },
        "qualities": [point.quality for point in means],
        "images": len({row.image for row in rows}),
        **more,
        "per_image": [
            {key: _finite(value) for key, value in asdict(row).items() if key not in left_out} for row in rows
        ],
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
