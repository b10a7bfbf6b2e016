"""`hpcm info`: what a .hpcm file, a model or a checkpoint is made of."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Any

import click

from hpcm_codec.batch import streams
from hpcm_codec.errors import HpcmError, UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from hpcm_codec.model.config import ModelConfig

# by whether the decoded pixels follow from the file alone; None: the checkpoint is not here
EXACT_PIXELS = {
    True: "the same on every processor; a GPU may differ by 1 (HPCM_EXACT_PIXELS=1 prevents it)",
    False: "may differ by 1 between machines",
    None: "depend on the checkpoint, which is not known here",
}


@click.command("info")
@click.argument("file", required=False, metavar="[FILE]")
@click.option("--model", "model_name", metavar="NAME|PATH", help="A model preset or a checkpoint, instead of a file.")
@click.option("--json", is_flag=True, help="JSON on stdout.")
def command(file: str | None, model_name: str | None, json: bool) -> None:
    """Show what a .hpcm file, a model or a checkpoint is made of.

    A damaged FILE is shown as far as it can be read; the exit status then says that it is damaged.
    """
    if (file is None) == (model_name is None):
        raise UsageError("info takes a FILE or --model, one of the two", advice="see hpcm info --help")
    if file is not None:
        _show_file(file, json)
    elif model_name is not None:
        described = describe_model(model_name)
        click.echo(json_module.dumps(described, indent=1)) if json else _print_model(described)


# ------------------------------------------------------------------------------------------------------------ a .hpcm file


def _show_file(path: str, json: bool) -> None:
    from hpcm_codec.batch.decoding import refuse_other_kinds

    name = streams.shown(path, "stdin")
    try:
        data = streams.read_input(path, begins=refuse_other_kinds)
        described, problem = describe_file(data)
    except HpcmError as error:
        raise error.in_file(name) from error
    if json:
        click.echo(json_module.dumps({"file": path, **described}, indent=1))
    else:
        _print_file(name, described)
    if problem is not None:
        raise problem.in_file(name)


def describe_file(data: bytes) -> tuple[dict[str, Any], HpcmError | None]:
    """What a .hpcm file says and is made of, and what is wrong with it; raises HpcmError when its header cannot be read."""
    from hpcm_codec.bitstream import container
    from hpcm_codec.bitstream.byte_reader import LARGEST_NUMBER
    from hpcm_codec.weights.registry import has_integer_transforms, known_checkpoints, known_name

    largest = LARGEST_NUMBER**2  # nothing is allocated for the pixels here
    found = container.describe(data, max_pixels=largest)
    header = found.header
    known = known_name(header.checkpoint_id)
    exact_pixels: bool | None = header.profile == "exact"
    if exact_pixels:
        exact_pixels = (
            None if known is None else has_integer_transforms(known_checkpoints()[known], header.checkpoint_id)
        )
    grid = header.grid
    described = {
        "format_version": container.FORMAT_VERSION,
        "width": header.width,
        "height": header.height,
        "components": 1 if header.grey else 3,
        "quality": header.quality,
        "profile": header.profile,
        "checkpoint": {
            "identity": header.checkpoint_id.hex(),
            "known_as": known,
            **({} if known is None else _place(known_checkpoints()[known], header.checkpoint_id)),
        },
        "exact_pixels": exact_pixels,
        "tiles": {
            "count": len(grid),
            "rows": grid.rows,
            "columns": grid.columns,
        },
        "bytes": len(data),
        "bpp": round(8 * len(data) / (header.width * header.height), 5),
        "sound": found.problem is None,
        "scales": found.usable,
        "chunks": [
            {"name": chunk.name, "offset": chunk.offset, "size": chunk.size, "crc_ok": chunk.crc_ok}
            for chunk in found.chunks
        ],
    }
    return described, found.problem


def _place(path: Path, identity: bytes) -> dict[str, int]:
    """Which of a family's models one is, from 1 on the lowest rate first, and of how many; nothing for what is no family."""
    from hpcm_codec.weights.families import read_family

    family = read_family(path)
    if family is None or (number := family.number_of(identity)) is None:
        return {}
    return {"number": number + 1, "of": len(family.members)}


