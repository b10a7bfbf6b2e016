"""Codecs that can be measured: anything that turns a Picture into bytes and back.

`hpcm_codec.codec.Codec` is one; `PillowCodec` wraps the ordinary formats behind the same two calls, so that they are
measured by the same code on the same pictures. `CodecChoice` names one of them in a form that can be sent to another
process.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features
from PIL import __version__ as pillow_version

from hpcm_codec.constants import HIGHEST_QUALITY
from hpcm_codec.errors import FileError, UsageError
from hpcm_codec.images import Picture, picture_from_pil, picture_to_pil

HPCM = "hpcm"


class PictureCodec(Protocol):
    """Picture → bytes of a whole file → Picture."""

    def encode(self, picture: Picture, quality: float) -> bytes: ...

    def decode(self, data: bytes) -> Picture: ...


class QualityCodec(PictureCodec, Protocol):
    """A codec that says which qualities it has."""

    @property
    def qualities(self) -> Sequence[float]:
        """Those that give files of their own, rising."""

    def at(self, quality: float) -> QualityCodec:
        """The codec, with all that it needs for a quality loaded."""


class _Encoded(Protocol):
    @property
    def data(self) -> bytes: ...

    @property
    def header(self) -> Any: ...

    @property
    def latents(self) -> Any: ...


@runtime_checkable
class VerifiableCodec(Protocol):
    """A codec whose encoder computes the picture that a decoder must produce."""

    def encode_with_latents(self, picture: Picture, quality: float) -> _Encoded: ...

    def reconstruct(self, latents: Any, header: Any) -> NDArray[np.uint8]: ...


class MissingCodecError(UsageError):
    """A codec that exists but is not installed here; the advice says how to install it."""


@dataclass(frozen=True)
class PillowFormat:
    """An ordinary format.

    name:        in Pillow's `save`; title: for people.
    settings:    of `save`, besides those that `options` makes of a quality.
    description: what the results file says about them.
    feature, version_of: as `PIL.features` calls the format and its library; None for a plug-in.
    package, module: of a plug-in, to install and to import.
    """

    name: str
    title: str
    settings: dict[str, Any]
    description: str
    feature: str | None = None
    version_of: str = ""
    package: str = ""
    module: str = ""
    options: Callable[[int], dict[str, Any]] = lambda quality: {"quality": quality}


def jpeg2000_rate(quality: int) -> float:
    """Bits per pixel for a quality, since JPEG 2000 takes a rate: 0.05 at quality 0, doubled every 15.

    >>> [jpeg2000_rate(quality) for quality in (0, 15, 60)]
    [0.05, 0.1, 0.8]
    """
    return 0.05 * 2 ** (quality / 15)


# The settings of the measured reference curves, each near the best its encoder gives at ordinary speed.
PILLOW_FORMATS = {
    "jpeg": PillowFormat(
        "JPEG",
        "JPEG",
        {"subsampling": "4:2:0", "optimize": True, "progressive": True},
        "libjpeg-turbo, 4:2:0, optimize, progressive",
        "jpg",
        "libjpeg_turbo",
    ),
    "webp": PillowFormat("WEBP", "WebP", {"method": 6}, "libwebp, method 6", "webp", "webp"),
    "avif": PillowFormat(
        "AVIF",
        "AVIF",
        {"speed": 4, "subsampling": "4:4:4", "max_threads": 1},
        "libavif, speed 4, 4:4:4, 8 bit, one thread",
        "avif",
        "avif",
    ),
    "jpeg2000": PillowFormat(
        "JPEG2000",
        "JPEG 2000",
        {"quality_mode": "rates", "irreversible": True, "mct": 1, "no_jp2": True},
        "OpenJPEG, 9/7 irreversible, rate mode (0.05·2^(quality/15) bpp), raw codestream",
        "jpg_2000",
        "jpg_2000",
        # Pillow takes a compression ratio, against 8 bits for each of 3 samples.
        options=lambda quality: {"quality_layers": [24 / jpeg2000_rate(quality)]},
    ),
    "jxl": PillowFormat(
        "JXL",
        "JPEG XL",
        {"effort": 7, "num_threads": 1},
        "libjxl, lossy VarDCT, effort 7, one thread",
        package="pillow-jxl-plugin",
        module="pillow_jxl",
    ),
    "heic": PillowFormat(
        "HEIF",
        "HEIC",
        {"chroma": "444"},
        "libheif, x265, 4:4:4, 8 bit",
        package="pillow-heif",
        module="pillow_heif",
    ),
}
PILLOW_QUALITIES = (5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0)


def installed_formats() -> list[str]:
    """The kinds in PILLOW_FORMATS that work here."""
    found = []
    for kind in PILLOW_FORMATS:
        try:
            PillowCodec(kind)
        except MissingCodecError:
            continue
        found.append(kind)
    return found


class PillowCodec:
    """An ordinary image format through Pillow: pixels only, no metadata.

    kind: one of PILLOW_FORMATS; quality is the format's own, a whole number from 0 to 100.
    Raises UsageError for another kind, MissingCodecError for one that is not installed.
    """

    def __init__(self, kind: str) -> None:
        if kind not in PILLOW_FORMATS:
            raise UsageError(f"no codec is called {kind!r}", advice=f"use one of {HPCM} {' '.join(PILLOW_FORMATS)}")
        self.format = PILLOW_FORMATS[kind]
        if self.format.feature is None:
            _load_plugin(self.format)
        elif not features.check(self.format.feature):
            raise MissingCodecError(
                f"this Pillow was built without {self.format.title}", advice="pip install --force-reinstall pillow"
            )

    @property
    def description(self) -> str:
        """One line: Pillow's version, the library's, the settings."""
        if self.format.feature is None:
            library = f"{self.format.package} {importlib.metadata.version(self.format.package)}"
        else:
            library = f"{self.format.version_of} {features.version(self.format.version_of)}"
        return f"Pillow {pillow_version} ({library}): {self.format.description}"

    @property
    def qualities(self) -> Sequence[float]:
        """Every quality, rising."""
        return [float(quality) for quality in range(round(HIGHEST_QUALITY) + 1)]

    def at(self, quality: float) -> PillowCodec:
        """The codec itself."""
        return self

    def check_quality(self, quality: float) -> None:
        """Raises UsageError for a quality that is no whole number from 0 to 100."""
        if quality != int(quality) or not 0 <= quality <= HIGHEST_QUALITY:
            raise UsageError(f"{self.format.title} takes whole qualities from 0 to 100, not {quality:g}")

    def encode(self, picture: Picture, quality: float) -> bytes:
        """The picture's pixels as a file's bytes; UsageError for a quality that is no whole number from 0 to 100."""
        self.check_quality(quality)
        image = picture_to_pil(Picture(picture.pixels))
        buffer = io.BytesIO()
        image.save(buffer, self.format.name, **self.format.options(int(quality)), **self.format.settings)
        return buffer.getvalue()

    def decode(self, data: bytes) -> Picture:
        """The picture of such a file; raises FileError for other files."""
        try:
            with Image.open(io.BytesIO(data), formats=[self.format.name]) as image:
                return picture_from_pil(image)
        except (OSError, SyntaxError) as error:
            raise FileError("cannot be decoded again", file=f"the {self.format.title} file") from error


def _load_plugin(wanted: PillowFormat) -> None:
    try:
        module = importlib.import_module(wanted.module)
    except ImportError as error:
        raise MissingCodecError(
            f"{wanted.title} needs the package {wanted.package}, which is not installed",
            advice=f"pip install {wanted.package}",
        ) from error
    if wanted.name == "HEIF":
        module.register_heif_opener()


@dataclass(frozen=True)
class CodecChoice:
    """A codec by name, with what it takes to load it. model, device, profile: for "hpcm" only."""

    kind: str
    model: str = ""
    device: str = "cpu"
    profile: str = "auto"

    def load(self) -> QualityCodec:
        """The codec; raises UsageError for an unknown kind, MissingCodecError, or what loading a model raises."""
        if self.kind != HPCM:
            return PillowCodec(self.kind)
        from hpcm_codec.codec import load_codec

        return load_codec(self.model, self.device, self.profile)


@dataclass(frozen=True)
class Matched:
    """quality: the codec's own; data: the file it gives; short: no quality gives as many bytes as asked for."""

    quality: float
    data: bytes
    short: bool


def encode_to_size(codec: QualityCodec, picture: Picture, size: int) -> Matched:
    """The smallest file of at least `size` bytes, or else the largest possible: a difference in size favours this codec.

    Of the codec's qualities; files are taken to grow with them.
    """
    qualities = codec.qualities

    @cache
    def encoded(quality: float) -> bytes:
        return codec.encode(picture, quality)

    # the last one is used if no other is large enough
    chosen = qualities[bisect_left(qualities, size, hi=len(qualities) - 1, key=lambda quality: len(encoded(quality)))]
    data = encoded(chosen)
    return Matched(chosen, data, len(data) < size)
