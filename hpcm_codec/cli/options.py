"""Options that several commands share, and what they mean."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hpcm_codec.batch.streams import STDIO
from hpcm_codec.bitstream.quality import quality_code
from hpcm_codec.constants import DEFAULT_MAX_PIXELS, own_name
from hpcm_codec.errors import FileError, UsageError, printable
from hpcm_codec.system.devices import is_device_name
from hpcm_codec.system.files import file_error
from hpcm_codec.targets import Target
from hpcm_codec.tiles.memory import parse_size

Command = Callable[..., Any]


def model(help_text: str) -> Callable[[Command], Command]:
    """--model NAME|PATH; an alias becomes the model's own name."""
    return click.option("--model", metavar="NAME|PATH", callback=_own_name, help=help_text)


def _own_name(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    return None if value is None else own_name(value)


max_pixels = click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Refuse larger pictures.  [default: {DEFAULT_MAX_PIXELS}]",
)


memory = click.option(
    "--memory",
    metavar="SIZE",
    help="Most memory to use (900MB, 2GiB); what needs more is refused.  [default: a quarter of the machine's]",
)


tile_jobs = click.option(
    "--tile-jobs",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Tiles of a large picture coded at a time, on the CPU.",
)


def parse_memory(text: str | None) -> int | None:
    """Bytes of --memory; None where it was not given. Raises UsageError."""
    return None if text is None else parse_size(text, "--memory")


def running(command: Command) -> Command:
    """--device and --threads."""
    command = click.option(
        "--threads", type=click.IntRange(1, 1024), help="Processor threads.  [default: torch's choice]"
    )(command)
    return click.option(
        "--device", metavar="auto|cpu|cuda", default="auto", show_default=True, help="Where the model runs."
    )(command)


def reporting(command: Command) -> Command:
    """--json, --quiet and -f."""
    command = click.option("-f", "--force", is_flag=True, help="Overwrite existing outputs.")(command)
    command = click.option("--quiet", is_flag=True, help="Say nothing but errors.")(command)
    return click.option("--json", is_flag=True, help="A line of JSON per file on stdout.")(command)


def refuse_existing(output: str | os.PathLike[str] | None, force: bool) -> None:
    """Raise FileError, before any work is done, for an output file that exists and may not be overwritten, and for a directory."""
    if output is None or output == STDIO:
        return
    if os.path.isdir(output):
        raise file_error(output, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    if not force and os.path.exists(output):
        raise FileError("exists already", file=output, advice="choose another name, or overwrite it with -f")


perceptual = click.option(
    "--perceptual",
    metavar="none|NAME,…",
    help="Also measure ssimulacra2, flip.  [default: ssimulacra2 where it is installed]",
)
profile = click.option(
    "--profile",
    type=click.Choice(("auto", "exact", "float")),
    default="auto",
    show_default=True,
    help="exact: decodes on every machine; float: for research; auto: exact where the model has it.",
)


def refuse_missing(path: Path) -> None:
    """Raise FileError when no file or folder has that name."""
    if not path.exists():
        raise FileError("no such file or directory", file=path, advice="check the path")


def target_of(quality: float | None, size: str | None, bpp: float | None, psnr: float | None) -> Target:
    """The target of -q, --size, --bpp and --psnr; the default quality where none is given.

    Raises UsageError for more than one of them, or for one that makes no sense.
    """
    if sum(given is not None for given in (quality, size, bpp, psnr)) > 1:
        raise UsageError("-q, --size, --bpp and --psnr exclude each other", advice="use one of them")
    if any(value is not None and not value > 0 for value in (bpp, psnr)):
        raise UsageError("--bpp and --psnr take numbers above 0")
    if size is not None:
        return Target("bytes", parse_size(size))
    if bpp is not None:
        return Target("bpp", bpp)
    if psnr is not None:
        return Target("psnr", psnr)
    if quality is not None:
        quality_code(quality)  # raises for what is out of range
        return Target("quality", quality)
    return Target()


def check_json(json: bool, output: str | None) -> None:
    """Raise UsageError when JSON lines and a picture would share stdout."""
    if json and output == STDIO:
        raise UsageError("--json and the picture cannot both go to stdout", advice="name an output file with -o")


def check_device(device: str) -> None:
    """Raise UsageError for a device that is none of auto, cpu, cuda, cuda:N."""
    if not is_device_name(device):
        raise UsageError(f"--device takes auto, cpu, cuda or cuda:N, not {device!r}")


def notices(quiet: bool) -> Callable[[str], object]:
    """The function that receives notices: it prints a line for each on stderr, or nothing."""
    return lambda notice: None if quiet else click.echo(f"hpcm: {notice}", err=True)


class LeftOut:
    """Reports the pictures that are left out of the training data, one line each on stderr, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: Path, reason: str) -> None:
        self.count += 1
        click.echo(f"hpcm: {printable(str(path))}: left out: {reason}", err=True)

    @property
    def in_words(self) -> str:
        """For the end of a sentence; empty where nothing was left out."""
        return f", {self.count} left out" if self.count else ""
