"""Numbers and names that commands, documents and several modules share. Imports nothing, so that a help text costs nothing."""

from __future__ import annotations

LOWEST_QUALITY, HIGHEST_QUALITY = 0.0, 100.0
DEFAULT_QUALITY = 50.0
QUALITY_STEPS = 2  # a file stores qualities in half steps …
LARGEST_QUALITY_CODE = 200  # … so 100 is written as 200
SCALES = ("hyper", "s1", "s2", "s3")  # of a file, coarse to fine
FINEST_SCALE = SCALES[-1]
LARGEST_PIXEL = 255  # of 8-bit pictures
DEFAULT_MAX_PIXELS = 2**28  # larger pictures are refused unless a caller raises the limit
DEFAULT_MODEL = "phase1-lite"
# what a model may be called besides its own name: patch projection, RWKV context cell, narrow layers
MODEL_ALIASES = {"patch-rwkv-small": DEFAULT_MODEL}
OUTPUT_FORMATS = (
    "png",
    "jpeg",
    "webp",
    "tiff",
    "ppm",
    "bmp",
    "jxl",
    "heif",
)  # of decoded pictures; images.FORMATS has their rules


def own_name(model: str) -> str:
    """The name that is written and printed of a model that is given by an alias; anything else as it is."""
    return MODEL_ALIASES.get(model, model)
