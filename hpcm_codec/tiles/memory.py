"""How much memory the work on a picture takes, and the limit for it.

The figures are of the whole process, Python included, since machines and containers limit the memory of processes. They are upper
estimates for the default model, from measurements (the largest resident size of fresh processes, torch 2.13, x86;
docs/benchmarks.md), and are valid for every engine. Engines that compute with torch take most. A program with the model loaded takes
0.36 GB. A tile of 1024×1024 pixels and its halo took 0.21 GB more, in encoding and in decoding, and so does each further tile that is
coded at the same time. The integer engine without torch takes half of it or less: 0.22 GB for a picture of 2048×2048 pixels, 0.1 GB for
each further tile at the same time. Only two parts grow with the picture: its pixels, if its format requires us to hold them, and a band
as wide as the picture and one tile high.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from hpcm_codec.errors import MemoryLimitError, UsageError
from hpcm_codec.tiles.grid import HALO_LATENTS, LARGEST_TILE_UNITS, PIXELS_PER_LATENT, PIXELS_PER_UNIT, TileGrid

SHARE = 4  # the default limit is this part of the machine's memory …
SMALLEST_DEFAULT = 2**30  # … but at least what a program of this size needs
PROGRAM_BYTES = 400_000_000
WORK_BYTES_PER_PIXEL = 240  # of one tile with its halo: the networks' activations
HALO_PIXELS = HALO_LATENTS * PIXELS_PER_LATENT
TILE_PIXELS = LARGEST_TILE_UNITS * PIXELS_PER_UNIT
LATENT_BYTES_PER_PIXEL = 5  # 320 channels of float32 for 16×16 pixels
BAND_BYTES_PER_PIXEL = 14  # rows that are copied between Pillow, numpy and a file
ADVICE = "raise it with --memory if the machine has that much"


def machine_memory() -> int:
    """Bytes of memory of this machine or container; 4 GiB where the system does not report it."""
    found = 4 * 2**30
    with suppress(OSError, ValueError, AttributeError):
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" is no number
            found = min(found, int(Path(limit).read_text(encoding="ascii")))
    return found


def default_limit() -> int:
    """A quarter of the machine's memory, or 1 GiB where that is more."""
    return max(SMALLEST_DEFAULT, machine_memory() // SHARE)


def parse_size(text: str, option: str = "--size") -> int:
    """Bytes of "60000", "60KB" (thousands), "60KiB" (1024s), "1.5M"; raises UsageError naming the option.

    >>> parse_size("60KB"), parse_size("1.5 MiB"), parse_size("800")
    (60000, 1572864, 800)
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMG]?)(i?)B?\s*", text, re.IGNORECASE)
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if match is None or not number > 0:
        raise UsageError(f"{option} takes bytes, such as 60000, 60KB or 1.5MiB, not {text!r}")
    power = " KMG".index(match[2].upper() or " ")
    return int(number * (1024 if match[3] else 1000) ** power)


def limit_of(memory: int | None) -> int:
    """The limit in bytes of a setting; None is the default."""
    return default_limit() if memory is None else memory


def work_bytes(width: int, height: int, tiles: int = 1) -> int:
    """Bytes of the program, and of its work on so many tiles at a time of a picture of this size in pixels."""
    grid = TileGrid(width, height)
    window = [min(side, TILE_PIXELS + 2 * HALO_PIXELS) for side in (grid.pixels.width, grid.pixels.height)]
    return PROGRAM_BYTES + min(tiles, len(grid)) * WORK_BYTES_PER_PIXEL * window[0] * window[1]


def encoding_bytes(width: int, height: int, held: int, kept_latents: int = 0, tiles: int = 1) -> int:
    """Bytes that encoding takes in all.

    held:         bytes of pixels that the source keeps in memory.
    kept_latents: how many times the latents of the whole picture are kept: 0, and for targets 1 (a size) or 2 (a fidelity).
    tiles:        how many are coded at a time.
    """
    extended = TileGrid(width, height).pixels
    band = BAND_BYTES_PER_PIXEL * width * min(height, TILE_PIXELS + 2 * HALO_PIXELS)
    latents = kept_latents * LATENT_BYTES_PER_PIXEL * extended.width * extended.height
    return work_bytes(width, height, tiles) + band + latents + held


def decoding_bytes(width: int, height: int, held: int, tiles: int = 1) -> int:
    """Bytes that decoding so many pixels takes in all.

    held:  bytes of pixels and of the file that are kept in memory.
    tiles: how many are decoded at a time.
    """
    across = TileGrid(width, height).pixels.width + 2 * TILE_PIXELS
    latents = LATENT_BYTES_PER_PIXEL * across * min(height, TILE_PIXELS) * 2
    band = BAND_BYTES_PER_PIXEL * width * min(height, TILE_PIXELS)
    return work_bytes(width, height, tiles) + latents + band + held


def check(what: str, needed: int, memory: int | None, advice: str = ADVICE) -> None:
    """Raise MemoryLimitError when `needed` bytes are more than the setting (None: the default) allows. what: begins the message."""
    limit = limit_of(memory)
    if needed > limit:
        raise MemoryLimitError(what, needed, limit, advice=advice)
