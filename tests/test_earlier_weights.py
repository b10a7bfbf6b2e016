"""Files of earlier weights still decode: every checkpoint that was shipped with an exact profile, with the golden files of its time."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT
from hpcm_codec.codec import load_codec
from hpcm_codec.selftest import run_selftest

CHECKPOINT = "checkpoints/phase1-lite.safetensors"
GOLDEN = "hpcm_codec/golden"
DOCUMENT = (ROOT / "checkpoints" / "README.md").read_text()
ROWS = re.findall(r"^\| `([0-9a-f]{16})` \| ([0-9a-f]{7}) \|", DOCUMENT, re.MULTILINE)


def from_history(*arguments: str) -> bytes:
    """What git says; skips where there is no git, or not the whole history."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the history of the repository is not here ({error})")


def commit_parameters() -> list[object]:
    """The newest is tested always, those before it on demand."""
    before = [pytest.param(*row, marks=pytest.mark.exhaustive) for row in ROWS[:-1]]
    return [*before, *ROWS[-1:]]


@pytest.mark.parametrize(("identity", "commit"), commit_parameters())
def test_files_of_earlier_weights_decode_to_the_same_symbols(identity: str, commit: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "earlier.safetensors"
    checkpoint.write_bytes(from_history("show", f"{commit}:{CHECKPOINT}"))
    for name in from_history("ls-tree", "-r", "--name-only", commit, GOLDEN).decode().split():
        (tmp_path / Path(name).name).write_bytes(from_history("show", f"{commit}:{name}"))
    codec = load_codec(str(checkpoint), device="cpu")
    assert codec.identity.hex() == identity and codec.profile == "exact"
    result = run_selftest(codec, tmp_path)
    assert result.failures == () and result.files == 18


def test_all_earlier_weights_are_named() -> None:
    if from_history("rev-parse", "--is-shallow-repository").strip() == b"true":
        pytest.skip("only the newest part of the repository's history is here")
    commits = from_history("log", "--format=%H", "--", CHECKPOINT).decode().split()
    assert ROWS and len(commits) > 1
    for commit in commits[1:]:  # the first is the one that is shipped
        assert commit[:7] in DOCUMENT
