"""Make the README's picture: the same crop of a photograph, as JPEG and as .hpcm of the same file size.

    python tools/compare_with_jpeg.py IMAGE -q QUALITY -o docs/compare.png --crop X,Y,W,H [--zoom 2] [--model NAME] [-f]

The whole picture is coded; the crop only chooses what is shown. JPEG (4:2:0, optimised, progressive) is given the
lowest quality whose file is not smaller than ours, so a difference in size is in JPEG's favour.
"""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hpcm_codec.errors import HpcmError, UsageError
from hpcm_codec.evaluation.codecs import PillowCodec
from hpcm_codec.images import Picture, Samples, read_picture
from hpcm_codec.images.fidelity import psnr
from hpcm_codec.system.files import write_atomically

GAP = 8  # pixels between and around the crops
LINE = 18  # pixels per line of a label
TITLE_SIZE, DETAIL_SIZE = 15, 13  # of the letters, in pixels
PAPER, INK, PALE_INK = "white", "black", "#555555"
NARROWEST = 200  # pixels a label needs


@dataclass(frozen=True)
class Panel:
    """One of the pictures side by side: title and detail are the two lines of its label, pixels uint8 H×W×C."""

    title: str
    detail: str
    pixels: Samples


def jpeg_not_smaller_than(picture: Picture, size: int) -> tuple[int, bytes]:
    """(quality, file) of the smallest JPEG of at least `size` bytes; of the largest there is when none has as many."""
    codec = PillowCodec("jpeg")
    files = [(quality, codec.encode(picture, quality)) for quality in range(1, 101)]
    large_enough = [entry for entry in files if len(entry[1]) >= size]
    if large_enough:
        return min(large_enough, key=lambda entry: (len(entry[1]), entry[0]))
    return max(files, key=lambda entry: len(entry[1]))


def make_panels(picture: Picture, quality: float, model: str) -> list[Panel]:
    """Original, JPEG and ours, whole pictures."""
    from hpcm_codec.codec import load_codec

    codec = load_codec(model)
    ours = codec.encode(picture, quality)
    jpeg_quality, jpeg = jpeg_not_smaller_than(picture, len(ours))
    pixels = picture.pixels
    panels = [Panel("Original", f"{pixels.size:,} bytes of samples", pixels)]
    for title, data, decoded in (
        (f"JPEG, quality {jpeg_quality}", jpeg, PillowCodec("jpeg").decode(jpeg).pixels),
        (f"hpcm, quality {quality:g}", ours, codec.decode(ours).pixels),
    ):
        bpp = 8 * len(data) / (picture.width * picture.height)
        panels.append(Panel(title, f"{len(data):,} bytes, {bpp:.2f} bpp, {psnr(pixels, decoded):.2f} dB", decoded))
    return panels


def draw(panels: list[Panel], crop: tuple[int, int, int, int], zoom: int) -> Image.Image:
    """The crops (x, y, width, height in pixels) side by side, each over its label, enlarged without smoothing."""
    x, y, width, height = crop
    shown_width, shown_height = max(width * zoom, NARROWEST), height * zoom
    sheet = Image.new(
        "RGB", (GAP + len(panels) * (shown_width + GAP), GAP + shown_height + GAP // 2 + 2 * LINE + GAP), PAPER
    )
    pen = ImageDraw.Draw(sheet)
    for place, panel in enumerate(panels):
        part = np.broadcast_to(panel.pixels, (*panel.pixels.shape[:2], 3))[y : y + height, x : x + width]
        size = (width * zoom, shown_height)
        image = Image.fromarray(np.ascontiguousarray(part)).resize(size, Image.Resampling.NEAREST)
        left = GAP + place * (shown_width + GAP)
        sheet.paste(image, (left, GAP))
        top = GAP + shown_height + GAP // 2
        pen.text((left, top), panel.title, INK, ImageFont.load_default(TITLE_SIZE))
        pen.text((left, top + LINE), panel.detail, PALE_INK, ImageFont.load_default(DETAIL_SIZE))
    return sheet


def write_sheet(panels: list[Panel], crop: tuple[int, int, int, int], zoom: int, output: str, force: bool) -> None:
    """Draw the crops into a PNG file; raises FileError when it exists and must not be replaced, or cannot be written."""
    buffer = io.BytesIO()
    draw(panels, crop, zoom).save(buffer, "PNG", optimize=True)
    write_atomically(output, buffer.getvalue(), overwrite=force)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The arguments that the tools for such pictures have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("-q", "--quality", type=float, default=50.0, help="of the .hpcm file, 0 to 100")
    parser.add_argument("-o", "--output", required=True, help="the PNG file to make")
    parser.add_argument("--crop", metavar="X,Y,W,H", help="the part that is shown (default: 256×256 from the middle)")
    parser.add_argument("--model", default="phase1-lite")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite the output")
    return parser


def parse_crop(text: str | None, picture: Picture) -> tuple[int, int, int, int]:
    """(x, y, width, height) of "X,Y,W,H", or the middle of the picture; UsageError when it does not lie inside."""
    if text is None:
        width, height = min(256, picture.width), min(256, picture.height)
        return (picture.width - width) // 2, (picture.height - height) // 2, width, height
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--crop takes X,Y,W,H in whole pixels, not {text!r}") from None
    if min(x, y) < 0 or min(width, height) < 1 or x + width > picture.width or y + height > picture.height:
        raise UsageError(f"the crop {text} does not lie inside {picture.width}×{picture.height} pixels")
    return x, y, width, height


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("--zoom", type=int, choices=range(1, 9), default=1, help="enlarge the crops this many times")
    options = parser.parse_args(arguments)
    try:
        picture = Picture(read_picture(options.image).pixels)
        crop = parse_crop(options.crop, picture)
        panels = make_panels(picture, options.quality, options.model)
        write_sheet(panels, crop, options.zoom, options.output, options.force)
    except HpcmError as error:
        print(f"compare_with_jpeg: {error}", file=sys.stderr)
        return error.exit_status
    for panel in panels:
        print(f"{panel.title}: {panel.detail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
