"""`hpcm encode`: pictures of any kind to .hpcm files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from hpcm_codec.batch.encoding import Encoding
from hpcm_codec.batch.jobs import plan
from hpcm_codec.batch.machine import Machine
from hpcm_codec.batch.streams import STDIO
from hpcm_codec.cli import options
from hpcm_codec.cli.batch import Batch, Reporting, many_files, run
from hpcm_codec.constants import DEFAULT_QUALITY
from hpcm_codec.errors import UsageError, printable

if TYPE_CHECKING:
    from hpcm_codec.images.resizing import Resizing

# extensions of pictures in a directory; a file that the user names is opened with any extension
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
    *(
        ".gif",
        ".avif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".tga",
        ".pcx",
        ".psd",
        ".sgi",
        ".qoi",
        ".heic",
        ".heif",
        ".jxl",
        ".mpo",
        ".apng",
    ),
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
@click.option(
    "--strip",
    is_flag=True,
    help="Leave out EXIF, XMP, IPTC, resolution and texts. The ICC profile stays: colours depend on it.",
)
@click.option(
    "--resize",
    metavar="WxH|PERCENT",
    help="Change the size first: 640x480, 640x, x480 or 50%, in gamma, not linear light.",
)
@click.option("--max-edge", type=click.IntRange(1, 2**20), metavar="N", help="Shrink what has more pixels on a side.")
@click.option("--keep-smaller", is_flag=True, help="Copy inputs that would become larger, in a batch.")
@click.option("--measure-psnr", is_flag=True, help="Decode every file, and report its PSNR.")
@many_files
@click.option(
    "--engine",
    type=click.Choice(("processes", "ray")),
    default="processes",
    show_default=True,
    help="ray: on a cluster, by Ray Data (pip install 'hpcm-codec[ray]'), with --jobs workers.",
)
@options.memory
@options.tile_jobs
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
    resize: str | None,
    max_edge: int | None,
    keep_smaller: bool,
    measure_psnr: bool,
    jobs: int | None,
    resume: bool,
    shard: str | None,
    manifest: str | None,
    keep_time: bool,
    follow_links: bool,
    engine: str,
    memory: str | None,
    tile_jobs: int,
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

    A family of models (see hpcm checkpoints import) has a quality for each, spread evenly over 0 to 100; -q takes the nearest.
    """
    target = options.target_of(quality, size, bpp, psnr)
    options.check_json(json, output)
    options.check_device(device)
    memory_limit = options.parse_memory(memory)
    resizing = _resizing(resize, max_edge)
    if keep_smaller and (resizing is not None or strip):
        raise UsageError(
            "--keep-smaller copies inputs as they are", advice="leave out --resize, --max-edge and --strip"
        )
    if keep_smaller and (
        STDIO in inputs or (output is not None and len(inputs) == 1 and not _is_folder(output, inputs[0]))
    ):
        raise UsageError("--keep-smaller needs a folder for its copies", advice="use -o DIR/")
    found = plan(inputs, output, ".hpcm", _is_picture, "pictures", follow_links, options.notices(quiet))
    _refuse_picture_name(output)
    options.check_json(json, found[0].target)
    asked = Batch(jobs, resume, shard, manifest, force, threads, engine, keep_time=keep_time)
    share = asked.share_of(found)
    work = Encoding(
        target=target,
        model=model,
        profile=profile,
        strip=strip,
        max_pixels=max_pixels,
        measure_psnr=measure_psnr,
        resizing=resizing,
        keep_smaller=keep_smaller,
        machine=Machine(device, threads, asked.memory_of_each(memory_limit), tile_jobs),
    )
    return run(share, work, asked, Reporting(json, quiet))


def _resizing(resize: str | None, max_edge: int | None) -> Resizing | None:
    """The resizing of --resize and --max-edge; raises UsageError."""
    if resize is None and max_edge is None:
        return None
    from hpcm_codec.images.resizing import Resizing, parse_resizing

    if resize is not None and max_edge is not None:
        raise UsageError("--resize and --max-edge are different sizes", advice="use one of them")
    return Resizing(max_edge=max_edge) if resize is None else parse_resizing(resize)


def _is_folder(output: str, given: str) -> bool:
    """Whether an output is, or will be, a folder."""
    return output.endswith(("/", os.sep)) or os.path.isdir(output) or os.path.isdir(given)


def _refuse_picture_name(output: str | None) -> None:
    """Raise UsageError for an output with a picture's extension: the user probably meant `hpcm decode`, or mixed up the arguments."""
    if output is not None and _is_picture(output) and not output.endswith(("/", os.sep)) and not os.path.isdir(output):
        raise UsageError(
            f"{printable(output)} is a picture's name, and encode writes .hpcm files",
            advice="were input and output exchanged? pictures are written by `hpcm decode`",
        )


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in PICTURE_EXTENSIONS
