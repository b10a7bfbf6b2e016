"""`hpcm decode`: .hpcm files back to pictures."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import click

from hpcm_codec.cli import batch, options
from hpcm_codec.cli.batch import Job, Outcome
from hpcm_codec.errors import UsageError

if TYPE_CHECKING:
    from hpcm_codec.container import HpcmStream
    from hpcm_codec.images import StripPicture

DECODING_ADVICE = "raise it with --memory, choose PPM or TIFF, which are written in strips, or decode a --region"
SCALES = ("hyper", "s1", "s2", "s3")  # container.SCALES, likewise
FORMATS = ("png", "jpeg", "webp", "tiff", "ppm", "bmp")  # images.FORMATS, which a help text cannot wait for


@click.command("decode")
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.option("-o", "--output", metavar="OUT", help="File, DIR/, or - for stdout.  [default: IN's name with .png]")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS, case_sensitive=False),
    help="Of the pictures.  [default: by OUT's extension; png for stdout and directories]",
)
@click.option("--region", metavar="X,Y,W,H", help="Only this part: its left, top, width and height in pixels.")
@click.option(
    "--scale",
    type=click.Choice(SCALES),
    default=SCALES[-1],
    show_default=True,
    help="The finest scale to decode; finer ones need not have arrived.",
)
@click.option("--partial", is_flag=True, help="Show what there is of a file that was cut short or damaged.")
@options.model("The checkpoint.  [default: the one that the file names]")
@options.memory
@options.max_pixels
@options.running
@options.reporting
def command(
    inputs: tuple[str, ...],
    output: str | None,
    format_name: str | None,
    region: str | None,
    scale: str,
    partial: bool,
    model: str | None,
    memory: str | None,
    max_pixels: int | None,
    device: str,
    threads: int | None,
    json: bool,
    quiet: bool,
    force: bool,
) -> int:
    """Turn .hpcm files back into pictures.

    IN is a .hpcm file, a directory (all .hpcm files below it), or - for stdin. With several inputs, or a directory, OUT is a directory,
    which gets the same tree. All formats but JPEG keep the decoded pixels exactly.
    """
    from hpcm_codec.bands import region_in
    from hpcm_codec.container import DEFAULT_MAX_PIXELS, parse_stream
    from hpcm_codec.images import FORMATS as RULES
    from hpcm_codec.images import format_for

    options.check_json(json, output)
    area = None if region is None else parse_region(region)
    extension = RULES[(format_name or "png").upper()].extensions[0]
    jobs = batch.plan(inputs, output, extension, lambda name: name.lower().endswith(".hpcm"), ".hpcm files")
    options.check_json(json, jobs[0].target)
    if format_name is None and len(jobs) == 1 and jobs[0].target != batch.STDIO and output is not None:
        format_for(jobs[0].target)  # an unknown extension is told before any work

    memory_limit = options.parse_memory(memory)

    def work(job: Job) -> Outcome:
        data = batch.read_input(job.source, begins=refuse_other_kinds)
        limit = DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels
        # what is wrong with the file or the region, and what would take too much memory, is told before a model is loaded
        stream = parse_stream(data, max_pixels=limit, allow_truncated=partial, scale=scale)
        if area is not None:
            region_in(*area, stream.header.grid)
        _check_memory(stream, area, len(data), job, format_name, memory_limit)
        pixels = stream.header.width * stream.header.height
        del stream  # the codec reads the file again
        if model is not None:
            with batch.for_all_jobs():
                codec = options.load_codec(model, device, threads)
        else:
            codec = options.load_codec_for(data, device, threads, limit)
        picture = codec.decode_strips(data, limit, partial, scale, area)
        notices = _write(picture, job, format_name, force)
        size = len(data)
        bpp = 8 * size / pixels  # of the whole picture, since the bytes are
        return Outcome(
            f"{picture.width}×{picture.height} from {size} bytes, {bpp:.3f} bpp",
            {"width": picture.width, "height": picture.height, "input_bytes": size, "bpp": round(bpp, 5)},
            (*picture.notices, *notices),
        )

    return batch.run(jobs, work, batch.Reporting(json, quiet), force)


def parse_region(text: str) -> tuple[int, int, int, int]:
    """Left, top, width and height of "X,Y,W,H"; raises UsageError.

    >>> parse_region("0, 20,300,40")
    (0, 20, 300, 40)
    """
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*", text, re.ASCII)
    if match is None:
        raise UsageError(f"--region takes X,Y,W,H in whole pixels, such as 0,20,300,40, not {text!r}")
    x, y, width, height = map(int, match.groups())
    return x, y, width, height


def _check_memory(
    stream: HpcmStream,
    region: tuple[int, int, int, int] | None,
    file_bytes: int,
    job: Job,
    format_name: str | None,
    memory: int | None,
) -> None:
    """Raise MemoryLimitError when decoding and writing the picture would take more than the limit."""
    from hpcm_codec import memory as limits
    from hpcm_codec.container import ALPHA, EXIF
    from hpcm_codec.images import format_for, held_bytes

    header, extensions = stream.header, stream.extensions
    width, height = (header.width, header.height) if region is None else region[2:]
    to_stdout = job.target == batch.STDIO
    format_key = format_name.upper() if format_name is not None else "PNG" if to_stdout else format_for(job.target)
    held = held_bytes(
        format_key, width, height, alpha=ALPHA in extensions, exif=EXIF in extensions, to_stdout=to_stdout
    )
    if ALPHA in extensions:  # the plane is a picture of its own, decoded whole
        held += 3 * header.width * header.height
    needed = limits.decoding_bytes(width, height, held + 2 * file_bytes)
    limits.check(f"decoding {width}×{height} pixels to {format_key}", needed, memory, DECODING_ADVICE)


def refuse_other_kinds(first_bytes: bytes) -> None:
    """Raise for a file that is no .hpcm file, before all of it is read."""
    from hpcm_codec.container import MAGIC, parse_header

    if not first_bytes.startswith(MAGIC):
        parse_header(first_bytes)
        raise UsageError("not a .hpcm file")  # never reached: such a header does not parse


def _write(picture: StripPicture, job: Job, format_name: str | None, force: bool) -> tuple[str, ...]:
    """Write the picture where the job says; returns what was lost on the way."""
    from hpcm_codec.images import write_picture

    format_key = None if format_name is None else format_name.upper()
    if job.target != batch.STDIO:
        return write_picture(picture, job.target, format_key, overwrite=force)
    buffer = io.BytesIO()
    notices = write_picture(picture, buffer, format_key or "PNG")
    batch.write_output(job, buffer.getvalue(), force)
    return notices
