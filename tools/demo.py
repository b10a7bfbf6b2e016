"""What `make demo` shows: a photograph to a .hpcm file and back, each by its own command in its own process.

python tools/demo.py [IMAGE] [-q QUALITY] [--into FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hpcm_codec.errors import HpcmError
from hpcm_codec.images import read_picture
from hpcm_codec.images.fidelity import psnr

ROOT = Path(__file__).resolve().parent.parent


def hpcm(*arguments: str) -> dict[str, Any]:
    """Run `hpcm` and return its line of JSON; leaves with its exit status when it fails."""
    print("$ hpcm", *arguments)
    done = subprocess.run(
        [sys.executable, "-m", "hpcm_codec", *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _from_here(path: Path) -> Path:
    """The path as a user in this directory would write it."""
    here = Path.cwd()
    return path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path


def main() -> None:
    """Parse, encode, decode, compare, print."""
    parser = argparse.ArgumentParser(description="Encode and decode a photograph.")
    parser.add_argument("image", nargs="?", type=Path, default=ROOT / "examples" / "coffee.png")
    parser.add_argument("-q", "--quality", type=float, default=50)
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "demo", help="folder for the two files")
    settings = parser.parse_args()
    settings.image, settings.into = _from_here(settings.image), _from_here(settings.into)
    settings.into.mkdir(parents=True, exist_ok=True)
    compressed = settings.into / f"{settings.image.stem}.hpcm"
    copy = settings.into / f"{settings.image.stem}.png"

    encoded = hpcm("encode", str(settings.image), "-o", str(compressed), "-q", f"{settings.quality:g}", "-f")
    decoded = hpcm("decode", str(compressed), "-o", str(copy), "-f")

    quality = psnr(read_picture(settings.image).pixels, read_picture(copy).pixels)
    print(f"""
{settings.image.name}, {encoded["width"]}×{encoded["height"]}, at quality {encoded["quality"]:g}
  size    {encoded["bytes"]} bytes, {encoded["bpp"]:.3f} bits per pixel, {100 * encoded["ratio"]:.1f}% of the file it was
  PSNR    {quality:.2f} dB
  encode  {encoded["seconds"]:.2f} s   (both with loading the program and the model)
  decode  {decoded["seconds"]:.2f} s
  files   {compressed}
          {copy}""")


if __name__ == "__main__":
    try:
        main()
    except HpcmError as error:
        sys.exit(f"demo: {error}")
