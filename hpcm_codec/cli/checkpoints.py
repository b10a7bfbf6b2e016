"""`hpcm checkpoints`: list, check, export and import weights."""

from __future__ import annotations

import json as json_module
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpcm_codec.cli import options
from hpcm_codec.errors import HpcmError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

CALIBRATION_EDGE = 256

PACKED = {f"int{bits}": bits for bits in (12, 11, 10, 9)}
DTYPES = ("float16", "bfloat16", "float32", *PACKED)

# options of the commands that write a checkpoint
_output = click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
_pictures = click.option(
    "--pictures", type=click.IntRange(min=1), default=64, show_default=True, help="How many of them, cut to 256×256."
)
_force = click.option("-f", "--force", is_flag=True, help="Overwrite an existing file.")


@click.group("checkpoints")
def command() -> None:
    """List, check, export and import weights."""


@command.command("list")
@click.option("--json", is_flag=True, help="JSON on stdout.")
def list_command(json: bool) -> None:
    """The checkpoints that came with the program, then those in your own folder (HPCM_MODELS), with the identities that files name."""
    from hpcm_codec.weights.identity import kept_identity
    from hpcm_codec.weights.registry import known_checkpoints

    def identity(path: Path) -> str:
        try:
            return kept_identity(path).hex()
        except HpcmError:
            return "damaged"

    found = [
        {"name": name, "identity": identity(path), "bytes": path.stat().st_size, "path": str(path)}
        for name, path in known_checkpoints().items()
    ]
    if json:
        click.echo(json_module.dumps(found, indent=1))
        return
    for entry in found:
        click.echo(f"{entry['name']}  {entry['identity']}  {entry['bytes']} bytes  {entry['path']}")


@command.command("show")
@click.argument("name", metavar="NAME|PATH")
def show_command(name: str) -> None:
    """The configuration and the training record of a checkpoint, as JSON (see also hpcm info --model)."""
    from hpcm_codec.weights.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(name)
    shown = {
        "identity": checkpoint.identity.hex(),
        "config": json_module.loads(checkpoint.config.to_json()),
        "training": checkpoint.training,
    }
    click.echo(json_module.dumps(shown, indent=1))


@command.command("verify")
@click.argument("names", nargs=-1, required=True, metavar="NAME|PATH...")
def verify_command(names: tuple[str, ...]) -> None:
    """Check that checkpoints load, fit their configuration, hold finite weights and whole tables."""
    from hpcm_codec.weights.checkpoints import load_checkpoint, verify_checkpoint

    for name in names:
        checkpoint = load_checkpoint(name)
        verify_checkpoint(checkpoint, name)
        click.echo(f"{name}: sound, {checkpoint.config.name}, identity {checkpoint.identity.hex()}")


@command.command("export")
@click.argument("source", metavar="NAME|PATH")
@_output
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=DTYPES[0],
    show_default=True,
    help="Type of the weights; int12 … int9: so many bits each, and a power of two for each row of a matrix.",
)
@click.option(
    "--exact", is_flag=True, help="With an exact profile: files then decode on every machine. Needs --calibrate."
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FOLDER|PACK",
    help="Pictures to find the integers' units with.",
)
@_pictures
@_force
def export_command(
    source: str, output: Path, dtype: str, exact: bool, calibrate: Path | None, pictures: int, force: bool
) -> None:
    """Write a checkpoint for shipping: inference weights only, in a smaller type. It is another model, with another identity."""
    import torch

    from hpcm_codec.engines.exporting import export_checkpoint

    if exact != (calibrate is not None):
        raise UsageError("--exact and --calibrate go together", advice="name a folder of photographs with --calibrate")
    options.refuse_existing(output, force)
    calibration = None if calibrate is None else _calibration(calibrate, pictures)
    bits = PACKED.get(dtype)
    plain = torch.float16 if bits is not None else getattr(torch, dtype)
    identity = export_checkpoint(source, output, plain, calibration, packed_bits=bits)
    click.echo(f"{output}: {output.stat().st_size} bytes, identity {identity.hex()}")


@command.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@_output
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FOLDER|PACK",
    help="With an exact profile, as of export --exact, its units found with these pictures.",
)
@_pictures
@_force
def import_command(files: tuple[Path, ...], output: Path, calibrate: Path | None, pictures: int, force: bool) -> None:
    """Write a published HPCM checkpoint (.pth.tar of HPCM-Base or HPCM-Large, github.com/lyq133/LIC-HPCM) as one of ours.

    A published file holds one rate, and so does what is written: -q changes nothing. FILE is read without running anything in it.
    """
    from hpcm_codec.engines.exporting import import_published

    if len(files) > 1:
        raise UsageError(
            f"{len(files)} files given: several rates in one checkpoint are not supported",
            advice="import each file to an output of its own, and choose the rate with --model",
        )
    options.refuse_existing(output, force)
    options.refuse_missing(files[0])
    calibration = None
    if calibrate is not None:
        options.refuse_missing(calibrate)
        calibration = partial(_calibration, calibrate, pictures)
    kind, identity = import_published(files[0], output, calibration)
    click.echo(f"{output}: {kind}, {output.stat().st_size} bytes, identity {identity.hex()}")


def _calibration(source: Path, count: int) -> list[Tensor]:
    """Crops of pictures of a folder, or of a file that `hpcm train pack` made, the same at every call: 1×3×256×256 each, in [0, 1]."""
    import tempfile

    from hpcm_codec.training.data import PackedPictures, pack_pictures

    options.refuse_missing(source)
    with tempfile.TemporaryDirectory() as folder:
        pack = source
        if source.is_dir():
            pack = Path(folder) / "pictures.pack"
            pack_pictures(source, pack, CALIBRATION_EDGE)
        return list(PackedPictures(pack).sample(CALIBRATION_EDGE, count).split(1))
