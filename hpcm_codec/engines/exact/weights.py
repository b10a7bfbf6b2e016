"""A checkpoint's weights by name, in the form in which it stores them, as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

INTEGERS_PREFIX, EXPONENTS_PREFIX = "packed.", "exponents."
PLANES = {9: (1,), 10: (2,), 11: (2, 1), 12: (4,)}  # bits of each plane above the lowest eight, lowest first

PackedRows = tuple[NDArray[np.uint8], NDArray[np.int8], int]  # integers, exponents, bits: see `weights.packing`


class Weights:
    """stored: float16 arrays by name, and of packed matrices integers and exponents; shapes: those of the packed ones.

    Raises ValueError where packed rows do not fill their shapes.
    """

    def __init__(
        self, stored: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]] | None = None, bits: int = 0
    ) -> None:
        self._stored, self._shapes, self._bits = stored, dict(shapes or {}), bits
        for name, shape in self._shapes.items():
            rows, length = shape[0], int(np.prod(shape[1:]))
            packed, exponents = stored[INTEGERS_PREFIX + name], stored[EXPONENTS_PREFIX + name]
            if packed.shape != (rows, length * bits // 8) or exponents.shape != (rows,) or length % 8:
                raise ValueError(f"packed weights of {name} do not fill {shape}")

    def __contains__(self, name: str) -> bool:
        return name in self._stored or name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name] if name in self._shapes else self._stored[name].shape

    def real(self, name: str) -> NDArray[np.float32]:
        """A weight in its own shape."""
        if name in self._shapes:
            return unpacked_rows(self._packed(name)).reshape(self._shapes[name])
        return self._stored[name].astype(np.float32)

    def rows(self, name: str) -> NDArray[np.float32] | PackedRows:
        """A matrix N×K (or N×K×1×1), packed where the checkpoint holds it so."""
        if name in self._shapes:
            return self._packed(name)
        return self.real(name).reshape(self.shape(name)[0], -1)

    def _packed(self, name: str) -> PackedRows:
        return self._stored[INTEGERS_PREFIX + name], self._stored[EXPONENTS_PREFIX + name], self._bits


def unpacked_rows(packed: PackedRows) -> NDArray[np.float32]:
    """The real rows N×K."""
    stored, exponents, bits = packed
    length = stored.shape[1] * 8 // bits
    integers, at, done = stored[:, :length].astype(np.int16), length, 8
    for width in PLANES[bits]:
        plane = stored[:, at : at + length * width // 8]
        at += plane.shape[1]
        digits = [plane >> shift & (2**width - 1) for shift in range(0, 8, width)]
        integers |= np.concatenate(digits, axis=1).astype(np.int16) << done
        done += width
    above = 16 - bits  # bits of an int16 that its sign has to fill
    signed = (integers << above) >> above
    return np.ldexp(signed.astype(np.float32), exponents.astype(np.int32)[:, None])
