"""`hpcm decode`: .hpcm files back to pictures."""

from __future__ import annotations

import re

import click

from hpcm_codec.batch.decoding import Decoding
from hpcm_codec.batch.jobs import plan
from hpcm_codec.batch.machine import Machine
from hpcm_codec.batch.streams import STDIO
from hpcm_codec.cli import options
from hpcm_codec.cli.batch import Batch, Reporting, many_files, run
from hpcm_codec.constants import FINEST_SCALE, OUTPUT_FORMATS, SCALES
from hpcm_codec.errors import UsageError


@click.command("decode")
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.option("-o", "--output", metavar="OUT", help="File, DIR/, or - for stdout.  [default: IN's name with .png]")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(OUTPUT_FORMATS, case_sensitive=False),
    help="Of the pictures.  [default: by OUT's extension; png for stdout and directories]",
)
@click.option("--region", metavar="X,Y,W,H", help="Only this part: its left, top, width and height in pixels.")
@click.option(
    "--scale",
    type=click.Choice(SCALES),
    default=FINEST_SCALE,
    show_default=True,
    help="The finest scale to decode; finer ones need not have arrived.",
)
@click.option(
    "--max-edge",
    type=click.IntRange(1, 2**20),
    metavar="N",
    help="A thumbnail: the longer side has at most N pixels, and nothing finer is decoded than that needs.",
)
@click.option("--partial", is_flag=True, help="Show what there is of a file that was cut short or damaged.")
@options.model("The checkpoint.  [default: the one that the file names]")
@many_files
@options.memory
@options.tile_jobs
@options.max_pixels
@options.running
@options.reporting
def command(
    inputs: tuple[str, ...],
    output: str | None,
    format_name: str | None,
    region: str | None,
    scale: str,
    max_edge: int | None,
    partial: bool,
    model: str | None,
    jobs: int | None,
    resume: bool,
    shard: str | None,
    manifest: str | None,
    keep_time: bool,
    follow_links: bool,
    memory: str | None,
    tile_jobs: int,
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
    from hpcm_codec.images import FORMATS, format_for

    options.check_json(json, output)
    options.check_device(device)
    area = None if region is None else parse_region(region)
    memory_limit = options.parse_memory(memory)
    extension = FORMATS[(format_name or "png").upper()].extensions[0]
    found = plan(inputs, output, extension, _is_ours, ".hpcm files", follow_links, options.notices(quiet))
    options.check_json(json, found[0].target)
    if format_name is None and len(found) == 1 and found[0].target != STDIO and output is not None:
        format_for(found[0].target)  # raises for an unknown extension before any work
    asked = Batch(jobs, resume, shard, manifest, force, threads, keep_time=keep_time)
    share = asked.share_of(found)
    work = Decoding(
        format=format_name,
        region=area,
        scale=scale,
        partial=partial,
        max_edge=max_edge,
        model=model,
        max_pixels=max_pixels,
        machine=Machine(device, threads, asked.memory_of_each(memory_limit), tile_jobs),
    )
    return run(share, work, asked, Reporting(json, quiet))


def _is_ours(name: str) -> bool:
    return name.lower().endswith(".hpcm")


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
