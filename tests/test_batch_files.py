"""Names, links, times and permissions of a batch's files."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from hpcm_codec.batch.jobs import plan
from hpcm_codec.cli.main import main
from hpcm_codec.errors import UsageError
from hpcm_codec.system.files import write_atomically

links = pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="no symbolic links")


def hpcm(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def picture(path: Path, colour: str = "teal") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 30), colour).save(path)
    return path


def planned(folder: Path, output: str = "out/", **settings: bool) -> dict[str, str]:
    """Inputs and outputs by their relative names."""
    said: list[str] = []
    jobs = plan(
        [str(folder)],
        output,
        ".hpcm",
        lambda name: name.endswith((".png", ".jpg")),
        "pictures",
        notice=said.append,
        **settings,
    )
    found = {job.relative: os.path.relpath(job.target, output) for job in jobs}
    assert len(found) == len(jobs)
    return {**found, **({"said": "; ".join(said)} if said else {})}


def test_names_that_would_meet_keep_their_extensions(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg", "x.png.png", "y.png", "sub/x.png"):
        picture(tmp_path / name)
    assert planned(tmp_path) == {
        "x.png": "x.png.hpcm",
        "x.jpg": "x.jpg.hpcm",
        "x.png.png": "x.png.png.hpcm",
        "y.png": "y.hpcm",
        "sub/x.png": "sub/x.hpcm",
    }


@pytest.mark.parametrize(("first", "later"), [("x.png", "x.jpg"), ("x.jpg", "x.png")])
def test_a_picture_that_is_added_later_takes_no_output_from_another(first: str, later: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    picture(source / first)
    picture(source / "y.png")
    assert hpcm("encode", source, "-o", out, "--manifest", tmp_path / "m.jsonl").exit_code == 0
    before = (out / "x.hpcm").stat()
    time.sleep(0.02)
    picture(source / later, "red")
    os.utime(source / later, (1, 1))  # an old file, copied here
    for _ in range(2):
        again = hpcm("encode", source, "-o", out, "--manifest", tmp_path / "m.jsonl", "--resume")
        assert again.exit_code == 0, again.stderr
        assert sorted(os.listdir(out)) == sorted(["x.hpcm", f"{later}.hpcm", "y.hpcm"])
        assert (out / "x.hpcm").stat().st_mtime_ns == before.st_mtime_ns
    done = hpcm("decode", out / f"{later}.hpcm", "-o", tmp_path / "later.png")
    assert done.exit_code == 0 and np.asarray(Image.open(tmp_path / "later.png"))[5, 5, 0] > 200


def test_nothing_is_encoded_over_a_name_of_an_unknown_origin(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg"):
        picture(tmp_path / "in" / name)
    (tmp_path / "x.hpcm").write_bytes(b"of another day")
    assert set(planned(tmp_path / "in", str(tmp_path)).values()) == {"x.png.hpcm", "x.jpg.hpcm"}


@links
def test_linked_folders_are_named_or_followed_once(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "real" / "1.png")
    picture(tmp_path / "elsewhere" / "2.png")
    picture(tmp_path / "in" / "file.png")
    os.symlink(tmp_path / "in" / "file.png", tmp_path / "in" / "linked.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "in" / "a")
    os.symlink(tmp_path / "elsewhere", tmp_path / "in" / "z")
    os.symlink(tmp_path / "in" / "real", tmp_path / "in" / "b")
    os.symlink(tmp_path / "in", tmp_path / "in" / "real" / "loop")
    os.symlink(tmp_path / "in", tmp_path / "elsewhere" / "back")
    plain = planned(tmp_path / "in")
    said = plain.pop("said")
    assert set(plain) == {"real/1.png", "file.png", "linked.png"}
    assert said.count("not looked into; --follow-links does") == 4 and str(tmp_path / "in" / "a") in said
    assert set(planned(tmp_path / "in", follow_links=True)) == {"real/1.png", "file.png", "linked.png", "a/2.png"}
    done = hpcm("encode", tmp_path / "in", "-o", tmp_path / "out", "--follow-links")
    assert done.exit_code == 0 and (tmp_path / "out" / "a" / "2.hpcm").is_file()
    done = hpcm("encode", tmp_path / "in", "-o", tmp_path / "other")
    assert done.exit_code == 0 and "/in/a: a link to a folder, not looked into" in done.stderr


def test_the_time_of_the_input_is_kept_on_request(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    os.utime(source, ns=(10**18, 10**18 + 12345))
    assert hpcm("encode", source, "-o", tmp_path / "a.hpcm", "--keep-time").exit_code == 0
    assert (tmp_path / "a.hpcm").stat().st_mtime_ns == 10**18 + 12345
    assert hpcm("decode", tmp_path / "a.hpcm", "-o", tmp_path / "b.png", "--keep-time").exit_code == 0
    assert (tmp_path / "b.png").stat().st_mtime_ns == 10**18 + 12345
    assert hpcm("encode", source, "-o", tmp_path / "a.hpcm", "-f").exit_code == 0
    assert (tmp_path / "a.hpcm").stat().st_mtime_ns > 10**18 + 12345
    done = hpcm("encode", source, "-o", tmp_path / "a.hpcm", "--keep-time", "--resume")
    assert done.exit_code == 0 and "finished before" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no permissions of this kind")
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o640])
def test_a_file_that_is_replaced_keeps_its_permissions(mode: int, tmp_path: Path) -> None:
    target = tmp_path / "a.hpcm"
    target.write_bytes(b"old")
    target.chmod(mode)
    write_atomically(target, b"new", overwrite=True)
    assert stat.S_IMODE(target.stat().st_mode) == mode and target.read_bytes() == b"new"
    write_atomically(tmp_path / "fresh", b"new", overwrite=True)
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "fresh").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("arguments", [("a.png", "b.png"), ("a.hpcm", "b.jpg"), ("-", "b.PNG")])
def test_exchanged_names_are_asked_about(arguments: tuple[str, str], tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    source = arguments[0] if arguments[0] == "-" else tmp_path / arguments[0]
    done = hpcm("encode", source, "-o", tmp_path / arguments[1])
    assert done.exit_code == UsageError.exit_status == 2
    assert "were input and output exchanged?" in done.stderr and os.listdir(tmp_path) == ["a.png"]


def test_a_folder_may_be_called_like_a_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert hpcm("encode", tmp_path / "a.png", "-o", f"{tmp_path}/out.png/").exit_code == 0
    assert (tmp_path / "out.png" / "a.hpcm").is_file()
