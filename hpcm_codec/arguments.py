"""What a program passes to the library, checked before any work is done: each function returns what is meant or raises UsageError."""

from __future__ import annotations

import operator
from typing import Any

from hpcm_codec.bitstream.quality import quality_code
from hpcm_codec.errors import UsageError


def bytes_of_file(data: Any) -> bytes:
    """The bytes of a .hpcm file."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    advice = (
        "read the file: pathlib.Path(name).read_bytes()"
        if hasattr(data, "__fspath__") or isinstance(data, str)
        else None
    )
    raise UsageError(f"the bytes of a .hpcm file are wanted, not {type(data).__name__}", advice=advice)


def optional_bytes(name: str, value: Any) -> bytes | None:
    """The bytes of a piece of metadata; None, and nothing at all, is none."""
    if value is None or (isinstance(value, (bytes, bytearray, memoryview)) and not len(value)):
        return None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    advice = "encode it: text.encode()" if isinstance(value, str) else None
    raise UsageError(f"{name} is bytes, not {type(value).__name__}", advice=advice)


def quality(value: Any) -> float:
    """A quality of 0 .. 100."""
    number = _number("quality", value)
    quality_code(number)  # raises for what is out of range
    return number


def whole(name: str, value: Any) -> int:
    """A whole number of at least 1, such as a number of pixels or bytes."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} is a whole number, not {value!r}") from None
    if number < 1:
        raise UsageError(f"{name} is at least 1, not {number}")
    return number


def region(value: Any) -> tuple[int, int, int, int]:
    """x, y, width, height in whole pixels; whether they lie in the picture is not known here."""
    try:
        left, top, width, height = (operator.index(number) for number in value)
    except (TypeError, ValueError):
        raise UsageError(f"a region is x, y, width and height in whole pixels, not {value!r}") from None
    return left, top, width, height


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, (str, bytes, bytearray, bool)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # torch's, of a tensor of several numbers
        raise UsageError(f"{name} is a number, not {value!r}") from None
