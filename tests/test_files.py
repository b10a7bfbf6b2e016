"""Output files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from hpcm_codec.errors import FileError
from hpcm_codec.system import files
from hpcm_codec.system.files import write_atomically

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions and links")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_bytes_and_writers_end_up_in_the_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"one")
    write_atomically(tmp_path / "b", lambda file: file.write(b"two"))
    assert (tmp_path / "a").read_bytes() == b"one"
    assert (tmp_path / "b").read_bytes() == b"two"
    assert names_in(tmp_path) == ["a", "b"]


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with pytest.raises(FileError, match=r"a: exists already; .*-f"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    write_atomically(target, b"new", overwrite=True)
    assert target.read_bytes() == b"new"
    assert names_in(tmp_path) == ["a"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_while_writing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    target = tmp_path / "a"
    if not hard_links:
        monkeypatch.setattr(os, "link", no_hard_links)

    def meanwhile(file: BinaryIO) -> None:
        file.write(b"new")
        target.write_bytes(b"somebody else's")

    with pytest.raises(FileError, match="exists already"):
        write_atomically(target, meanwhile)
    assert target.read_bytes() == b"somebody else's"
    assert names_in(tmp_path) == ["a"]


def no_hard_links(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "no hard links here")


def test_a_file_system_without_hard_links_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_hard_links)
    write_atomically(tmp_path / "a", b"one")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert names_in(tmp_path) == ["a"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("encoder broke")])
def test_an_interruption_is_passed_on_and_leaves_nothing_behind(
    tmp_path: Path, error: BaseException, overwrite: bool
) -> None:
    target = tmp_path / "a"
    if overwrite:
        target.write_bytes(b"old")

    def interrupted(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(target, interrupted, overwrite=overwrite)
    assert names_in(tmp_path) == (["a"] if overwrite else [])
    assert not overwrite or target.read_bytes() == b"old"


@pytest.mark.parametrize("failing", ["fsync", "link", "replace"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(FileError, match=r"a: no space left on the device; free some space"):
        write_atomically(tmp_path / "a", b"data", overwrite=failing == "replace")
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_device_is_written_to_and_its_errors_are_reported(tmp_path: Path) -> None:
    write_atomically(os.devnull, b"data")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    with pytest.raises(FileError, match="no space left"):
        write_atomically("/dev/full", b"data", overwrite=True)


def test_places_where_no_file_can_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, reason in (
        (tmp_path, "is a directory"),
        (tmp_path / "missing" / "a", "no such file or directory"),
        (tmp_path / "file" / "a", "not a directory"),
        (tmp_path / ("n" * 300), "name is too long"),
        (str(tmp_path / "zero\0byte"), "zero byte"),
    ):
        for overwrite in (False, True):
            with pytest.raises(FileError, match=reason) as caught:
                write_atomically(path, b"data", overwrite=overwrite)
            assert caught.value.exit_status == 5
    assert names_in(tmp_path) == ["file"]


@posix_only
@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FileError, match="permission denied"):
            write_atomically(tmp_path / "a", b"data")
    finally:
        tmp_path.chmod(0o700)


@posix_only
@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, expected: int) -> None:
    previous = os.umask(umask)
    try:
        write_atomically(tmp_path / "a", b"data")
        write_atomically(tmp_path / "a", b"data", overwrite=True)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == expected


@posix_only
def test_overwriting_through_a_symbolic_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(FileError, match="exists already"):
        write_atomically(tmp_path / "link", b"new")
    write_atomically(tmp_path / "link", b"new", overwrite=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"


def test_a_name_as_long_as_names_can_be_works(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("n" * 255), b"data")
    assert names_in(tmp_path) == ["n" * 255]


def test_a_file_error_says_what_the_system_said_where_it_has_no_own_words() -> None:
    assert str(files.file_error("x", OSError(errno.EIO, "Input/output error"))).startswith("x: Input/output error")
