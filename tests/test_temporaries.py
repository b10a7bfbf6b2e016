"""What a killed process leaves behind is found and removed; what anybody still writes is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcm_codec.system import temporaries
from hpcm_codec.system.files import write_atomically
from hpcm_codec.system.temporaries import NAME, remove_left_behind, temporary_in

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")

WRITER = """
import sys, time
from pathlib import Path
from hpcm_codec.system.temporaries import temporary_in
with temporary_in(Path(sys.argv[1])) as (path, file):
    file.write(b"half")
    file.flush()
    print(path, flush=True)
    time.sleep(600)
"""


def test_a_file_that_is_written_stays_and_goes_when_its_process_is_killed(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    left = Path(writer.stdout.readline().strip())
    try:
        assert NAME.fullmatch(left.name) and left.read_bytes() == b"half"
        assert remove_left_behind(tmp_path) == 0 and left.exists()
    finally:
        writer.kill()
        writer.communicate()
    assert left.exists(), "kill -9 leaves it behind"
    assert remove_left_behind(tmp_path) == 1 and not left.exists()


def test_another_machines_file_is_kept_for_a_day(tmp_path: Path) -> None:
    other = tmp_path / f".hpcm-00000000-{'1' * 16}.tmp"
    other.write_bytes(b"half")
    assert remove_left_behind(tmp_path) == 0 and other.exists()
    yesterday = time.time() - temporaries.DAY_SECONDS - 60
    os.utime(other, (yesterday, yesterday))
    assert remove_left_behind(tmp_path) == 1 and not other.exists()


def test_only_our_own_names_are_touched(tmp_path: Path) -> None:
    names = ["photo.tmp", ".hpcm-notes.tmp", ".hpcm-00000000-1111.tmp", "photo.hpcm"]
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
        os.utime(tmp_path / name, (0, 0))
    assert remove_left_behind(tmp_path) == 0
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert remove_left_behind(tmp_path / "missing") == 0


def test_a_writer_whose_new_file_was_removed_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = temporaries._lock
    swept: list[object] = []

    def swept_just_before(file: object, wait: bool) -> bool:
        if wait and not swept:
            swept.append(remove_left_behind(tmp_path))
        return lock(file, wait)  # type: ignore[arg-type]

    monkeypatch.setattr(temporaries, "_lock", swept_just_before)
    write_atomically(tmp_path / "a", b"whole")
    assert swept == [1]
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"whole"


def test_remove_mine_takes_what_this_process_is_writing(tmp_path: Path) -> None:
    with temporary_in(tmp_path) as (path, _):
        temporaries.remove_mine()
        assert not path.exists()
    assert os.listdir(tmp_path) == []
