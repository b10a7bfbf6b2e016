"""A learned image codec.

>>> import hpcm_codec
>>> data = hpcm_codec.encode("photo.png", quality=50)       # doctest: +SKIP
>>> image = hpcm_codec.decode(data)                         # doctest: +SKIP

Both keep the model they have loaded. `load_codec` gives a `Codec` of your own, which they take as `model`, and which encodes and
decodes a `Picture` (pixels, transparency and metadata as arrays and bytes) itself. Every failure that is not a bug raises an
`HpcmError`. Importing this package is instant: torch is imported with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpcm_codec.errors import HpcmError
from hpcm_codec.version import __version__

if TYPE_CHECKING:
    from hpcm_codec.api import decode, encode
    from hpcm_codec.codec import Codec, load_codec
    from hpcm_codec.images import Picture

__all__ = ["Codec", "HpcmError", "Picture", "__version__", "decode", "encode", "load_codec"]

_HOMES = {"encode": "api", "decode": "api", "Codec": "codec", "load_codec": "codec", "Picture": "images"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
