"""A program that has used the codec may fork: its children encode and decode, or say at once what to do instead."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, small_photograph
from hpcm_codec import Codec, HpcmError, Picture, decode, encode
from hpcm_codec.engines.torch_engine import CONTEXT_THREADS

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
SECONDS = 60  # of a child that works; one that hangs never ends
PROGRAM = """
import sys, multiprocessing
import numpy as np, torch
import hpcm_codec
from torch.utils.data import DataLoader

pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)

def work(quality):
    if sys.argv[2] == "threads":
        torch.set_num_threads(2)
    data = hpcm_codec.encode(pixels, quality)
    return len(data), hpcm_codec.decode(data).size

class Data:
    def __len__(self):
        return 3
    def __getitem__(self, place):
        return work(20 * place)[0]

torch.set_num_threads(2)
data = hpcm_codec.encode(pixels, 50)
assert hpcm_codec.decode(data).size == (96, 64)
if sys.argv[1] == "pool":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(work, [10, 40, 70, 100]))
else:
    print(list(DataLoader(Data(), num_workers=2, multiprocessing_context="fork")))
"""


@pytest.mark.parametrize("threads", ["as-they-are", "threads"])
@pytest.mark.parametrize("way", ["pool", "loader"])
def test_children_of_a_program_that_has_used_the_codec_use_it_too(way: str, threads: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, way, threads], capture_output=True, text=True, cwd=ROOT, timeout=2 * SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(96, 64)" if way == "pool" else "tensor") == (4 if way == "pool" else 3)


def in_a_child(work: Callable[[], object]) -> object:
    """What a function returns, or the error it raises, in a forked child."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        try:
            theirs.send(work())
        except HpcmError as error:
            theirs.send(error)

    process = context.Process(target=child, daemon=True)
    process.start()
    try:
        assert ours.poll(SECONDS), "it hangs"
        return ours.recv()
    finally:
        process.kill()
        process.join()


def test_a_child_decodes_what_its_parent_decodes(codec: Codec) -> None:
    data = codec.encode(Picture(small_photograph()), 60)
    found = in_a_child(lambda: decode(data, codec, output="numpy"))
    assert np.abs(found.astype(int) - decode(data, codec, output="numpy")).max() <= 1  # type: ignore[attr-defined]


def test_the_float_profile_says_that_it_cannot_and_what_can(codec: Codec) -> None:
    assert CONTEXT_THREADS > 1
    pixels = small_photograph()
    encode(pixels, 50, profile="float")
    error = in_a_child(lambda: encode(pixels, 50, profile="float"))
    assert isinstance(error, HpcmError) and "spawn" in str(error)
