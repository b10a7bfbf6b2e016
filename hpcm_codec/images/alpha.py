"""The alpha plane as the payload of the container's alpha extension."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from PIL import Image

from hpcm_codec.errors import CorruptStreamError
from hpcm_codec.images.limits import our_limits
from hpcm_codec.images.picture import Samples


def encode_alpha(alpha: Samples) -> bytes:
    """An alpha plane (uint8 H×W) as the payload of the container's alpha extension: an 8-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(alpha).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def decode_alpha(payload: bytes, width: int, height: int) -> Samples:
    """The alpha plane (uint8 H×W) of a picture of this size; CorruptStreamError when the payload is anything else."""
    opening = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBB", width, height, 8, 0)
    if not payload.startswith(opening):  # looked at before Pillow allocates anything
        raise CorruptStreamError("damaged: the alpha plane is not an 8-bit grey PNG of the picture's size")
    try:
        with warnings.catch_warnings(), our_limits(width * height, metadata=False):
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(payload), formats=["PNG"]) as image:
                if image.mode != "L" or image.size != (width, height):
                    raise ValueError("another mode or size inside")
                return np.array(image)
    except Exception as error:
        raise CorruptStreamError("damaged: the alpha plane cannot be read") from error
