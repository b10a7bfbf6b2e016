"""`hpcm checkpoints export` and `import`: what they refuse before they read weights, so that no file is lost and nobody waits in vain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from hpcm_codec import load_codec
from hpcm_codec.cli.checkpoints import command
from hpcm_codec.errors import FileError, UnsupportedError, UsageError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.weights.checkpoints import save_checkpoint
from test_hpcm_phase1 import SMALL


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


@pytest.fixture
def unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that fails the test when it is read."""

    def read(path: Path) -> None:
        raise AssertionError(f"{path} was read")

    for name in ("published.read_published", "stored.read_models"):
        monkeypatch.setattr(f"hpcm_codec.weights.{name}", read)
    monkeypatch.setattr("hpcm_codec.engines.exporting.read_published", read)
    (tmp_path / "unread.safetensors").write_bytes(b"weights")
    return tmp_path / "unread.safetensors"


def test_pictures_are_looked_at_before_weights_are_read(tmp_path: Path, unread: Path) -> None:
    empty, broken, plain = tmp_path / "empty", tmp_path / "broken", tmp_path / "plain.pth.tar"
    for folder in (empty, broken):
        folder.mkdir()
    (broken / "a.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 300)).save(broken / "b.png")
    plain.write_bytes(b"weights")
    for source, reason in (
        (empty, "no pictures below this folder"),
        (broken, "no picture here can be used (a.png: not an image"),
        (broken, ", and 1 more); give sound pictures of at least 256×256 pixels"),
        (plain, "there is no plain.pth.tar.json beside it; give a folder of pictures"),
    ):
        for words in (["import"], ["export", "--exact"]):
            done = run(*words, unread, "-o", tmp_path / "out.safetensors", "--calibrate", source)
            assert isinstance(done.exception, FileError) and str(source) in str(done.exception)
            assert reason in str(done.exception) and "Errno" not in str(done.exception)
            assert "units" not in done.stderr


@pytest.mark.parametrize("words", ["import", "export"])
def test_options_that_would_be_ignored_are_refused(tmp_path: Path, unread: Path, words: str) -> None:
    refused = run(words, unread, "-o", tmp_path / "out.safetensors", "--pictures", 5).exception
    assert isinstance(refused, UsageError) and "--pictures is for --calibrate; name a folder" in str(refused)


@pytest.mark.parametrize("words", ["import", "export"])
def test_a_directory_is_no_output(tmp_path: Path, unread: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in ("", ".", tmp_path):
        for force in ([], ["-f"]):
            refused = run(words, unread, "-o", target, *force).exception
            assert isinstance(refused, FileError) and str(refused).endswith(": is a directory; name a file")


def test_weights_that_are_not_finite_are_not_said_to_be_too_large(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = HPCM(SMALL).state_dict()
    broken, large = tmp_path / "broken.safetensors", tmp_path / "large.safetensors"
    save_checkpoint(broken, SMALL, {**weights, "g_a.0.weight": weights["g_a.0.weight"] * float("nan")}, {})
    save_checkpoint(large, SMALL, {**weights, "g_a.0.weight": weights["g_a.0.weight"] + 1e6}, {})
    refused = run("export", broken, "-o", tmp_path / "out.safetensors").exception
    assert isinstance(refused, FileError) and refused.exit_status == 5
    assert f"{broken}: weights that are not finite: g_a.0.weight; fetch the checkpoint again" in str(refused)
    refused = run("export", large, "-o", tmp_path / "out.safetensors").exception
    assert isinstance(refused, UnsupportedError) and "g_a.0.weight; export with a wider type" in str(refused)


def test_a_model_without_an_exact_profile_is_told_how_to_get_one(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, SMALL, HPCM(SMALL).state_dict(), {})
    with pytest.raises(UnsupportedError, match=f"export {path} -o NEW.safetensors --exact --calibrate FOLDER"):
        load_codec(str(path), profile="exact")


@pytest.mark.parametrize("name", command.commands)
def test_every_summary_fits_into_the_list_of_commands(name: str) -> None:
    listed = CliRunner().invoke(command, ["--help"], terminal_width=80).stdout
    (line,) = (line for line in listed.splitlines() if line.split()[:1] == [name])
    assert line.endswith(".") and not line.endswith("...")
