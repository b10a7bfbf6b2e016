"""`hpcm train`: pack pictures, train a model on them, measure and export the result; the work is done in hpcm_codec.training."""

from __future__ import annotations

import dataclasses
import json as json_module
from pathlib import Path

import click

from hpcm_codec.cli import options
from hpcm_codec.cli.train_run import run
from hpcm_codec.system.threads import set_threads

MIB = 1 << 20


@click.group("train")
def command() -> None:
    """Train a model on your own pictures.

    `hpcm train run --data photos/ --out run --minutes 240` trains phase1-lite; run/weights.safetensors is then a checkpoint for
    `hpcm encode --model`. In several processes: `torchrun --nproc-per-node 2 -m hpcm_codec train run …`.
    """


command.add_command(run)


@command.command("pack")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The packed file.")
@click.option(
    "--smallest-side", type=click.IntRange(min=1), default=128, show_default=True, help="Leave out smaller ones."
)
@click.option("-f", "--force", is_flag=True, help="Overwrite FILE.")
def pack(folder: Path, output: Path, smallest_side: int, force: bool) -> None:
    """Decode all pictures below FOLDER into one FILE, from which training reads fast. What is left out is named on stderr."""
    from hpcm_codec.training.data import pack_pictures

    options.refuse_missing(folder)
    options.refuse_existing(output, force)
    left_out = options.LeftOut()
    count = pack_pictures(folder, output, smallest_side, left_out)
    click.echo(f"{output}: {count} pictures, {output.stat().st_size / 1e6:.0f} MB{left_out.in_words}")


@command.command("validate")
@click.argument("weights", metavar="RUN|WEIGHTS")
@click.option("--data", required=True, metavar="DIR", help="The validation pictures.")
@click.option("-q", "--qualities", default="10,40,70,100", show_default=True, metavar="Q,Q,…")
@click.option("--against", multiple=True, metavar="CURVE.json", help="Print the BD-rate against earlier results.")
@click.option("--json", "output", metavar="OUT", help="Write the results, for a later --against.")
@click.option("-f", "--force", is_flag=True, help="Overwrite OUT.")
@options.running
@click.pass_context
def validate(
    context: click.Context,
    weights: str,
    data: str,
    qualities: str,
    against: tuple[str, ...],
    output: str | None,
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Code the validation pictures with a run's weights: real files, really decoded, as `hpcm eval` does."""
    from hpcm_codec.cli.eval import command as evaluate
    from hpcm_codec.training.light import weights_of

    context.invoke(
        evaluate,
        dataset=data,
        model=weights_of(weights),
        qualities=qualities,
        anchors=against,
        output=output,
        force=force,
        device=device,
        threads=threads,
    )


@command.command("score")
@click.argument("weights", nargs=-1, required=True, metavar="RUN|WEIGHTS...")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="The validation pictures."
)
@click.option("--json", is_flag=True, help="A line of JSON for each on stdout.")
@options.running
def score(weights: tuple[str, ...], data: Path, json: bool, device: str, threads: int | None) -> None:
    """Estimate the training loss on the middle 256×256 pixels of validation pictures, without writing files.

    The score is the mean of the loss over the lowest, the middle and the highest rate; lower is better. Scores are only comparable
    on the same pictures. `hpcm train validate` measures real files.
    """
    options.check_device(device)
    options.refuse_missing(data)
    import torch

    from hpcm_codec.cli.train_run import torch_device
    from hpcm_codec.training.light import load_weights
    from hpcm_codec.training.scoring import middles
    from hpcm_codec.training.scoring import score as score_of

    set_threads(threads)
    pictures = middles(data)
    for name in weights:
        model = load_weights(name).build_model().to(torch_device(device))
        found = score_of(model.to(memory_format=torch.channels_last), pictures)  # type: ignore[call-overload]
        if json:
            click.echo(json_module.dumps({"weights": name, "pictures": len(pictures), **dataclasses.asdict(found)}))
            continue
        click.echo(f"{name}: score {found.value:.4f} on {len(pictures)} pictures")
        for row in found.positions:
            click.echo(
                f"  position {row.position:<4g} loss {row.loss:.4f}  {row.bits_per_pixel:.4f} bpp  {row.psnr:.2f} dB"
            )


@command.command("light")
@click.argument("weights", metavar="RUN|WEIGHTS")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The file to write."
)
@click.option(
    "--pieces", type=click.FloatRange(min=0.001), metavar="MIB", help="Cut a larger file into FILE.1of2, FILE.2of2, …"
)
@click.option("-f", "--force", is_flag=True, help="Overwrite FILE, or its pieces.")
def light(weights: str, output: Path, pieces: float | None, force: bool) -> None:
    """Write the averaged weights in bfloat16, to move them to another machine.

    `hpcm train run --from FILE` begins with them there, joining the pieces; what the optimiser has gathered is not in them.
    """
    from hpcm_codec.training.light import export_light, pieces_of

    for earlier in [output, *pieces_of(output)]:
        options.refuse_existing(earlier, force)
    for path in export_light(weights, output, None if pieces is None else int(pieces * MIB)):
        click.echo(f"{path}: {path.stat().st_size} bytes")