def _scales_in_words(there: dict[str, int], tiles: int) -> str:
    """What can be decoded, for the user's eyes.

    >>> _scales_in_words({"hyper": 4, "s1": 4, "s2": 3, "s3": 0}, 4)
    'hyper, s1 of all tiles; s2 of 3 of 4 tiles; no s3'
    """
    whole = [scale for scale, count in there.items() if count == tiles]
    parts = [f"{scale} of {count} of {tiles} tiles" for scale, count in there.items() if 0 < count < tiles]
    none = [scale for scale, count in there.items() if count == 0]
    first = [f"{', '.join(whole)} of all tiles"] if whole else []
    return "; ".join([*first, *parts, *([f"no {', '.join(none)}"] if none else [])])


def _print_file(name: str, described: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    tiles, checkpoint = described["tiles"], described["checkpoint"]
    colour = "grey" if described["components"] == 1 else "colour"
    profile = {
        "float": "floating point: decodes for certain on the machine that made it",
        "exact": "integers: decodes on every machine",
    }
    click.echo(f"{name}: .hpcm, format version {described['format_version']}")
    click.echo(f"  picture     {described['width']}×{described['height']}, {colour}")
    click.echo(f"  quality     {described['quality']:g}")
    click.echo(f"  size        {described['bytes']} bytes, {described['bpp']:.3f} bits per pixel")
    click.echo(f"  checkpoint  {_checkpoint_in_words(checkpoint)}")
    click.echo(f"  arithmetic  {profile[described['profile']]}")
    click.echo(f"  pixels      {EXACT_PIXELS[described['exact_pixels']]}")
    click.echo(f"  tiles       {tiles['columns']} across, {tiles['rows']} down")
    click.echo(f"  scales      {_scales_in_words(described['scales'], tiles['count'])}")
    table = Table("chunk", box=None, padding=(0, 2))
    for heading in ("offset", "bytes", "CRC-32"):
        table.add_column(heading, justify="right")
    for chunk in described["chunks"]:
        state = "ok" if chunk["crc_ok"] else "damaged or missing"
        table.add_row(chunk["name"], str(chunk["offset"]), str(chunk["size"]), state)
    Console(highlight=False, markup=False).print(table)


# -------------------------------------------------------------------------------------------------- a model or checkpoint


def describe_model(name: str) -> dict[str, Any]:
    """Parameters and cost by part of a preset or a checkpoint, and the checkpoint's identity and training record.

    Raises HpcmError when there is neither under that name.
    """
    from dataclasses import asdict

    from hpcm_codec.model.complexity import PartComplexity, complexity_by_part, total
    from hpcm_codec.model.config import PRESETS
    from hpcm_codec.weights.registry import known_checkpoints

    checkpoint: dict[str, Any] | None = None
    if name in PRESETS and name not in known_checkpoints():
        config = PRESETS[name]
    else:
        try:
            config, checkpoint = _describe_stored(name)
        except HpcmError as error:
            if error.advice is None and not name.endswith(".safetensors"):
                error.advice = f"model presets are {', '.join(PRESETS)}"
            raise
    ours, published = (complexity_by_part(config, as_published=flag) for flag in (False, True))

    def row(part: PartComplexity, as_published: PartComplexity) -> dict[str, float]:
        return {
            "parameters": part.parameters,
            "kmac_per_pixel": round(part.kmac_per_pixel, 3),
            "kmac_per_pixel_with_last_cell": round(as_published.kmac_per_pixel, 3),
        }

    return {
        "model": config.name,
        "parts": {part: row(ours[part], published[part]) for part in ours},
        "total": row(total(ours), total(published)),
        "config": asdict(config),
        "checkpoint": checkpoint,
    }


def _describe_stored(name: str) -> tuple[ModelConfig, dict[str, Any]]:
    """Configuration, identity and training record of a checkpoint; of a family, the records of its models, by their headers alone."""
    from hpcm_codec.bitstream.quality import quality_of
    from hpcm_codec.weights.checkpoints import with_tensors
    from hpcm_codec.weights.families import Family
    from hpcm_codec.weights.registry import known_name
    from hpcm_codec.weights.stored import member_about, read_models

    found = read_models(name)
    if not isinstance(found, Family):
        checkpoint = with_tensors(found)
        identity = checkpoint.identity
        about = {
            "identity": identity.hex(),
            "known_as": known_name(identity),
            **_arithmetic(found.arrays),
            "training": checkpoint.training,
        }
        return checkpoint.config, about
    configs, records = zip(*(member_about(found, number) for number in range(len(found.members))), strict=True)
    members = [
        {"quality": quality_of(code), "identity": member.identity.hex(), "bpp": member.rate, "training": record}
        for code, member, record in zip(found.codes, found.members, records, strict=True)
    ]
    known = known_name(found.members[0].identity)
    kinds = [_arithmetic(found.header(number)) for number in range(len(found.members))]
    all_of_them = {key: all(kind[key] for kind in kinds) for key in kinds[0]}
    return configs[0], {"identity": found.identity.hex(), "known_as": known, **all_of_them, "members": members}


def _arithmetic(tensors: Collection[str]) -> dict[str, bool]:
    """Whether a checkpoint of these tensors has the exact profile, and whether pixels are exact too."""
    from hpcm_codec.weights.identity import FRACTION_PREFIX

    exact = any(name.startswith(FRACTION_PREFIX) for name in tensors)
    return {"exact_profile": exact, "exact_pixels": f"{FRACTION_PREFIX}g_s" in tensors}


def _print_model(described: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    table = Table("part", title=printable(described["model"]))
    for heading in ("parameters", "kMAC/pixel", "+ last cell"):
        table.add_column(heading, justify="right")
    rows = {**described["parts"], "total": described["total"]}
    for part, row in rows.items():
        if part == "total":
            table.add_section()
        figures = (row["kmac_per_pixel"], row["kmac_per_pixel_with_last_cell"])
        table.add_row(part, f"{row['parameters']:,}", *(f"{figure:.1f}" for figure in figures))
    console.print(table)
    click.echo("+ last cell: counts the context cell after the very last step too, as HPCM's published figures do;")
    click.echo("nothing uses its output, so it is not computed here.")
    checkpoint = described["checkpoint"]
    if checkpoint is None:
        click.echo("A preset without a checkpoint: train one with `hpcm train run`.")
        return
    click.echo(f"checkpoint  {_checkpoint_in_words(checkpoint)}")
    if checkpoint["exact_profile"]:
        click.echo("arithmetic  integers: its files decode on every machine")
        click.echo(f"pixels      {EXACT_PIXELS[checkpoint['exact_pixels']]}")
    else:
        click.echo("arithmetic  floating point: its files decode for certain on the machine that made them")
    for member in checkpoint.get("members", ()):
        click.echo(
            f"quality {member['quality']:g}: model {member['identity']}, {member['bpp']:.4f} bpp of a built-in picture"
        )
        _print_training(member["training"])
    if "members" in checkpoint:
        click.echo("A family: -q chooses the model, the nearest of these qualities, the higher of two.")
    else:
        _print_training(checkpoint["training"])


def _print_training(record: dict[str, Any]) -> None:
    for key, value in record.items():
        click.echo(f"  {printable(key)}: {json_module.dumps(value)}")


def _checkpoint_in_words(checkpoint: dict[str, Any]) -> str:
    """Identity, the name under which it is found, and which of a family's it is."""
    known = checkpoint["known_as"]
    place = f", model {checkpoint['number']} of {checkpoint['of']}" if "number" in checkpoint else ""
    return f"{checkpoint['identity']}, {f'known here as {known}{place}' if known else 'not known here'}"
