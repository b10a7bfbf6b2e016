"""Pictures of equal size analysed at once, which a GPU does in less time than one by one.

Only the analysis is done for several pictures in one call; the context model and the rANS coder then go through each by itself, so
what decides whether a file decodes is the same as ever (see `Codec.analyse_together` for the last bits of the analysis).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, NamedTuple

from hpcm_codec.images import Picture, PixelSource
from hpcm_codec.tiles.grid import TileGrid

if TYPE_CHECKING:
    from torch import Tensor

    from hpcm_codec.codec import Codec

LOOKAHEAD = 32  # pictures among which equal sizes are looked for
TOGETHER = 8  # pictures in one call: at most 8 tiles of 1024×1024 pixels, whose activations take some 2 GB


class Analysed(NamedTuple):
    """A picture (its file may be closed), the bytes of that file, and the latents before rounding, 1×M×h×w."""

    picture: Picture
    input_bytes: int
    latents: Tensor


Opener = Callable[[str], AbstractContextManager[tuple[PixelSource, int]]]


def analyse_together(codec: Codec, sources: Sequence[str], opened: Opener) -> dict[str, Analysed]:
    """The analyses, by source, of those pictures that have an equal among them.

    opened: gives a picture and the bytes of its file. Pictures of more than one tile keep a GPU busy alone and are left out; so is what
    cannot be opened, or does not fit the device's memory together: it is encoded by itself, where an error has its place.
    """
    by_size: dict[tuple[int, int], list[tuple[str, Picture, int]]] = defaultdict(list)
    for source in sources:
        with suppress(Exception), opened(source) as (picture, input_bytes):
            if len(TileGrid(picture.width, picture.height)) == 1:
                pixels = picture.rows(0, picture.height).copy()
                parts = (picture.alpha, picture.icc, picture.exif, picture.xmp, picture.notices, picture.extras)
                held = Picture(pixels, *parts)
                by_size[picture.width, picture.height].append((source, held, input_bytes))
    analysed = {}
    for equals in by_size.values():
        for first in range(0, len(equals), TOGETHER):
            group = equals[first : first + TOGETHER]
            if len(group) < 2:
                continue
            with suppress(RuntimeError):  # torch's, when memory is short
                latents = codec.analyse_together([picture for _, picture, _ in group])
                for place, (source, picture, input_bytes) in enumerate(group):
                    analysed[source] = Analysed(picture, input_bytes, latents[place : place + 1])
    return analysed
