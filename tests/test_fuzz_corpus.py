"""Every input that fuzzing started from or found still ends in a result or an error of ours, soon and in bounded memory."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parent.parent / "fuzz"
sys.path.append(str(FUZZ))
import seeds  # noqa: E402
import targets  # noqa: E402

SECONDS = 20  # for one input; they take a few hundredths, but the first one makes the model
INPUTS = [(target, path) for target in targets.TARGETS for path in sorted((FUZZ / "corpus" / target).iterdir())]


@pytest.mark.parametrize(("target", "path"), INPUTS, ids=lambda part: part.name if isinstance(part, Path) else part)
def test_no_input_ends_in_anything_but_a_result_or_an_error_of_ours(target: str, path: Path) -> None:
    targets.codec()
    begun = time.monotonic()
    targets.TARGETS[target](path.read_bytes())
    assert time.monotonic() - begun < SECONDS


def test_the_corpus_is_small_and_has_every_seed() -> None:
    assert sum(path.stat().st_size for _, path in INPUTS) < 100_000
    names = {(target, path.name) for target, path in INPUTS}
    made = (("container", seeds.container_seeds()), ("decode", seeds.decode_seeds()))
    assert {(target, f"seed-{name}") for target, found in made for name in found} <= names


def test_seeds_get_all_the_way_through_the_targets() -> None:
    # a target that refuses everything would find nothing
    assert all(targets.fuzz_container(data) for name, data in seeds.container_seeds().items() if name != "cut")
    pictures = {name for name, data in seeds.decode_seeds().items() if targets.fuzz_decode(data)}
    assert pictures >= {"colour", "float", "grey", "alpha", "tiles", "cut", "forged", "hyper", "s1", "s2", "ones"}


def test_damage_is_repaired_so_that_the_decoder_has_to_face_it() -> None:
    data = bytearray(seeds.decode_seeds()["forged"])
    data[-20] ^= 1  # in s3
    assert targets.fuzz_decode(bytes(data))
    data[targets.OPTIONS_AT] ^= targets.FORGE
    assert not targets.fuzz_decode(bytes(data))  # the symbol check
    data[targets.OPTIONS_AT] ^= targets.FORGE | targets.REPAIR
    assert not targets.fuzz_decode(bytes(data))  # the CRC-32
