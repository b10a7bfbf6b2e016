"""`hpcm checkpoints`: list, check, export and import weights."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcm_codec.batch.jobs import refuse_inputs
from hpcm_codec.cli import options
from hpcm_codec.cli.main import say
from hpcm_codec.errors import HpcmError, UsageError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from hpcm_codec.weights.families import Family
    from hpcm_codec.weights.stored import StoredCheckpoint

CALIBRATION_EDGE = 256
CALIBRATION_PICTURES = 64

PACKED = {f"int{bits}": bits for bits in (12, 11, 10, 9)}
DTYPES = ("float16", "bfloat16", "float32", *PACKED)

# options of the commands that write a checkpoint
_output = click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
_pictures = click.option(
    "--pictures",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"How many of them, cut to {CALIBRATION_EDGE}×{CALIBRATION_EDGE}.  [default: {CALIBRATION_PICTURES}]",
)
_force = click.option("-f", "--force", is_flag=True, help="Overwrite an existing file.")


@click.group("checkpoints")
def command() -> None:
    """List, check, export and import weights."""


@command.command("list")
@click.option("--json", is_flag=True, help="JSON on stdout.")
def list_command(json: bool) -> None:
    """List the checkpoints that the program finds.

    Those that came with it, then those in your own folder (HPCM_MODELS), with the identities that files name.
    """
    from hpcm_codec.weights.families import kept_identities, read_family
    from hpcm_codec.weights.registry import known_checkpoints

    def described(name: str, path: Path) -> dict[str, Any]:
        more: dict[str, Any] = {}
        try:
            if (family := read_family(path)) is None:
                (identity,) = kept_identities(path)
            else:
                identity = family.identity
                more["members"] = _members_of(family)
        except HpcmError:
            return {"name": name, "identity": "damaged", "bytes": path.stat().st_size, "path": str(path)}
        return {"name": name, "identity": identity.hex(), "bytes": path.stat().st_size, "path": str(path), **more}

    found = [described(name, path) for name, path in known_checkpoints().items()]
    if json:
        click.echo(json_module.dumps(found, indent=1))
        return
    for entry in found:
        click.echo(f"{entry['name']}  {entry['identity']}  {entry['bytes']} bytes  {entry['path']}")
        for member in entry.get("members", ()):
            click.echo(f"  quality {member['quality']:g}  {member['identity']}")


@command.command("show")
@click.argument("name", metavar="NAME|PATH")
def show_command(name: str) -> None:
    """Print configuration and training record.

    As JSON; those of a family one by one (see also hpcm info --model).
    """
    from hpcm_codec.weights.checkpoints import each_checkpoint
    from hpcm_codec.weights.families import read_family
    from hpcm_codec.weights.registry import find_checkpoint

    shown = [
        {
            "identity": checkpoint.identity.hex(),
            "config": json_module.loads(checkpoint.config.to_json()),
            "training": checkpoint.training,
        }
        for checkpoint in each_checkpoint(name)
    ]
    family = read_family(find_checkpoint(name))
    if family is None:
        click.echo(json_module.dumps(shown[0], indent=1))
        return
    members = [{**member, **more} for member, more in zip(_members_of(family), shown, strict=True)]
    click.echo(json_module.dumps({"identity": family.identity.hex(), "members": members}, indent=1))


@command.command("verify")
@click.argument("names", nargs=-1, required=True, metavar="NAME|PATH...")
def verify_command(names: tuple[str, ...]) -> None:
    """Check that checkpoints are sound.

    They load, fit their configuration, hold finite weights and whole tables, and make integers where there is an exact profile; of a
    family, every member.
    """
    from hpcm_codec.engines.verifying import verify
    from hpcm_codec.weights.checkpoints import each_checkpoint

    for name in names:
        for checkpoint in each_checkpoint(name):
            verify(checkpoint, name)
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
    "-q", "--quality", type=float, metavar="0..100", help="Of a family, only the member that this quality chooses."
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
    source: str,
    output: Path,
    dtype: str,
    quality: float | None,
    exact: bool,
    calibrate: Path | None,
    pictures: int | None,
    force: bool,
) -> None:
    """Write a copy in a smaller type, for shipping.

    It holds the inference weights only. It is another model, with another identity. A family becomes a family; with -q,
    a checkpoint of one of its models.
    """
    import torch

    from hpcm_codec.engines.exporting import export_loaded
    from hpcm_codec.engines.families import export_family
    from hpcm_codec.weights.checkpoints import with_tensors
    from hpcm_codec.weights.families import Family
    from hpcm_codec.weights.registry import find_checkpoint
    from hpcm_codec.weights.stored import read_models

    if exact != (calibrate is not None):
        raise UsageError("--exact and --calibrate go together", advice="name a folder of photographs with --calibrate")
    _check_output(output, force, find_checkpoint(source), *_calibration_files(calibrate, pictures))
    calibration = _calibration(calibrate, pictures)
    found: StoredCheckpoint | Family = read_models(source)
    if quality is not None:
        found = _member_at(found, quality)
    bits = PACKED.get(dtype)
    plain = torch.float16 if bits is not None else getattr(torch, dtype)
    if isinstance(found, Family):
        family = export_family(found, output, plain, calibration, bits)
        identity, models = family.identity, f"{len(family.members)} models, "
    else:
        identity, models = export_loaded(with_tensors(found), source, output, plain, calibration, bits), ""
    click.echo(f"{output}: {models}{output.stat().st_size} bytes, identity {identity.hex()}")


@command.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@_output
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FOLDER|PACK",
    help="With an exact profile, as of export --exact: its units are found with these pictures, its weights become float16.",
)
@_pictures
@_force
def import_command(
    files: tuple[Path, ...], output: Path, calibrate: Path | None, pictures: int | None, force: bool
) -> None:
    """Make a checkpoint of published HPCM weights.

    FILE is a .pth.tar of HPCM-Base or HPCM-Large, github.com/lyq133/LIC-HPCM.
    A published file holds one rate. One FILE gives a checkpoint of that rate, of which -q changes nothing. Several, of one network, give a
    family: -q 0 is the lowest rate, -q 100 the highest, others the nearest. Their order is found by what a built-in picture takes.
    FILE is read without running anything in it.
    """
    from hpcm_codec.engines.exporting import import_published
    from hpcm_codec.engines.families import import_family, out_of_order

    for file in files:
        options.refuse_missing(file)
    _check_output(output, force, *files, *_calibration_files(calibrate, pictures))
    calibration = _calibration(calibrate, pictures)
    if calibration is not None:
        models = "" if len(files) == 1 else f" of {len(files)} models, one after the other"
        say(f"finding the integers' units{models}: a minute or two for a network of full size")
    if len(files) == 1:
        kind, identity = import_published(files[0], output, calibration)
        click.echo(f"{output}: {kind}, {output.stat().st_size} bytes, identity {identity.hex()}")
        return
    family, sources = import_family(files, output, calibration)
    size = output.stat().st_size
    click.echo(f"{output}: {sources[0].kind}, {len(files)} rates, {size} bytes, identity {family.identity.hex()}")
    for member, source in zip(_members_of(family), sources, strict=True):
        quality, identity_shown = f"quality {member['quality']:g}", member["identity"]
        click.echo(f"  {quality:<13} {member['bpp']:.4f} bpp  {identity_shown}  {printable(str(source.source))}")
    click.echo("bpp: of a built-in picture, by which they were ordered")
    for line in out_of_order(sources):
        click.echo(f"hpcm: {line}", err=True)


def _members_of(family: Family) -> list[dict[str, Any]]:
    """Quality, identity and rate of each member."""
    from hpcm_codec.bitstream.quality import quality_of

    return [
        {"quality": quality_of(code), "identity": member.identity.hex(), "bpp": member.rate}
        for code, member in zip(family.codes, family.members, strict=True)
    ]


def _member_at(found: StoredCheckpoint | Family, quality: float) -> StoredCheckpoint:
    """The member of a family that a quality chooses; raises UsageError for what is no family."""
    from hpcm_codec.bitstream.quality import quality_code
    from hpcm_codec.weights.families import Family
    from hpcm_codec.weights.stored import read_member

    if not isinstance(found, Family):
        raise UsageError("-q is for families: this checkpoint is one model", advice="leave out -q")
    return read_member(found, found.number_at(quality_code(quality)))


def _check_output(output: Path, force: bool, *inputs: Path) -> None:
    """Raise UsageError or FileError, before anything is read, where the output would overwrite an input, or a file without -f."""
    refuse_inputs([str(output)], map(str, inputs))
    options.refuse_existing(output, force)


def _calibration_files(source: Path | None, count: int | None) -> list[Path]:
    """The files that --calibrate and --pictures read.

    Raises FileError for a folder without pictures, or where there is nothing, UsageError for --pictures alone.
    """
    from hpcm_codec.training.data import image_files

    if source is None:
        if count is not None:
            advice = "name a folder of photographs with --calibrate, or leave it out"
            raise UsageError("--pictures is for --calibrate", advice=advice)
        return []
    options.refuse_missing(source)
    return image_files(source) if source.is_dir() else [source, source.with_name(f"{source.name}.json")]


def _calibration(source: Path | None, count: int | None) -> list[Tensor] | None:
    """Crops of pictures of a folder, or of a file that `hpcm train pack` made, the same at every call: 1×3×256×256 each, in [0, 1].

    What is left out is named on stderr. None without a source.
    """
    import tempfile

    from hpcm_codec.training.data import PackedPictures, pack_pictures

    if source is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        pack = source
        if source.is_dir():
            pack = Path(folder) / "pictures.pack"
            pack_pictures(source, pack, CALIBRATION_EDGE, options.LeftOut())
        return list(PackedPictures(pack).sample(CALIBRATION_EDGE, count or CALIBRATION_PICTURES).split(1))
