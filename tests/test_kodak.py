"""All of Kodak through separate encoder and decoder processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcm_codec.images import read_picture

ENCODER = """
import sys
from pathlib import Path
import numpy
from hpcm_codec.codec import load_codec
from hpcm_codec.bitstream.container import parse_header
from hpcm_codec.images import read_picture
codec, out = load_codec(device="cpu"), Path(sys.argv[2])
for path in sorted(Path(sys.argv[1]).glob("*.png")):
    encoded = codec.encode_with_latents(read_picture(path), 40)
    (out / f"{path.stem}.hpcm").write_bytes(encoded.data)
    numpy.save(out / f"{path.stem}.npy", codec.reconstruct(encoded.latents, parse_header(encoded.data)))
"""


@pytest.mark.slow
def test_all_of_kodak_decodes_in_another_process_to_the_encoders_own_pixels(kodak: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", ENCODER, str(kodak), str(tmp_path)], check=True)
    files = sorted(tmp_path.glob("*.hpcm"))
    assert len(files) == 24
    decoded = tmp_path / "decoded"
    command = [sys.executable, "-m", "hpcm_codec", "decode", *map(str, files), "-o", f"{decoded}/", "--quiet"]
    subprocess.run(command, check=True)
    for file in files:
        pixels = read_picture(decoded / f"{file.stem}.png").pixels
        assert np.array_equal(pixels, np.load(file.with_suffix(".npy"))), file.stem
        original = read_picture(kodak / f"{file.stem}.png").pixels
        assert np.mean((pixels.astype(float) - original) ** 2) < 255**2 / 10**2.4, f"{file.stem} is under 24 dB"


SYMBOLS = """
import json, sys
from pathlib import Path
from hpcm_codec.codec import load_codec
from hpcm_codec.images import read_picture
codec, out = load_codec(device="cpu", profile="exact"), Path(sys.argv[2])
for number, path in enumerate(sorted(Path(sys.argv[1]).glob("*.png"))[:: int(sys.argv[3])]):
    file = out / f"{path.stem}.hpcm"
    if not file.exists():
        file.write_bytes(codec.encode(read_picture(path), (0, 52.5, 100)[number % 3]))
print(json.dumps([codec.symbol_digest(file.read_bytes()) for file in sorted(out.glob("*.hpcm"))]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_kodak_reads_the_same_without_compiled_operators_on_one_thread(kodak: Path, tmp_path: Path, every: int) -> None:
    """Every third (or each) picture at one of three qualities: int16 products in C++ on two threads, float64 in PyTorch on one."""
    runs = []
    for settings in ({"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "1", "HPCM_OPS": "torch"}):
        command = [sys.executable, "-c", SYMBOLS, str(kodak), str(tmp_path), str(every)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **settings})
        runs.append(json.loads(done.stdout))
    assert len(runs[0]) == 24 // every
    assert runs[0] == runs[1]
