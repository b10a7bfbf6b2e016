"""Calls of the compiled integer library with numpy arrays: the check of an array, and the call itself."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.ops import build
from hpcm_codec.system.threads import thread_count

Plane = NDArray[np.int16]


def checked(name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: Any = np.int16) -> NDArray[Any]:
    """The array, contiguous. Raises ValueError or TypeError unless it is what the C++ side reads."""
    if array.shape != shape:
        raise ValueError(f"{name}: expected {shape}, got {array.shape}")
    if array.dtype != dtype:
        raise TypeError(f"{name}: expected {np.dtype(dtype)}, got {array.dtype}")
    return np.ascontiguousarray(array)


def call(name: str, *arguments: NDArray[Any] | int | None) -> None:
    """Call a C function: arrays as pointers, None as a null pointer, integers as int64, and the number of threads."""
    passed = [
        ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(None if a is None else a.ctypes.data)
        for a in arguments
    ]
    build.function("integer", f"hpcm_{name}")(*passed, ctypes.c_int64(thread_count()))
