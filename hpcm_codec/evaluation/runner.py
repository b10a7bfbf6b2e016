"""Measure a codec on a data set: real files, really decoded.

Every picture is encoded to the bytes of a whole file and those bytes are decoded again; nothing is estimated. Only
the colour samples take part: metadata and transparency are left out before encoding, so that all codecs are asked for
the same. `measure` is one picture at one quality, `evaluate` all of them, `summarise` puts their means into the form
of CompressAI's results files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hpcm_codec.container import parse_header
from hpcm_codec.errors import HpcmError, UsageError
from hpcm_codec.evaluation.codecs import PictureCodec, VerifiableCodec
from hpcm_codec.evaluation.datasets import DataSet
from hpcm_codec.evaluation.metrics import SMALLEST_SIDE, ms_ssim, ms_ssim_db, psnr
from hpcm_codec.images import Picture, read_picture

# Digits after the point that are kept: far below what any measurement here can tell apart.
DIGITS = 6


class MismatchError(HpcmError):
    """The decoder arrived at other pixels than the encoder said it would."""


@dataclass(frozen=True)
class Row:
    """One picture at one quality.

    bytes:   size of the whole file; bpp: its bits per pixel.
    psnr:    in dB, infinite when nothing was lost.
    ms_ssim: 0 to 1, None for pictures with a side below 161 pixels.
    Times are in seconds of wall clock.
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


def measure(codec: PictureCodec, picture: Picture, quality: float, name: str, verify: bool = False) -> Row:
    """Encode, decode and compare one picture.

    verify: also check that decoding gave exactly the encoder's own reconstruction.
    Raises MismatchError when it did not, UsageError when the codec cannot tell; and whatever the codec raises.
    """
    picture = Picture(picture.pixels)
    latents = None
    start = time.perf_counter()
    if not verify:
        data = codec.encode(picture, quality)
    elif isinstance(codec, VerifiableCodec):
        encoded = codec.encode_with_latents(picture, quality)
        data, latents = encoded.data, encoded.latents
    else:
        raise UsageError("this codec's encoder cannot tell what a decoder must arrive at", advice="leave out --verify")
    encoded_at = time.perf_counter()
    decoded = codec.decode(data)
    decoded_at = time.perf_counter()
    if isinstance(codec, VerifiableCodec) and latents is not None:
        promised = codec.reconstruct(latents, parse_header(data))
        if not np.array_equal(promised, decoded.pixels):
            raise MismatchError(f"{name} at quality {quality:g} does not decode to what its encoder reconstructed")
    similarity = ms_ssim(picture.pixels, decoded.pixels)
    return Row(
        image=name,
        quality=quality,
        width=picture.width,
        height=picture.height,
        bytes=len(data),
        bpp=round(8 * len(data) / (picture.width * picture.height), DIGITS),
        psnr=round(psnr(picture.pixels, decoded.pixels), DIGITS),
        ms_ssim=None if similarity is None else round(similarity, DIGITS),
        encoding_time=round(encoded_at - start, DIGITS),
        decoding_time=round(decoded_at - encoded_at, DIGITS),
    )


def evaluate(
    codec: PictureCodec,
    dataset: DataSet,
    qualities: Sequence[float],
    *,
    verify: bool = False,
    warm_up: bool = True,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure every picture at every quality: all qualities of the first picture, then of the next.

    warm_up: code the first picture once beforehand, so that the first row's times are like the others'.
    on_row:  called with each row as it is made.
    Raises FileError for a picture that cannot be read; see `measure`.
    """
    rows = []
    for row in _rows(codec, dataset, qualities, verify, warm_up):
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return rows


def _rows(
    codec: PictureCodec, dataset: DataSet, qualities: Sequence[float], verify: bool, warm_up: bool
) -> Iterator[Row]:
    for name in dataset.names:
        picture = read_picture(dataset.path(name))
        if warm_up:
            codec.decode(codec.encode(Picture(picture.pixels), qualities[0]))
            warm_up = False
        for quality in qualities:
            try:
                yield measure(codec, picture, quality, name, verify)
            except MismatchError:
                raise
            except HpcmError as error:
                raise error.in_file(dataset.path(name)) from error.__cause__


@dataclass(frozen=True)
class Means:
    """Means over the pictures at one quality.

    ms_ssim is the mean over the pictures that are large enough for it, None without any; ms_ssim_db is of that mean.
    """

    quality: float
    bpp: float
    psnr: float
    ms_ssim: float | None
    ms_ssim_db: float | None
    encoding_time: float
    decoding_time: float


def means_of(rows: Sequence[Row]) -> list[Means]:
    """The means per quality, by rising quality."""
    result = []
    for quality in sorted({row.quality for row in rows}):
        here = [row for row in rows if row.quality == quality]
        similarities = [row.ms_ssim for row in here if row.ms_ssim is not None]
        similarity = _mean(similarities) if similarities else None
        result.append(
            Means(
                quality,
                _mean([row.bpp for row in here]),
                _mean([row.psnr for row in here]),
                similarity,
                None if similarity is None else round(ms_ssim_db(similarity), DIGITS),
                _mean([row.encoding_time for row in here]),
                _mean([row.decoding_time for row in here]),
            )
        )
    return result


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), DIGITS)


def summarise(name: str, description: str, rows: Sequence[Row], **more: Any) -> dict[str, Any]:
    """The results object that is written as JSON: CompressAI's keys, then ours.

    more: further entries ("machine", "checkpoint"…). A figure that is infinite or could not be taken is None.
    """
    means = means_of(rows)
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
        },
        "qualities": [point.quality for point in means],
        "images": len({row.image for row in rows}),
        **more,
        "per_image": [{key: _finite(value) for key, value in asdict(row).items()} for row in rows],
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
