"""Make the README's picture: what the first bytes of a file show, the same crop at several shares of its length.

    python tools/progressive.py IMAGE -q QUALITY -o docs/progressive.png --crop X,Y,W,H [--shares 5,20,100] [--model NAME] [-f]

The file is cut and decoded as `hpcm decode --partial` does; metadata is left out, so that all its bytes are the picture's.
"""

from __future__ import annotations

import sys

from compare_with_jpeg import Panel, parse_crop, parser_of, write_sheet
from hpcm_codec.errors import HpcmError, UsageError
from hpcm_codec.images import Picture, read_picture
from hpcm_codec.images.fidelity import psnr


def make_panels(picture: Picture, quality: float, model: str, shares: list[float]) -> list[Panel]:
    """Whole pictures, as they are decoded of that percentage of the file each."""
    from hpcm_codec.codec import load_codec

    codec = load_codec(model)
    data = codec.encode(picture, quality)
    panels = []
    for share in shares:
        cut = data[: round(len(data) * share / 100)]
        decoded = codec.decode(cut, partial=True).pixels
        detail = f"{len(cut):,} bytes, {psnr(picture.pixels, decoded):.2f} dB"
        panels.append(Panel(f"{share:g}% of the file", detail, decoded))
    return panels


def parse_shares(text: str) -> list[float]:
    """The percentages of "5,20,100"; UsageError for others than more than 0 to 100."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 100 for share in shares):
        raise UsageError(f"--shares takes percentages such as 5,20,100, not {text!r}")
    return shares


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("--shares", metavar="P,P,P", default="5,20,100", help="percentages of the file (5,20,100)")
    options = parser.parse_args(arguments)
    try:
        shares = parse_shares(options.shares)
        picture = Picture(read_picture(options.image).pixels)
        crop = parse_crop(options.crop, picture)
        panels = make_panels(picture, options.quality, options.model, shares)
        write_sheet(panels, crop, 1, options.output, options.force)
    except HpcmError as error:
        print(f"progressive: {error}", file=sys.stderr)
        return error.exit_status
    for panel in panels:
        print(f"{panel.title}: {panel.detail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
