"""Batches in several processes: the same files as in one, and no incomplete or missing files whichever process is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from conftest import small_photograph
from hpcm_codec.bitstream.container import parse_stream
from hpcm_codec.cli.main import main
from hpcm_codec.system.workers import WorkerDiedError, Workers

HPCM = [sys.executable, "-m", "hpcm_codec"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def make_album(folder: Path, count: int, side: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(small_photograph(side, side - 7, number)).save(folder / f"{number:02}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows_of(manifest: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


# --------------------------------------------------------------------------------------------------------------- workers


def double(item: tuple[int, Path]) -> int:
    """Twice the number; the process of number 3 is killed, that of number 5 the first time."""
    number, folder = item
    if number == 3 or (number == 5 and not (folder / "begun").exists()):
        (folder / "begun").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def test_when_a_process_ends_only_the_item_that_ends_it_again_fails(tmp_path: Path) -> None:
    with Workers(double, jobs=2, threads=1) as workers:
        items = ((number, tmp_path) for number in (0, 1, 5, 6))
        assert {place: future.result() for place, future in workers.results(items)} == {0: 0, 1: 2, 2: 10, 3: 12}
        results = dict(workers.results((number, tmp_path) for number in range(5)))
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert isinstance(results.pop(3).exception(), WorkerDiedError)
    assert {place: future.result() for place, future in results.items()} == {0: 0, 1: 2, 2: 4, 4: 8}


# --------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("profile", ["exact", "float"])
def test_two_processes_make_the_same_files_as_one(tmp_path: Path, profile: str) -> None:
    album = make_album(tmp_path / "album", 4, 100)
    (album / "broken.png").write_bytes(b"no picture")
    for name, more in (("one", ()), ("two", ("--jobs", "2", "--manifest", str(tmp_path / "m.jsonl")))):
        arguments = ["encode", str(album), "-o", str(tmp_path / name), "--profile", profile, *more]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 5
        assert done.stderr.splitlines()[-1] == f"hpcm: 1 of 5 failed: {album / 'broken.png'}"
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(str(row["status"]) for row in rows_of(tmp_path / "m.jsonl")) == ["done"] * 4 + ["failed"]
    for name, options in (("one", []), ("two", ["--jobs", "2"])):
        copies = ["decode", str(tmp_path / name), "-o", str(tmp_path / f"{name}-copies"), "--format", "ppm", *options]
        assert CliRunner().invoke(main, copies).exit_code == 0
    assert contents(tmp_path / "one-copies") == contents(tmp_path / "two-copies")


def test_a_model_that_cannot_be_loaded_ends_the_batch_in_one_line(tmp_path: Path) -> None:
    album = make_album(tmp_path / "album", 3, 40)
    done = CliRunner().invoke(main, ["encode", str(album), "--jobs", "2", "--model", "phase9"])
    assert done.exit_code == 4 and len(done.stderr.splitlines()) == 1 and "'phase9'" in done.stderr


def group_is_gone(group: int, seconds: float = 120) -> bool:
    """Whether the last process of a group has ended, or does within the time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGTERM, False), (signal.SIGINT, True)],
)
def test_a_killed_batch_leaves_only_whole_files_and_goes_on(
    tmp_path: Path, number: signal.Signals, whole_group: bool
) -> None:
    album, out, manifest = make_album(tmp_path / "album", 12, 300), tmp_path / "out", tmp_path / "m.jsonl"
    arguments = ["encode", str(album), "-o", str(out), "--manifest", str(manifest), "--quiet"]
    batch = subprocess.Popen([*HPCM, *arguments, "--jobs", "2"], start_new_session=True, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 240
        while not (out.is_dir() and any(out.glob("*.hpcm"))) and time.monotonic() < until:
            time.sleep(0.01)
        assert batch.poll() is None, "ended before it was killed"
        (os.killpg if whole_group else os.kill)(batch.pid, number)
        _, err = batch.communicate(timeout=120)
        assert group_is_gone(batch.pid), "its other processes have ended too"
    finally:
        if batch.poll() is None:
            os.killpg(batch.pid, signal.SIGKILL)
    if number == signal.SIGKILL:
        assert batch.returncode == -signal.SIGKILL
    else:
        assert batch.returncode == 128 + number and len(err.decode().splitlines()) == 1, err
    finished = sorted(out.glob("*.hpcm"))
    assert 0 < len(finished) < 12
    for path in finished:
        parse_stream(path.read_bytes())
    if not (number == signal.SIGKILL and whole_group):  # no process was left to clean up
        assert not [name for name in os.listdir(out) if name.endswith(".tmp")]
    before = {path: path.stat().st_mtime_ns for path in finished}
    done = CliRunner().invoke(main, [*arguments, "--resume"])
    assert done.exit_code == 0, done.stderr
    assert sorted(os.listdir(out)) == [f"{place:02}.hpcm" for place in range(12)]
    assert {path: path.stat().st_mtime_ns for path in finished} == before, "what was finished was not made again"
    rows = rows_of(manifest)
    assert len(rows) == 12 == len({row["path"] for row in rows}) and {row["status"] for row in rows} <= {"done", "kept"}
    for row in rows:
        parse_stream(Path(str(row["output"])).read_bytes())
