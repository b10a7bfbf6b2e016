"""Many pictures in one call: manifests, going on after an interruption, shards, and pictures analysed together."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from conftest import small_photograph
from hpcm_codec.batch import together
from hpcm_codec.batch.encoding import Encoding
from hpcm_codec.batch.engines import in_this_process
from hpcm_codec.batch.jobs import Job, Shard, parse_shard
from hpcm_codec.batch.machine import Machine
from hpcm_codec.batch.manifest import Manifest
from hpcm_codec.batch.tasks import Performer, Rules, failed, task_of
from hpcm_codec.cli.main import main
from hpcm_codec.codec import Codec
from hpcm_codec.errors import FileError, HpcmError, MemoryLimitError, UsageError
from hpcm_codec.targets import Target

NAMES = ("a.png", "b b.png", "new\nline.png", "sub/c.jpg")
pytestmark = pytest.mark.usefixtures("no_leftovers")


def hpcm(*arguments: object) -> Result:
    """Run a command in this process; a failure shows what was said."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Four sound pictures of two sizes, one of them with a line break in its name, and a broken one."""
    folder = tmp_path / "album"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        Image.fromarray(small_photograph(64 if seed < 3 else 40, 33, seed)).save(folder / name)
    (folder / "broken.png").write_bytes(b"no picture at all")
    return folder


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    """A manifest's rows by the input's path; every input has exactly one."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def written(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder: its bytes, and when it was written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The inputs that were really encoded, as they are."""
    done: list[str] = []
    work = Encoding.__call__

    def counted(self: Encoding, job: Job, overwrite: bool) -> Any:
        outcome = work(self, job, overwrite)
        done.append(os.path.basename(job.source))
        return outcome

    monkeypatch.setattr(Encoding, "__call__", counted)
    return done


# -------------------------------------------------------------------------------------------------------------- manifest


def test_a_manifest_has_a_row_for_every_input_the_broken_one_too(album: Path, tmp_path: Path, codec: Codec) -> None:
    manifest = tmp_path / "m.jsonl"
    done = hpcm("encode", album, "-o", tmp_path / "out", "-q", 30, "--manifest", manifest, "--measure-psnr", "--quiet")
    assert done.exit_code == 5 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == f"hpcm: 1 of 5 failed: {album / 'broken.png'}"
    rows = rows_of(manifest)
    assert set(rows) == {str(album / name) for name in (*NAMES, "broken.png")}
    for name in NAMES:
        row, output = rows[str(album / name)], Path(rows[str(album / name)]["output"])
        assert row["status"] == "done" and row["error"] is None and row["seconds"] > 0
        assert output == tmp_path / "out" / Path(name).with_suffix(".hpcm")
        assert (row["sha256"], row["output_sha256"]) == (sha256(album / name), sha256(output))
        assert row["bytes"] == output.stat().st_size
        assert row["bpp"] == pytest.approx(8 * row["bytes"] / (row["width"] * row["height"]), abs=1e-5)
        original = np.asarray(Image.open(album / name).convert("RGB"), dtype=float)
        error = np.square(original - codec.decode(output.read_bytes()).pixels).mean()
        assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
        assert row["settings"] == {
            **{"command": "encode", "quality": 30.0, "strip": False, "model": codec.identity.hex(), "profile": "exact"},
        }
    broken = rows[str(album / "broken.png")]
    assert (broken["status"], broken["exit_status"], broken["bytes"]) == ("failed", 5, None)
    assert "not an image" in broken["error"] and broken["sha256"] == sha256(album / "broken.png")
    assert os.listdir(tmp_path / "out") and not list(tmp_path.glob("*.lock"))


def test_names_with_line_breaks_stay_on_their_line(album: Path, tmp_path: Path) -> None:
    done = hpcm("encode", album, "-o", tmp_path / "out")
    lines = done.stderr.splitlines()
    assert len([line for line in lines if r"new\nline.png → " in line]) == 1
    assert len(lines) == 4 + 1 + 1, "a line for each, and what failed"
    assert (tmp_path / "out" / "new\nline.hpcm").is_file()
    (album / "new\nline.png").write_bytes(b"broken")
    refused = hpcm("encode", album / "new\nline.png", "-o", tmp_path / "x.hpcm")
    assert refused.exit_code == 5 and len(refused.stderr.splitlines()) == 1 and r"new\nline.png: " in refused.stderr


