"""`hpcm encode`: pictures of any kind to .hpcm files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from hpcm_codec.cli import batch, options
from hpcm_codec.cli.batch import Job, Outcome
from hpcm_codec.memory import parse_size

if TYPE_CHECKING:
    from hpcm_codec.codec import Codec
    from hpcm_codec.images import PixelSource

DEFAULT_QUALITY = 50.0  # codec.DEFAULT_QUALITY, which cannot be had without torch
ENCODING_ADVICE = "raise it with --memory, or give the picture as PPM or uncompressed TIFF, which are read in strips"
# what counts as a picture in a directory; a file that is named is tried whatever its name
PICTURE_EXTENSIONS = {
    *(
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".bmp",
        ".dib",
    ),
    *(".gif", ".avif", ".jp2", ".j2k", ".jpx", ".tga", ".pcx", ".psd", ".sgi", ".qoi"),
}


@click.command("encode")
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.option("-o", "--output", metavar="OUT", help="File, DIR/, or - for stdout.  [default: IN's name with .hpcm]")
@click.option(
    "-q", "--quality", type=float, metavar="0..100", help=f"Higher is larger.  [default: {DEFAULT_QUALITY:g}]"
)
@click.option(
    "--size", metavar="BYTES", help="The best file of at most this size (60000, 60KB, 1.5MiB), instead of -q."
)
@click.option("--bpp", type=float, metavar="BITS", help="The same in bits per pixel.")
@click.option("--psnr", type=float, metavar="DB", help="The smallest file of at least this fidelity, instead of -q.")
@options.model("The checkpoint.  [default: phase1-lite]")
@options.profile
@click.option("--strip", is_flag=True, help="Leave out EXIF and XMP. The ICC profile stays: colours depend on it.")
@options.memory
@options.max_pixels
@options.running
@options.reporting
def command(
    inputs: tuple[str, ...],
    output: str | None,
    quality: float | None,
    size: str | None,
    bpp: float | None,
    psnr: float | None,
    model: str | None,
    profile: str,
    strip: bool,
    memory: str | None,
    max_pixels: int | None,
    device: str,
    threads: int | None,
    json: bool,
    quiet: bool,
    force: bool,
) -> int:
    """Compress pictures to .hpcm files.

    IN is a picture of any format, a directory (all pictures below it), or - for stdin. With several inputs, or a directory, OUT is a
    directory, which gets the same tree.
    """
    aim = _aim(quality, size, bpp, psnr)
    memory_limit = options.parse_memory(memory)
    kept_latents = 2 if psnr is not None else 0 if size is None and bpp is None else 1
    chosen_by_hand = size is None and bpp is None and psnr is None
    options.check_json(json, output)
    jobs = batch.plan(
        inputs, output, ".hpcm", lambda name: os.path.splitext(name)[1].lower() in PICTURE_EXTENSIONS, "pictures"
    )
    options.check_json(json, jobs[0].target)

    def work(job: Job) -> Outcome:
        with _opened(job.source, max_pixels, memory_limit, kept_latents) as (picture, input_bytes):
            return encode_one(job, picture, input_bytes)

    def encode_one(job: Job, picture: PixelSource, input_bytes: int) -> Outcome:
        if strip:
            picture.exif = picture.xmp = None
        with batch.for_all_jobs():
            codec = options.load_codec(model, device, threads, profile)
        data, facts = aim(codec, picture)
        batch.write_output(job, data, force)
        rate = 8 * len(data) / (picture.width * picture.height)
        ratio = len(data) / input_bytes
        return Outcome(
            f"{picture.width}×{picture.height}, {len(data)} bytes, {rate:.3f} bpp, {100 * ratio:.1f}% of the input"
            + "".join(f", {key} {value:g}" for key, value in facts.items() if not chosen_by_hand),
            {
                "width": picture.width,
                "height": picture.height,
                **facts,
                "bytes": len(data),
                "input_bytes": input_bytes,
                "bpp": round(rate, 5),
                "ratio": round(ratio, 5),
                "model": codec.identity.hex(),
                "profile": codec.profile,
            },
            picture.notices,
        )

    return batch.run(jobs, work, batch.Reporting(json, quiet), force)


def _aim(
    quality: float | None, size: str | None, bpp: float | None, psnr: float | None
) -> Callable[[Codec, PixelSource], tuple[bytes, dict[str, float]]]:
    """How to encode a picture so that it meets what was asked for; gives the bytes and the facts to report.

    Raises UsageError for more than one aim, or one that makes no sense.
    """
    options.check_aims(quality, size, bpp, psnr)
    if size is None and bpp is None and psnr is None:
        wanted = DEFAULT_QUALITY if quality is None else quality
        return lambda codec, picture: (codec.encode(picture, wanted), {"quality": round(2 * wanted) / 2})
    size_limit = None if size is None else parse_size(size)

    def to_target(codec: Codec, picture: PixelSource) -> tuple[bytes, dict[str, float]]:
        from hpcm_codec.targets import Target, encode_to_target

        if psnr is not None:
            target = Target("psnr", psnr)
        else:
            pixels = picture.width * picture.height
            target = Target("bytes", (bpp or 0) * pixels / 8 if size_limit is None else size_limit)
        reached = encode_to_target(codec, picture, target)
        fidelity = {} if reached.psnr is None else {"psnr": round(reached.psnr, 3)}
        return reached.data, {"quality": reached.quality, **fidelity}

    return to_target


@contextmanager
def _opened(
    source: str, max_pixels: int | None, memory: int | None, kept_latents: int
) -> Iterator[tuple[PixelSource, int]]:
    """The picture, and how many bytes its file has. kept_latents: how often the encoder keeps the latents of the whole picture."""
    from hpcm_codec.container import DEFAULT_MAX_PIXELS
    from hpcm_codec.images import open_picture
    from hpcm_codec.memory import check, encoding_bytes

    limit = DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels
    # what cannot be read twice is kept in memory
    data = None if source != batch.STDIO and os.path.isfile(source) else batch.read_input(source)

    def afford(width: int, height: int, held: int) -> None:
        needed = encoding_bytes(width, height, held + len(data or b""), kept_latents)
        check(f"encoding {width}×{height} pixels", needed, memory, ENCODING_ADVICE)

    name = batch.shown(source, "stdin")
    content = source if data is None else io.BytesIO(data)
    with open_picture(content, name=name, max_pixels=limit, afford=afford) as picture:
        yield picture, max(1, os.path.getsize(source) if data is None else len(data))
