"""Pictures of other sizes, by Pillow's Lanczos filter on the samples as they are: not in linear light, as most programs do it.

Transparent pixels do not colour their neighbours: Pillow multiplies colours by alpha before it filters them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from hpcm_codec.errors import UsageError
from hpcm_codec.images.metadata import exif_of_size, xmp_of_size
from hpcm_codec.images.picture import STRIP_ROWS, Picture, PixelSource, Samples, StripPicture

LARGEST_SIDE = 2**20
# The finest scale is needed for thumbnails too, but for the smallest: of four Kodak pictures shrunk 64 times, those of scale s2 differ from
# those of all scales by 36 dB (at least 34), shrunk 32 times by 31 dB only; those of s1 by 26 dB.
SHRUNK_FOR_S2 = 64
_SHRUNK_AT_MOST = 32  # by whole numbers, before the filter
_FILTER = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class Resizing:
    """What a picture's size is to become. width, height: in pixels, None follows the other; percent of both sides; max_edge: of the longer
    side at most. One of these three ways."""

    width: int | None = None
    height: int | None = None
    percent: float | None = None
    max_edge: int | None = None

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The new width and height of a picture of this size."""
        if self.max_edge is not None:
            return fitted(width, height, self.max_edge)
        if self.percent is not None:
            return _rounded(width * self.percent / 100), _rounded(height * self.percent / 100)
        new_width = self.width if self.width is not None else _rounded(width * (self.height or height) / height)
        return new_width, self.height if self.height is not None else _rounded(height * new_width / width)


def parse_resizing(text: str) -> Resizing:
    """The resizing of "640x480", "640x", "x480" or "50%"; raises UsageError.

    >>> parse_resizing("640x").size(1000, 500), parse_resizing("12.5%").size(1000, 500)
    ((640, 320), (125, 63))
    """
    text = text.strip()
    if match := re.fullmatch(r"(\d{0,7})\s*[xX×]\s*(\d{0,7})", text, re.ASCII):
        sides = [int(side) if side else None for side in match.groups()]
        if sides != [None, None] and all(side is None or 1 <= side <= LARGEST_SIDE for side in sides):
            return Resizing(*sides)
    elif (match := re.fullmatch(r"(\d{1,4}(?:\.\d{1,6})?)\s*%", text, re.ASCII)) and float(match[1]) > 0:
        return Resizing(percent=float(match[1]))
    raise UsageError(f"--resize takes 640x480, 640x, x480 or 50%, not {text!r}")


def fitted(width: int, height: int, max_edge: int) -> tuple[int, int]:
    """The size of a picture whose longer side has at most so many pixels; never more than it has."""
    longest = max(width, height)
    if longest <= max_edge:
        return width, height
    return _rounded(width * max_edge / longest), _rounded(height * max_edge / longest)


def resized(source: PixelSource, size: tuple[int, int]) -> Picture:
    """A picture of that width and height, with its metadata, in which the sizes of EXIF and XMP are those of now."""
    tops = range(0, source.height, STRIP_ROWS)
    strips = (source.rows(top, min(source.height, top + STRIP_ROWS)) for top in tops)
    picture = StripPicture(source.width, source.height, source.grey, strips)
    return _resized(picture, source.alpha, source, size)


def thumbnail(picture: StripPicture, max_edge: int) -> Picture | StripPicture:
    """A decoded picture whose longer side has at most so many pixels; takes the strips."""
    size = fitted(picture.width, picture.height, max_edge)
    return picture if size == (picture.width, picture.height) else _resized(picture, picture.alpha, picture, size)


def scale_for(shrunk: float, scales: tuple[str, ...]) -> str:
    """The finest of the scales that a picture needs which is shrunk so many times."""
    return scales[-2] if shrunk >= SHRUNK_FOR_S2 else scales[-1]


def _resized(
    pixels: StripPicture, alpha: Samples | None, about: PixelSource | StripPicture, size: tuple[int, int]
) -> Picture:
    """about: what has the metadata."""
    image = _image(pixels, alpha, size).resize(size, _FILTER)
    samples = np.asarray(image)
    samples = samples[..., None] if samples.ndim == 2 else samples
    exif = None if about.exif is None else exif_of_size(about.exif, *size)
    xmp = None if about.xmp is None else xmp_of_size(about.xmp, *size)
    colours = np.require(samples[..., : 1 if pixels.grey else 3], requirements=["C", "W"])
    new_alpha = None if alpha is None else np.require(samples[..., -1], requirements=["C", "W"])
    return Picture(colours, new_alpha, about.icc, exif, xmp, about.notices, replace(about.extras))


def _image(pixels: StripPicture, alpha: Samples | None, size: tuple[int, int]) -> Image.Image:
    """The picture, or, so that it is not held whole, one shrunk by a whole number, at least twice as large as what is wanted."""
    factor = 1
    shrunk = min(pixels.width / size[0], pixels.height / size[1])
    while alpha is None and factor < _SHRUNK_AT_MOST and shrunk >= 4 * factor:
        factor *= 2
    whole: Image.Image | None = None
    top = 0
    mode = ("L" if pixels.grey else "RGB") + ("" if alpha is None else "A")
    whole = Image.new(mode, (-(-pixels.width // factor), -(-pixels.height // factor)))
    waiting: list[Samples] = []
    for strip in pixels.strips:
        waiting.append(strip)
        rows = np.concatenate(waiting) if len(waiting) > 1 else strip
        last = top + len(rows) == pixels.height
        used = len(rows) if last else len(rows) - len(rows) % factor
        if used:
            part = rows[:used] if alpha is None else np.dstack([rows[:used], alpha[top : top + used]])
            reduced = Image.fromarray(part[..., 0] if part.shape[2] == 1 else part).reduce(factor)
            whole.paste(reduced, (0, top // factor))
        top += used
        waiting = [rows[used:].copy()] if used < len(rows) else []
    return whole


def _rounded(side: float) -> int:
    return max(1, int(side + 0.5))
