"""Encode every photograph of a folder, and say what that saved: `python examples/encode_folder.py PHOTOS SMALL [QUALITY]`.

The command `hpcm encode PHOTOS -o SMALL` does the same in several processes, and can be resumed; this shows the Python interface.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hpcm_codec

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def main(photos: Path, small: Path, quality: float = 50.0) -> int:
    """Encode the pictures of one folder into another; returns how many could not be encoded."""
    codec = hpcm_codec.load_codec()  # loaded once, used for every picture
    small.mkdir(parents=True, exist_ok=True)
    before = after = failed = 0
    for path in sorted(photos.iterdir()):
        if path.suffix.lower() not in EXTENSIONS:
            continue
        try:
            data = hpcm_codec.encode(path, quality, codec)
        except hpcm_codec.HpcmError as error:  # says which file, why, and what to do
            print(error, file=sys.stderr)
            failed += 1
            continue
        (small / f"{path.stem}.hpcm").write_bytes(data)
        before, after = before + path.stat().st_size, after + len(data)
        print(f"{path.name}: {path.stat().st_size} → {len(data)} bytes")
    if before:
        print(f"in all {before} → {after} bytes, {100 * after / before:.1f}%")
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:4])) > 0)
