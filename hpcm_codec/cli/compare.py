"""`hpcm compare`: a page that shows the user's own pictures, as our codec and the others code them at equal file size."""

from __future__ import annotations

from pathlib import Path

import click

from hpcm_codec.cli import options
from hpcm_codec.constants import DEFAULT_MAX_PIXELS
from hpcm_codec.system.threads import set_threads

DEFAULT_CODECS = "hpcm,jpeg,webp,avif,jpeg2000,jxl"


@click.command("compare")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "-o", "--output", default="compare.html", show_default=True, metavar="OUT.html", help="The page to write."
)
@click.option("-q", "--quality", type=float, metavar="0..100", help="Ours.  [default: 50]")
@click.option("--size", metavar="BYTES", help="All files of at most this size (60000, 60KB), instead of -q.")
@click.option("--bpp", type=float, metavar="BITS", help="The same in bits per pixel.")
@click.option("--psnr", type=float, metavar="DB", help="Ours of at least this fidelity, instead of -q.")
@click.option(
    "--codec",
    "kinds",
    multiple=True,
    default=(DEFAULT_CODECS,),
    metavar="NAME,NAME…",
    help="Which, the first sets the size.",
)
@options.perceptual
@options.model("The checkpoint.  [default: phase1-lite]")
@options.profile
@options.max_pixels
@options.running
@click.option("-f", "--force", is_flag=True, help="Overwrite OUT.html.")
def command(
    images: tuple[str, ...],
    output: str,
    quality: float | None,
    size: str | None,
    bpp: float | None,
    psnr: float | None,
    kinds: tuple[str, ...],
    perceptual: str | None,
    model: str | None,
    profile: str,
    max_pixels: int | None,
    device: str,
    threads: int | None,
    force: bool,
) -> None:
    """Write a page with sliders between the original, ours, and the other codecs at ours' file size.

    The page is one file that needs no network. A codec that is not installed is named and left out.
    """
    from hpcm_codec.evaluation.perceptual import parse_perceptual
    from hpcm_codec.evaluation.report import compare_page
    from hpcm_codec.evaluation.subjects import find_subjects, parse_kinds
    from hpcm_codec.evaluation.versions import versions_of
    from hpcm_codec.images import read_picture
    from hpcm_codec.system.files import write_atomically

    target = options.target_of(quality, size, bpp, psnr)
    wanted = parse_kinds(kinds)
    measures = parse_perceptual(perceptual)
    options.refuse_existing(output, force)
    options.check_device(device)
    set_threads(threads)
    pictures = [read_picture(image, max_pixels=max_pixels or DEFAULT_MAX_PIXELS) for image in images]
    subjects = find_subjects(wanted, model, device, profile, lambda line: click.echo(line, err=True))
    sliders = []
    for image, picture in zip(images, pictures, strict=True):
        slider = versions_of(Path(image).name, picture, subjects, target, measures)
        click.echo(f"{slider.name}")
        for version in slider.versions[1:]:
            click.echo(f"  {version.name}: {version.in_words()}")
        sliders.append(slider)
    descriptions = [f"{subject.name}: {subject.description}" for subject in subjects]
    write_atomically(output, compare_page(sliders, descriptions).encode(), overwrite=force)
    click.echo(f"open {output} in a browser")
