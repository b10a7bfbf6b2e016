"""The interface of engines: latents of an image, coding of latents, image of latents.

An engine is a network with its weights, in one arithmetic and on one device. The codec handles tiles, strips, headers and files. An engine
handles tensors, of one window or one tile at a time. Nothing here imports torch: each engine has its own type of array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.observing import Observer

Symbols = NDArray[np.int32]
Record = Callable[[Symbols], None]


# An engine's own array B×M×h×w: a numpy array, a tensor. The codec slices it and assigns to its slices, and no more.
Latents = Any


@dataclass(frozen=True)
class EncodedTile:
    """payloads: the streams hyper, s1, s2, s3; symbol_check: over all symbols, 0 .. 65535; latents: as a decoder computes them, 1×M×h×w."""

    payloads: tuple[bytes, bytes, bytes, bytes]
    symbol_check: int
    latents: Latents


@dataclass(frozen=True)
class DecodedTile:
    """complete: no stream was missing; only then does the symbol check (0 .. 65535) cover all symbols. latents: 1×M×h×w."""

    latents: Latents
    complete: bool
    symbol_check: int


class Engine(Protocol):
    """A network that codes, in one profile and on one device.

    Qualities are codes, 0 .. 200 in half steps, as files hold them. Methods may be called by several threads at a time where
    `parallel_tiles` says so.
    """

    observer: Observer  # receives the stages of the work (benchmark.stages.STAGES)

    @property
    def profile(self) -> str:
        """ "exact": probabilities are computed in integers, and files decode on every machine; "float": in floating point."""

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda", "cuda:1" …"""

    @property
    def parallel_tiles(self) -> bool:
        """Whether tiles may be coded in several threads at a time, with the same bits as one by one."""

    @property
    def local_synthesis(self) -> bool:
        """Whether a pixel depends on nothing outside the latents within the halo, not even in its last bit."""

    @property
    def exact_pixels(self) -> bool:
        """Whether pixels are computed in integers, so that they depend on the file alone."""

    @property
    def warm_up_uses(self) -> int:
        """The number of tiles of one size after which every further tile takes the same time."""

    def new_latents(self, pictures: int, height: int, width: int) -> Latents:
        """Zeros, B×M×h×w; height and width in latents."""

    def analyse(self, windows: Sequence[NDArray[np.uint8]]) -> Latents:
        """Latents before rounding, B×M×h×w, of B windows of one size: uint8 16h×16w×3, or ×1 for grey. The same for every quality."""

    def encode(self, latents: Latents, quality_code: int) -> EncodedTile:
        """Code a tile's latents before rounding, 1×M×h×w, h and w multiples of 4. Raises HpcmError for latents that cannot be coded."""

    def decode(
        self,
        payloads: Sequence[bytes | None],
        size: tuple[int, int],
        quality_code: int,
        begun: bytes | None = None,
        record: Record | None = None,
    ) -> DecodedTile:
        """Decode a tile. From the first stream on that is None, latents take their predicted means.

        payloads: the streams hyper, s1, s2, s3. size: the tile's height and width in latents, multiples of 4.
        begun:    the beginning of the first stream that is None, which is decoded as far as it goes; or None.
        record:   called with every run of symbols (1-D int32), in coding order.
        """

    def synthesise(
        self, latents: Latents, quality_code: int, area: tuple[slice, slice], grey: bool
    ) -> NDArray[np.uint8]:
        """Pixels H×W×3 (grey: H×W×1) of a window's decoded latents, 1×M×h×w.

        area: the requested rows and columns of the window's 16h×16w pixels.
        """
