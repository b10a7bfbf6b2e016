"""Pictures of equal size analysed at once, which a GPU does in less time than one by one.

Only the analysis is done for several pictures in one call. The context model and the rANS coder then process each picture separately, so
files decode as without it (see `Codec.analyse_together` for the last bits of the analysis).
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

    opened: returns a picture and the bytes of its file. Left out are pictures of more than one tile, which keep a GPU busy alone, pictures
    that cannot be opened, and those that do not fit into the device's memory together. They are encoded separately, which reports errors.
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