def test_an_existing_manifest_is_only_replaced_on_request(album: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("mine\n")
    arguments = ("encode", album / "a.png", "-o", tmp_path / "a.hpcm", "--manifest", manifest)
    refused = hpcm(*arguments)
    assert refused.exit_code == 5 and "m.jsonl: exists already; go on with --resume" in refused.stderr
    assert manifest.read_text() == "mine\n" and not (tmp_path / "a.hpcm").exists()
    assert "line 1 is not of a manifest" in hpcm(*arguments, "--resume").stderr
    assert manifest.read_text() == "mine\n"
    assert hpcm(*arguments, "-f").exit_code == 0
    assert list(rows_of(manifest)) == [str(album / "a.png")]


def test_two_processes_do_not_write_one_manifest(album: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    with Manifest(str(manifest)):
        refused = hpcm("encode", album / "a.png", "--manifest", manifest, "--resume")
    assert refused.exit_code == 5 and "another hpcm is writing it; give every process" in refused.stderr
    assert not (album / "a.hpcm").exists()
    assert hpcm("encode", album / "a.png", "--manifest", manifest, "--resume", "--quiet").exit_code == 0


def test_a_line_that_was_cut_short_is_dropped_and_the_last_line_of_an_input_counts(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    job, other = Job("x.png", "x.hpcm"), Job("y.png", "y.hpcm")
    with Manifest(str(path)) as manifest:
        manifest.add(failed(job, HpcmError("first"), 1.0))
        manifest.add(failed(other, HpcmError("other"), 1.0))
        manifest.add(failed(job, HpcmError("last"), 1.0))
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    with Manifest(str(path), resume=True) as manifest:
        row = manifest.find("x.png", "x.hpcm")
        assert row is not None and "last" in row["error"]
        manifest.add(failed(other, HpcmError("again"), 1.0))
    assert {name: row["error"] for name, row in rows_of(path).items()} == {
        "x.png": "x.png: last",
        "y.png": "y.png: again",
    }


def test_options_that_make_no_sense_are_refused(album: Path, tmp_path: Path) -> None:
    one = album / "a.png"
    for arguments, reason in (
        (("-", "--resume"), "--resume is for files"),
        (("-", "--manifest", "m"), "--manifest is for files"),
        ((one, "--manifest", "-"), "--manifest takes a file, not -"),
        ((one, "--manifest", tmp_path), "--manifest takes a file"),
        ((one, "--manifest", one), "a.png is an input or an output"),
        ((one, "--shard", "3/2"), "--shard takes i/n"),
        ((one, "--jobs", 0), "--jobs"),
        (("-", "--engine", "ray"), "--engine ray is for files"),
    ):
        done = hpcm("encode", *arguments)
        assert done.exit_code == 2 and reason in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


# ---------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("with_manifest", [True, False])
def test_resume_does_what_is_missing_and_nothing_else(
    album: Path, tmp_path: Path, encodings: list[str], with_manifest: bool
) -> None:
    out, manifest = tmp_path / "out", tmp_path / "m.jsonl"
    more = ("--manifest", manifest) if with_manifest else ()
    arguments = ("encode", album, "-o", out, "-q", 20, *more)
    assert hpcm(*arguments, "--quiet").exit_code == 5
    (out / "a.hpcm").unlink()
    Image.fromarray(small_photograph(40, 33, 7)).save(album / "broken.png")
    before = written(out)
    encodings.clear()
    done = hpcm(*arguments, "--resume")
    assert done.exit_code == 0 and encodings == ["a.png", "broken.png"], done.stderr
    assert "hpcm: 3 of 5 were finished before" in done.stderr
    after = written(out)
    assert {name: after[name] for name in before} == before
    if with_manifest:
        assert [row["status"] for row in rows_of(manifest).values()] == ["done"] * 5
    encodings.clear()
    assert hpcm(*arguments, "--resume", "--quiet").exit_code == 0 and encodings == []
    assert written(out) == after


def test_a_manifest_that_is_begun_later_takes_finished_files_in(
    album: Path, tmp_path: Path, encodings: list[str]
) -> None:
    out, manifest = tmp_path / "out", tmp_path / "m.jsonl"
    hpcm("encode", album, "-o", out, "--quiet")
    encodings.clear()
    hpcm("encode", album, "-o", out, "--quiet", "--resume", "--manifest", manifest, "--measure-psnr")
    rows = rows_of(manifest)
    assert encodings == [] and len(rows) == 5
    kept = rows[str(album / "a.png")]
    assert kept["status"] == "kept" and kept["psnr"] > 20 and kept["output_sha256"] == sha256(out / "a.hpcm")


def damaged(output: Path, source: Path) -> None:
    output.write_bytes(output.read_bytes()[:-1] + b"x")


def of_another_picture(output: Path, source: Path) -> None:
    Image.fromarray(small_photograph(80, 80, 9)).save(source)
    os.utime(output)


def with_a_newer_input(output: Path, source: Path) -> None:
    Image.fromarray(small_photograph(64, 33, 9)).save(source)


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize(
    ("change", "more", "with_row", "without"),
    [
        (damaged, (), "not the file that was written", "damaged"),
        (of_another_picture, (), "input has changed", "of a picture of 64×33"),
        (with_a_newer_input, (), "input has changed", "older than its input"),
        (None, ("-q", 31), "other settings", "of quality 30, not 31"),
        (None, ("-q", 30, "--profile", "float"), "other settings", "of the other profile"),
    ],
)
def test_outputs_not_known_to_be_finished_are_kept_and_reported_and_replaced_when_forced(
    photograph: Path,
    encodings: list[str],
    change: Callable[[Path, Path], None] | None,
    more: tuple[object, ...],
    with_row: str,
    without: str,
    with_manifest: bool,
) -> None:
    Image.fromarray(small_photograph(64, 33)).save(photograph)
    output, manifest = photograph.with_suffix(".hpcm"), photograph.with_name("m.jsonl")
    recording = ("--manifest", manifest) if with_manifest else ()
    assert hpcm("encode", photograph, "-q", 30, *recording, "--quiet").exit_code == 0
    if change is not None:
        change(output, photograph)
    before = output.read_bytes()
    again = ("encode", photograph, *(more or ("-q", 30)), *recording, "--resume", "--quiet")
    refused = hpcm(*again)
    reason = with_row if with_manifest else without
    assert refused.exit_code == 5 and re.search(f"not known to be finished: .*{reason}.*-f", refused.stderr)
    assert output.read_bytes() == before
    encodings.clear()
    assert hpcm(*again, "-f").exit_code == 0 and encodings == ["photo.png"]
    assert hpcm(*again).exit_code == 0 and encodings == ["photo.png"]


def test_decoding_resumes_too(album: Path, tmp_path: Path) -> None:
    hpcm("encode", album, "-o", tmp_path / "out", "--quiet")
    (tmp_path / "out" / "broken.hpcm").write_bytes(b"HPC")
    arguments = ("decode", tmp_path / "out", "-o", tmp_path / "copies", "--manifest", tmp_path / "m.jsonl", "--resume")
    assert hpcm(*arguments).exit_code == 3
    before = written(tmp_path / "copies")
    assert len(before) == 4 and [row["status"] for row in rows_of(tmp_path / "m.jsonl").values()].count("failed") == 1
    (tmp_path / "copies" / "a.png").unlink()
    done = hpcm(*arguments)
    assert "3 of 5 were finished before" in done.stderr and done.exit_code == 3
    after = written(tmp_path / "copies")
    assert {**after, "a.png": before["a.png"]} == before and after["a.png"][0] == before["a.png"][0]
    (tmp_path / "m.jsonl").unlink()
    Image.new("RGB", (64, 33)).save(tmp_path / "copies" / "a.png", "BMP")
    reported = hpcm(*arguments[:-3], "--resume").stderr
    assert "a.png: exists already, and is not known to be finished: it is BMP, not PNG" in reported


def test_resume_removes_what_a_killed_run_left(album: Path, tmp_path: Path) -> None:
    from hpcm_codec.system.temporaries import _this_host

    left = tmp_path / "out" / "sub" / f".hpcm-{_this_host()}-{'1' * 16}.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert hpcm("encode", album, "-o", tmp_path / "out", "--quiet").exit_code == 5 and left.exists()
    done = hpcm("encode", album, "-o", tmp_path / "out", "--resume")
    assert "hpcm: removed 1 temporary file of a run that was interrupted" in done.stderr and not left.exists()


# ---------------------------------------------------------------------------------------------------------------- shards


def test_shards_take_every_file_once_wherever_the_folder_lies(album: Path, tmp_path: Path) -> None:
    folders = []
    for shard in ("1/3", "2/3", "3/3"):
        moved = tmp_path / f"elsewhere{shard[0]}"
        album.rename(moved)
        done = hpcm("encode", moved, "-o", tmp_path / "out" / shard[0], "--shard", shard, "--quiet")
        assert done.exit_code in (0, 5)
        folders.append(set(written(tmp_path / "out" / shard[0])))
        moved.rename(album)
    assert sorted(name for folder in folders for name in folder) == sorted(
        Path(name).with_suffix(".hpcm").as_posix() for name in NAMES
    )


def test_shards_share_evenly_and_do_not_change_when_files_come(tmp_path: Path) -> None:
    jobs = [Job("", "", relative=f"{number // 10}/{number}.png") for number in range(3000)]
    shares = [{job.relative for job in jobs if Shard(number, 3).takes(job)} for number in (1, 2, 3)]
    assert sum(map(len, shares)) == len(set.union(*shares)) == 3000
    assert all(900 < len(share) < 1100 for share in shares)
    # the rule must never change: a batch may go on with a newer version
    assert [Shard(number, 3).takes(Job("", "", relative="sub/c.jpg")) for number in (1, 2, 3)].index(True) == 1
    for text in ("0/2", "3/2", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(UsageError, match="--shard"):
            parse_shard(text)


def test_a_shard_without_files_is_no_error(album: Path, tmp_path: Path) -> None:
    empty = [f"{number}/500" for number in range(1, 500) if not Shard(number, 500).takes(Job("", "", relative="a.png"))]
    done = hpcm("encode", album / "a.png", "--shard", empty[0])
    assert done.exit_code == 0 and "nothing to do in this shard" in done.stderr


# -------------------------------------------------------------------------------------------------------------- together


def test_pictures_of_one_size_are_analysed_at_once_and_become_the_same_files(
    album: Path, tmp_path: Path, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(small_photograph(64, 33, 8)[..., 0]).save(album / "grey.png")
    Image.fromarray(np.dstack([small_photograph(64, 33, 5)] * 2)[..., :4]).save(album / "alpha.png")
    hpcm("encode", album, "-o", tmp_path / "alone", "--device", "cpu", "--quiet")
    groups = []
    analyse = Codec.analyse_together

    def counted(self: Codec, pictures: Any) -> Any:
        groups.append(len(pictures))
        return analyse(self, pictures)

    monkeypatch.setattr(Codec, "analyse_together", counted)
    monkeypatch.setattr(together, "TOGETHER", 3)
    monkeypatch.setattr(Machine, "on_gpu", True)
    done = hpcm("encode", album, "-o", tmp_path / "together", "--device", "cpu", "--quiet")
    assert done.exit_code == 5 and "broken.png" in done.stderr
    assert groups == [3, 2], "five of 64×33; the one of another size is alone"
    alone, at_once = written(tmp_path / "alone"), written(tmp_path / "together")
    assert {name: data for name, (data, _) in alone.items()} == {name: data for name, (data, _) in at_once.items()}


def test_pictures_that_are_finished_or_do_not_fit_together_are_not_analysed_together(
    album: Path, tmp_path: Path, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def no_memory(self: Codec, pictures: Any) -> Any:
        sizes.append(len(pictures))
        if len(pictures) > 1:
            raise RuntimeError("CUDA out of memory")
        return None

    monkeypatch.setattr(Codec, "analyse_together", no_memory)
    monkeypatch.setattr(Encoding, "lookahead", 32)
    jobs = [Job(str(album / name), str(tmp_path / f"{place}.hpcm")) for place, name in enumerate(NAMES)]
    (tmp_path / "1.hpcm").write_bytes(b"mine")
    perform = Performer(Encoding(Target("quality", 20), machine=Machine("cpu")), Rules())
    results = list(in_this_process(perform, map(task_of, jobs)))
    assert sizes == [2], "of three of one size, one has an output already"
    assert [result.error is None for result in results] == [True, False, True, True]
    assert (tmp_path / "1.hpcm").read_bytes() == b"mine"


# -------------------------------------------------------------------------------------------------- outputs and failures


def test_a_bug_in_one_picture_does_not_stop_the_others(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Codec.encode

    def broken(self: Codec, picture: Any, quality: float) -> bytes:
        if picture.width == 40:
            raise ZeroDivisionError("of all things")
        return encode(self, picture, quality)

    monkeypatch.setattr(Codec, "encode", broken)
    done = hpcm("encode", album, "-o", tmp_path / "out", "--quiet")
    assert "c.jpg: a bug: ZeroDivisionError: of all things; please report it" in done.stderr
    assert "2 of 5 failed" in done.stderr and len(written(tmp_path / "out")) == 3


def test_a_directory_as_output_is_refused_and_the_others_are_written(album: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "a.hpcm").mkdir(parents=True)
    done = hpcm("encode", album, "-o", tmp_path / "out", "--quiet", "-f")
    assert done.exit_code == 5 and "a.hpcm: is a directory; name a file" in done.stderr
    assert (tmp_path / "out" / "a.hpcm").is_dir() and len(written(tmp_path / "out")) == 3


@pytest.mark.skipif(not os.path.isdir("/proc/sys"), reason="a directory that even root cannot write in")
def test_a_read_only_directory_is_refused_for_every_file_without_work(album: Path, encodings: list[str]) -> None:
    done = hpcm("encode", album, "-o", "/proc/sys/pictures")
    lines = done.stderr.splitlines()
    assert done.exit_code == 5 and len(lines) == 6 and "5 of 5 failed" in lines[-1] and encodings == []
    assert all(line.startswith("hpcm: /proc/sys/pictures") for line in lines[:-1])


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
def test_a_disk_that_is_too_full_for_one_file_takes_the_others(album: Path, tmp_path: Path) -> None:
    import resource

    hpcm("encode", album, "-o", tmp_path / "all", "--quiet")
    sizes = {name: len(data) for name, (data, _) in written(tmp_path / "all").items()}
    limit = max(sizes.values()) - 1
    too_large = {name for name, size in sizes.items() if size > limit}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # as good as a disk that is full
    try:
        done = hpcm("encode", album, "-o", tmp_path / "some", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.exit_code == 5 and "larger than the file system or a limit allows" in done.stderr
    assert f"{len(too_large) + 1} of 5 failed" in done.stderr
    assert set(written(tmp_path / "some")) == set(sizes) - too_large and too_large < set(sizes)


def test_errors_keep_all_fields_between_processes() -> None:
    import pickle

    for error in (
        FileError("exists already", file="x.hpcm", advice="use -f"),
        MemoryLimitError("encoding", 7, 5, advice="raise it"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)


# ------------------------------------------------------------------------------------------------------------- the plan


def test_a_folder_that_cannot_be_looked_into_fails_alone(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (album / "locked").mkdir()
    scan = os.scandir

    def refusing(path: str) -> Any:
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    (album / "broken.png").unlink()
    done = hpcm("encode", album, "-o", tmp_path / "out", "--manifest", tmp_path / "m.jsonl")
    assert done.exit_code == 5
    assert "locked: permission denied; make the folder readable, or leave it out" in done.stderr
    rows = rows_of(tmp_path / "m.jsonl")
    assert [path for path, row in rows.items() if row["status"] == "failed"] == [str(album / "locked")]
    assert len(list((tmp_path / "out").rglob("*.hpcm"))) == len(NAMES) == len(rows) - 1
    monkeypatch.undo()
    (album / "locked" / "d.png").write_bytes((album / "a.png").read_bytes())
    again = hpcm("encode", album, "-o", tmp_path / "out", "--manifest", tmp_path / "m.jsonl", "--resume")
    assert again.exit_code == 0 and (tmp_path / "out" / "locked" / "d.hpcm").exists()


def test_pictures_that_differ_in_their_extension_both_become_files(album: Path, tmp_path: Path) -> None:
    (album / "broken.png").unlink()
    Image.open(album / "a.png").save(album / "a.jpg")
    assert hpcm("encode", album, "-o", tmp_path / "out").exit_code == 0
    assert {"a.png.hpcm", "a.jpg.hpcm", "b b.hpcm"} <= {path.name for path in (tmp_path / "out").iterdir()}
