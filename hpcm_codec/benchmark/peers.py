"""Other codecs' own programs beside ours: seconds and bytes of whole processes, at about equal PSNR."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from hpcm_codec.benchmark.process import CHILD_TIMEOUT, fresh_environment
from hpcm_codec.errors import HpcmError
from hpcm_codec.images import read_picture
from hpcm_codec.images.fidelity import psnr

Arguments = Callable[[str, str, float, int], list[str]]  # (source, target, quality, threads)


@dataclass(frozen=True)
class Peer:
    """A codec's two programs, and what to call them with. Qualities go from 0 to 100, higher being better."""

    name: str
    programs: tuple[str, str]
    extension: str
    encode: Arguments
    decode: Arguments


PEERS = (
    Peer(
        "JPEG XL (cjxl, djxl; effort 7)",
        ("cjxl", "djxl"),
        ".jxl",
        lambda a, b, q, n: ["cjxl", a, b, "-q", f"{q:g}", "-e", "7", f"--num_threads={n}", "--quiet"],
        lambda a, b, q, n: ["djxl", a, b, f"--num_threads={n}", "--quiet"],
    ),
    Peer(
        "AVIF (avifenc, avifdec; speed 6)",
        ("avifenc", "avifdec"),
        ".avif",
        lambda a, b, q, n: ["avifenc", "-s", "6", "-j", str(n), "-y", "444", *_quantiser(q), a, b],
        lambda a, b, q, n: ["avifdec", "-j", str(n), a, b],
    ),
    Peer(
        "WebP (cwebp, dwebp)",
        ("cwebp", "dwebp"),
        ".webp",
        lambda a, b, q, n: ["cwebp", "-quiet", *(["-mt"] if n > 1 else []), "-q", f"{q:g}", a, "-o", b],
        lambda a, b, q, n: ["dwebp", "-quiet", *(["-mt"] if n > 1 else []), a, "-o", b],
    ),
)
OURS = "hpcm"


def _quantiser(quality: float) -> list[str]:
    """AVIF counts the other way round, from 63 to 0; every version of avifenc knows these options."""
    number = str(round(63 * (1 - quality / 100)))
    return ["--min", number, "--max", number]


def measure_peers(picture: Path, quality: float, model: str, threads: int, runs: int) -> list[dict[str, Any]]:
    """A row for ours at a quality, and for every peer that is installed at the quality whose PSNR comes nearest: name, bytes, psnr, and
    the median seconds of whole processes, encode and decode. Raises HpcmError when a program fails."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source.png"
        Image.fromarray(read_picture(picture).pixels.squeeze()).save(source)
        here = [sys.executable, "-m", "hpcm_codec"]
        same = ["--quiet", "--device", "cpu", "--threads", str(threads), "--model", model]
        ours = Peer(
            OURS,
            ("", ""),
            ".hpcm",
            lambda a, b, q, n: [*here, "encode", a, "-o", b, "-q", f"{q:g}", "-f", *same],
            lambda a, b, q, n: [*here, "decode", a, "-o", b, "-f", *same],
        )
        rows = [_timed(ours, source, quality, threads, runs)]
        for peer in PEERS:
            if all(map(shutil.which, peer.programs)):
                nearest = _nearest(peer, source, rows[0]["psnr"], threads)
                rows.append(_timed(peer, source, nearest, threads, runs))
    return rows


def _nearest(peer: Peer, source: Path, wanted: float, threads: int) -> float:
    """The quality whose PSNR comes nearest, found by halving."""
    low, high = 0.0, 100.0
    tried: dict[float, float] = {}
    for _ in range(7):
        middle = (low + high) / 2
        _, fidelity, _ = _once(peer, source, middle, threads)
        tried[middle] = fidelity
        low, high = (middle, high) if fidelity < wanted else (low, middle)
    return min(tried, key=lambda quality: abs(tried[quality] - wanted))


def _timed(peer: Peer, source: Path, quality: float, threads: int, runs: int) -> dict[str, Any]:
    taken = [_once(peer, source, quality, threads) for _ in range(runs + 1)][1:]  # the first warms the file cache
    size, fidelity, _ = taken[0]
    encode, decode = (statistics.median(seconds[way] for _, _, seconds in taken) for way in (0, 1))
    return {"name": peer.name, "quality": quality, "bytes": size, "psnr": fidelity, "encode": encode, "decode": decode}


def _once(peer: Peer, source: Path, quality: float, threads: int) -> tuple[int, float, tuple[float, float]]:
    """Bytes, PSNR, and seconds of both processes."""
    coded, shown = source.with_name(f"coded{peer.extension}"), source.with_name("shown.png")
    seconds = (
        _process(peer.encode(str(source), str(coded), quality, threads), peer.name),
        _process(peer.decode(str(coded), str(shown), quality, threads), peer.name),
    )
    fidelity = psnr(read_picture(source).pixels, read_picture(shown).pixels)
    return coded.stat().st_size, fidelity, seconds


def _process(command: list[str], name: str) -> float:
    environment = fresh_environment(Path(__file__).resolve().parents[2])
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT, env=environment)
    except subprocess.TimeoutExpired as error:
        raise HpcmError(f"{name} took longer than {CHILD_TIMEOUT:g} s") from error
    seconds = time.perf_counter() - start
    if done.returncode:
        raise HpcmError(f"{name} failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    return seconds
