"""What can be measured: anything that turns a Picture into bytes and back.

`hpcm_codec.codec.Codec` is one; `PillowCodec` wraps the ordinary formats behind the same two calls, so that they are
measured by the same code on the same pictures.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import __version__ as pillow_version
from PIL import features

from hpcm_codec.errors import UsageError
from hpcm_codec.images import Picture, picture_to_pil, read_picture


class PictureCodec(Protocol):
    """Picture → bytes of a whole file → Picture."""

    def encode(self, picture: Picture, quality: float) -> bytes: ...

    def decode(self, data: bytes) -> Picture: ...


class _Encoded(Protocol):
    @property
    def data(self) -> bytes: ...

    @property
    def latents(self) -> Any: ...


@runtime_checkable
class VerifiableCodec(Protocol):
    """A codec whose encoder can tell what a decoder must arrive at."""

    def encode_with_latents(self, picture: Picture, quality: float) -> _Encoded: ...

    def reconstruct(self, latents: Any, header: Any) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class PillowFormat:
    """name, feature: as Pillow calls them; settings: of `save`; description: what the results file says about them."""

    name: str
    feature: str
    version_of: str
    settings: dict[str, Any]
    description: str


# The settings of the measured reference curves, each near the best its encoder gives at ordinary speed.
PILLOW_FORMATS = {
    "jpeg": PillowFormat(
        "JPEG",
        "jpg",
        "libjpeg_turbo",
        {"subsampling": "4:2:0", "optimize": True, "progressive": True},
        "libjpeg-turbo, 4:2:0, optimize, progressive",
    ),
    "webp": PillowFormat("WEBP", "webp", "webp", {"method": 6}, "libwebp, method 6"),
    "avif": PillowFormat(
        "AVIF",
        "avif",
        "avif",
        {"speed": 4, "subsampling": "4:4:4", "max_threads": 1},
        "libavif, speed 4, 4:4:4, 8 bit, one thread",
    ),
}
PILLOW_QUALITIES = (5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0)


class PillowCodec:
    """An ordinary image format through Pillow: pixels only, no metadata.

    kind: "jpeg", "webp" or "avif"; quality is the format's own, a whole number from 0 to 100.
    Raises UsageError for another kind, or one that this Pillow was built without.
    """

    def __init__(self, kind: str) -> None:
        if kind not in PILLOW_FORMATS:
            raise UsageError(f"no codec is called {kind!r}", advice=f"use one of hpcm {' '.join(PILLOW_FORMATS)}")
        self.format = PILLOW_FORMATS[kind]
        if not features.check(self.format.feature):
            raise UsageError(f"this Pillow was built without {self.format.name}", advice="install Pillow from PyPI")

    @property
    def description(self) -> str:
        """One line: Pillow's version, the library's, the settings."""
        library = features.version(self.format.version_of)
        return f"Pillow {pillow_version} ({self.format.version_of} {library}): {self.format.description}"

    def check_quality(self, quality: float) -> None:
        """Raises UsageError for a quality that is no whole number from 0 to 100."""
        if quality != int(quality) or not 0 <= quality <= 100:
            raise UsageError(f"{self.format.name} takes whole qualities from 0 to 100, not {quality:g}")

    def encode(self, picture: Picture, quality: float) -> bytes:
        """The picture's pixels as a file's bytes; UsageError for a quality that is no whole number from 0 to 100."""
        self.check_quality(quality)
        image = picture_to_pil(Picture(picture.pixels))
        buffer = io.BytesIO()
        image.save(buffer, self.format.name, quality=int(quality), **self.format.settings)
        return buffer.getvalue()

    def decode(self, data: bytes) -> Picture:
        """The picture of such a file; raises FileError when it is none."""
        return read_picture(data, name=f"the {self.format.name} file")
