"""Pillow reads and writes .hpcm once this module is imported.

>>> import hpcm_codec.pillow
>>> from PIL import Image
>>> Image.open("photo.hpcm").convert("L").save("grey.hpcm", quality=70)  # doctest: +SKIP

`open` reads the file and checks its bytes, but runs no model: size, mode and metadata are known at once, pixels are
decoded when they are first needed. `save` takes quality (0 to 100), model, icc_profile, exif and xmp. Damaged or foreign
files raise HpcmError with the reason.
"""

from __future__ import annotations

import os
from typing import IO, Any

from PIL import Image, ImageFile

from hpcm_codec import container
from hpcm_codec.errors import HpcmError
from hpcm_codec.images import EXIF_PREFIX, Picture, picture_from_pil, picture_to_pil

FORMAT = "HPCM"
EXTENSION = ".hpcm"
MEDIA_TYPE = "image/x-hpcm"


class HpcmImageFile(ImageFile.ImageFile):
    """A .hpcm file as a Pillow image of mode L, LA, RGB or RGBA."""

    format = FORMAT
    format_description = "HPCM learned image"

    def _open(self) -> None:
        assert self.fp is not None
        self._data: bytes | None = self.fp.read()
        try:
            stream = container.parse_stream(self._data)
        except HpcmError as error:
            raise (error.in_file(os.fsdecode(self.filename)) if self.filename else error) from error.__cause__
        header, extensions = stream.header, stream.extensions
        self._size = (header.width, header.height)
        self._mode = ("L" if header.grey else "RGB") + ("A" if container.ALPHA in extensions else "")
        exif = extensions.get(container.EXIF)
        self.info = {
            "quality": header.quality,
            "icc_profile": extensions.get(container.ICC),
            "exif": None if exif is None else EXIF_PREFIX + exif,
            "xmp": extensions.get(container.XMP),
        }
        self.info = {key: value for key, value in self.info.items() if value is not None}
        self.tile = []

    def load(self) -> Any:
        """Decode the pixels, once."""
        if self._data is not None:
            from hpcm_codec.api import codec_for

            data = self._data
            decoded = picture_to_pil(codec_for(data).decode_strips(data))
            self.im = decoded.im
            self._data = None
            if self._exclusive_fp and self.fp is not None:
                self.fp.close()
            self.fp = None
        return super().load()

    def verify(self) -> None:
        """Decode the whole file, symbol checks included; raises HpcmError when anything is wrong."""
        self.load()


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    from hpcm_codec.api import kept_codec
    from hpcm_codec.checkpoints import DEFAULT_MODEL
    from hpcm_codec.codec import DEFAULT_QUALITY

    asked = image.encoderinfo
    picture = picture_from_pil(image)
    exif = asked.get("exif", picture.exif)
    if isinstance(exif, Image.Exif):
        exif = exif.tobytes()
    metadata: dict[str, Any] = {
        "icc": asked.get("icc_profile", picture.icc) or None,
        "exif": exif.removeprefix(EXIF_PREFIX) if exif else None,
        "xmp": asked.get("xmp", picture.xmp) or None,
    }
    codec = kept_codec(asked.get("model", DEFAULT_MODEL))
    file.write(codec.encode(Picture(picture.pixels, picture.alpha, **metadata), asked.get("quality", DEFAULT_QUALITY)))


Image.register_open(FORMAT, HpcmImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, EXTENSION)
Image.register_mime(FORMAT, MEDIA_TYPE)
