"""Train on pictures of your own for a minute: `python examples/train_on_own_pictures.py PICTURES RUN [MINUTES]`.

Goes on from the shipped weights and leaves RUN/weights.safetensors, a model of its own: `hpcm encode --model RUN/weights.safetensors …`. A
minute shows that everything works, and makes nothing better; docs/training.md says what a real run takes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def hpcm(*arguments: object) -> None:
    """Run a command of the program; raises CalledProcessError when it fails."""
    subprocess.run([sys.executable, "-m", "hpcm_codec", *map(str, arguments)], check=True)


def main(pictures: Path, run: Path, length: tuple[object, ...] = ("--minutes", 1)) -> None:
    """Pack the pictures, train, and encode one of them with the new weights."""
    run.mkdir(parents=True, exist_ok=True)
    pack = run / "pictures.pack"
    hpcm("train", "pack", pictures, "-o", pack)
    # small crops; pictures of fewer than 128 pixels on a side are left out
    hpcm("train", "run", "--data", pack, "--out", run, "--from", "phase1-lite", "--crops", "0:128x2", *length)
    first = min(path for path in pictures.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    hpcm("encode", first, "-o", run / "first.hpcm", "--model", run / "weights.safetensors", "-f")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), ("--minutes", *(sys.argv[3:4] or ["1"])))
