"""`hpcm encode`: pictures of any kind to .hpcm files."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from hpcm_codec.cli import batch, options
from hpcm_codec.cli.batch import Job, Outcome

if TYPE_CHECKING:
    from hpcm_codec.images import Picture

DEFAULT_QUALITY = 50.0  # codec.DEFAULT_QUALITY, which cannot be had without torch
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
    "-q",
    "--quality",
    type=float,
    default=DEFAULT_QUALITY,
    show_default=True,
    metavar="0..100",
    help="Higher is larger.",
)
@options.model("The checkpoint.  [default: phase1-lite]")
@click.option("--strip", is_flag=True, help="Leave out EXIF and XMP. The ICC profile stays: colours depend on it.")
@options.max_pixels
@options.running
@options.reporting
def command(
    inputs: tuple[str, ...],
    output: str | None,
    quality: float,
    model: str | None,
    strip: bool,
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
    options.check_quality(quality)
    options.check_json(json, output)
    jobs = batch.plan(
        inputs, output, ".hpcm", lambda name: os.path.splitext(name)[1].lower() in PICTURE_EXTENSIONS, "pictures"
    )
    options.check_json(json, jobs[0].target)

    def work(job: Job) -> Outcome:
        picture, input_bytes = _read(job.source, max_pixels)
        if strip:
            picture = replace(picture, exif=None, xmp=None)
        with batch.for_all_jobs():
            codec = options.load_codec(model, device, threads)
        data = codec.encode(picture, quality)
        batch.write_output(job, data, force)
        bpp = 8 * len(data) / (picture.width * picture.height)
        ratio = len(data) / input_bytes
        return Outcome(
            f"{picture.width}×{picture.height}, {len(data)} bytes, {bpp:.3f} bpp, {100 * ratio:.1f}% of the input",
            {
                "width": picture.width,
                "height": picture.height,
                "quality": round(2 * quality) / 2,
                "bytes": len(data),
                "input_bytes": input_bytes,
                "bpp": round(bpp, 5),
                "ratio": round(ratio, 5),
                "model": codec.identity.hex(),
            },
            picture.notices,
        )

    return batch.run(jobs, work, batch.Reporting(json, quiet), force)


def _read(source: str, max_pixels: int | None) -> tuple[Picture, int]:
    """The picture, and how many bytes its file has."""
    from hpcm_codec.container import DEFAULT_MAX_PIXELS
    from hpcm_codec.images import read_picture

    limit = DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels
    # Pillow reads from a file what it needs; what cannot be read twice is kept in memory
    if source != batch.STDIO and os.path.isfile(source):
        return read_picture(source, max_pixels=limit), max(1, os.path.getsize(source))
    data = batch.read_input(source)
    name = batch.shown(source, "stdin")
    return read_picture(io.BytesIO(data), name=name, max_pixels=limit), max(1, len(data))
