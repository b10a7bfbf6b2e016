"""Pillow reads and writes .hpcm once this module is imported.

>>> import io
>>> import hpcm_codec.pillow
>>> from PIL import Image
>>> file = io.BytesIO()  # or a path that ends in .hpcm
>>> Image.new("RGB", (60, 40), "teal").save(file, "HPCM", quality=70)
>>> image = Image.open(file)
>>> image.size, image.mode, image.info["quality"]  # nothing is decoded yet
((60, 40), 'RGB', 70.0)
>>> image.getpixel((30, 20))[0] < 40
True

`open` reads only the header and the metadata, and runs no model: size, mode and `info` (quality, icc_profile, exif, xmp; dpi, comment
and photoshop too, where the file has them) are known at once. Pixels are decoded when they are first needed; `verify` decodes them and
checks every byte. `save` takes quality (0 to 100), model, icc_profile, exif and xmp; the picture is turned upright as its EXIF says. Files
that are damaged or no .hpcm files raise HpcmError with the reason. If the header or the metadata are damaged, `open` does so; this error is
also an UnidentifiedImageError, and so an OSError. With `ImageFile.LOAD_TRUNCATED_IMAGES` the undamaged part of a file is decoded.
"""

from __future__ import annotations

import os
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from hpcm_codec import arguments
from hpcm_codec.bitstream import container
from hpcm_codec.errors import CorruptStreamError, CutShortError, HpcmError, UnsupportedError, UsageError
from hpcm_codec.extensions import extras_in
from hpcm_codec.images import EXIF_PREFIX, picture_from_pil, picture_to_pil
from hpcm_codec.images.colour import other_space
from hpcm_codec.images.extras import info_of

FORMAT = "HPCM"
EXTENSION = ".hpcm"
MEDIA_TYPE = "image/x-hpcm"
FIRST_READ = 1 << 14  # bytes; headers without large metadata or transparency are far smaller


class DamagedImageError(CorruptStreamError, UnidentifiedImageError):
    """A CorruptStreamError as programs expect it of Pillow, whose errors about files are OSErrors."""


class UnsupportedImageError(UnsupportedError, UnidentifiedImageError):
    """An UnsupportedError as programs expect it of Pillow."""


class ClosedImageError(UsageError, ValueError):
    """Pixels were requested of an image whose file was closed before they were read. A ValueError, as Pillow raises."""


class HpcmImageFile(ImageFile.ImageFile):
    """A .hpcm file as a Pillow image of mode L, LA, RGB or RGBA."""

    format = FORMAT
    format_description = "HPCM learned image"
    _decoded = False

    def _open(self) -> None:
        assert self.fp is not None
        try:
            header, extensions = _opening_of(self.fp)
        except HpcmError as error:
            raise self._as_pillows(error) from error.__cause__
        self._size = (header.width, header.height)
        self._mode = ("L" if header.grey else "RGB") + ("A" if container.ALPHA in extensions else "")
        exif = extensions.get(container.EXIF)
        self.info = {
            "quality": header.quality,
            "icc_profile": extensions.get(container.ICC),
            "exif": None if exif is None else EXIF_PREFIX + exif,
            "xmp": extensions.get(container.XMP),
            **info_of(extras_in(extensions)[0]),
        }
        self.info = {key: value for key, value in self.info.items() if value is not None}
        self.tile = []

    def load(self) -> Any:
        """Decode the pixels, once. Raises HpcmError for what is damaged, ClosedImageError where the file is closed."""
        if not self._decoded:
            from hpcm_codec.api import codec_for

            if self.fp is None:
                raise ClosedImageError("the image was closed before its pixels were read", advice="load() it before")
            self.fp.seek(0)
            data = self.fp.read()
            try:
                stream = container.parse_stream(data, allow_truncated=ImageFile.LOAD_TRUNCATED_IMAGES)
                self.im = picture_to_pil(codec_for(stream.header).decode_parsed(stream)).im
            except HpcmError as error:
                raise self._as_pillows(error) from error.__cause__
            self._decoded = True
            if self._exclusive_fp:
                self.fp.close()
            self.fp = None
        return super().load()

    def verify(self) -> None:
        """Decode the whole file, symbol checks included; raises HpcmError when anything is wrong."""
        self.load()

    def __setstate__(self, state: list[Any]) -> None:
        self._decoded = True  # pickling stores pixels
        super().__setstate__(state)

    def _as_pillows(self, error: HpcmError) -> HpcmError:
        """The error, of the kind that Pillow's users expect, with the file's name."""
        for kind in (DamagedImageError, UnsupportedImageError):
            if isinstance(error, kind.__mro__[1]):
                error = kind(error.reason, file=error.file, advice=error.advice)
        return error.in_file(os.fsdecode(self.filename)) if self.filename else error


def _opening_of(file: IO[bytes]) -> tuple[container.Header, dict[int, bytes]]:
    """Header and extensions; reads at most twice as many bytes as they have."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        stream = container.parse_stream(file.read(), allow_truncated=True)
        return stream.header, stream.extensions
    data, wanted = b"", FIRST_READ
    while True:
        more = file.read(wanted - len(data))
        data += more
        try:
            return container.parse_opening(data)
        except CutShortError:
            if len(data) < wanted:  # the file has ended
                raise
        wanted *= 2


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    from hpcm_codec.api import kept_codec
    from hpcm_codec.constants import DEFAULT_MODEL, DEFAULT_QUALITY

    asked = image.encoderinfo
    exif = asked.get("exif")
    exif = arguments.optional_bytes("exif", exif.tobytes() if isinstance(exif, Image.Exif) else exif)
    # metadata passed to `save` describes these pixels, their orientation included
    picture = picture_from_pil(_with_exif(image, exif) if exif else image)
    if exif and picture.exif is None:
        raise UsageError(
            "exif is no EXIF", advice="give it as EXIF bytes, with or without Exif and two zero bytes in front"
        )
    if "exif" in asked and not exif:
        picture.exif = None
    if "icc_profile" in asked:
        picture.icc = arguments.optional_bytes("icc_profile", asked["icc_profile"])
        if picture.icc is not None and (other := other_space(picture.icc, picture.grey)) is not None:
            raise UsageError(
                f"icc_profile is of {other}, which the pixels are not", advice="give one that fits, or None"
            )
    if "xmp" in asked:
        picture.xmp = arguments.optional_bytes("xmp", asked["xmp"])
    codec = kept_codec(asked.get("model", DEFAULT_MODEL))
    file.write(codec.encode(picture, asked.get("quality", DEFAULT_QUALITY)))


def _with_exif(image: Image.Image, exif: bytes) -> Image.Image:
    """The same picture with other EXIF."""
    copy = image.copy()
    copy.info = {**image.info, "exif": exif}
    return copy


Image.register_open(FORMAT, HpcmImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, EXTENSION)
Image.register_mime(FORMAT, MEDIA_TYPE)
