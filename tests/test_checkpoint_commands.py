"""`hpcm checkpoints export` and `import`: what they refuse before they read weights, so that no file is lost and nobody waits in vain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from hpcm_codec.cli.checkpoints import command
from hpcm_codec.errors import UsageError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder with one picture that units can be found with."""
    (tmp_path / "photographs").mkdir()
    Image.effect_noise((256, 256), 50).save(tmp_path / "photographs" / "noise.png")
    return tmp_path / "photographs"


@pytest.mark.parametrize("words", [["import"], ["import", "other"], ["export"]])
@pytest.mark.parametrize("named", ["itself", "by a link", "by another path"])
def test_an_input_is_never_overwritten(tmp_path: Path, words: list[str], named: str) -> None:
    source, other = tmp_path / "a.safetensors", tmp_path / "other"
    for file in (source, other):
        file.write_bytes(b"weights")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "folder").mkdir()
    target = {
        "itself": source,
        "by a link": tmp_path / "link",
        "by another path": tmp_path / "folder" / ".." / source.name,
    }[named]
    for force in ([], ["-f"]):
        refused = run(words[0], *[tmp_path / word for word in words[1:]], source, "-o", target, *force).exception
        assert isinstance(refused, UsageError) and str(target) in str(refused)
        assert "is an input, and would be overwritten; name another output with -o" in str(refused)
    assert source.read_bytes() == b"weights"


def test_pictures_of_the_calibration_are_not_overwritten(tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    (picture,) = photographs.iterdir()
    pack, index = tmp_path / "all.pack", tmp_path / "all.pack.json"
    for file in (pack, index):
        file.write_bytes(b"packed")
    for target, source in ((picture, photographs), (pack, pack), (index, pack)):
        before = target.read_bytes()
        for words in (["import"], ["export", "--exact"]):
            refused = run(*words, tmp_path / "a.safetensors", "-o", target, "-f", "--calibrate", source).exception
            assert isinstance(refused, UsageError) and "is an input" in str(refused)
        assert target.read_bytes() == before


def test_another_name_of_an_input_is_an_input(tmp_path: Path) -> None:
    source = tmp_path / "a.pth.tar"
    source.write_bytes(b"weights")
    os.link(source, tmp_path / "same.pth.tar")
    assert isinstance(run("import", source, "-o", tmp_path / "same.pth.tar", "-f").exception, UsageError)
