"""Finding pictures to measure on: folders, and the Kodak set wherever it lies."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.evaluation import datasets

FAKE_NAMES = ("kodim01.png", "kodim02.png", "kodim03.png")


def make_picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, 4, 3), value, np.uint8)).save(path)


@pytest.fixture
def fake_kodak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of three pictures that passes for Kodak, found nowhere but where the test says."""
    folder = tmp_path / "source" / "kodak"
    for number, name in enumerate(FAKE_NAMES):
        make_picture(folder / name, number)
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FAKE_NAMES}
    monkeypatch.setattr(datasets, "KODAK_SHA256", digests)
    monkeypatch.delenv(datasets.DATA_VARIABLE, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / "elsewhere" / "package" / "evaluation" / "datasets.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def server(fake_kodak: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address under which a server on this machine offers the fake set."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(fake_kodak))) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}/"
        web.shutdown()
        thread.join()


def test_a_folder_is_taken_with_its_subfolders_in_natural_order(tmp_path: Path) -> None:
    for name in ("b10.png", "b9.png", "more/a2.jpg", "more/a1.JPG", ".hidden.png", ".git/c.png"):
        make_picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    found = datasets.find_dataset(tmp_path)
    assert found.names == ("b9.png", "b10.png", "more/a1.JPG", "more/a2.jpg")
    assert found.name == tmp_path.name
    assert found.path("more/a2.jpg").is_file()
    assert found.first(2).names == ("b9.png", "b10.png")
    assert found.first(None) == found


def test_a_folder_that_is_missing_a_file_or_empty_is_refused_by_name(tmp_path: Path) -> None:
    make_picture(tmp_path / "file.png")
    (tmp_path / "empty").mkdir()
    for name, reason in (("nowhere", "no such folder"), ("file.png", "is a file"), ("empty", "holds no pictures")):
        with pytest.raises(FileError, match=reason) as caught:
            datasets.find_dataset(tmp_path / name)
        assert caught.value.file == str(tmp_path / name)


def test_the_registry_is_the_24_pictures_of_the_real_set() -> None:
    assert list(datasets.KODAK_SHA256) == [f"kodim{number:02}.png" for number in range(1, 25)]
    assert len({*datasets.KODAK_SHA256.values()}) == 24
    sums = Path(__file__).resolve().parents[2] / "shared" / "data" / "kodak" / "SHA256SUMS"
    if sums.is_file():
        lines = [line.split() for line in sums.read_text().splitlines()]
        listed = {name: digest for digest, name in lines}
        assert listed == datasets.KODAK_SHA256


def test_kodak_is_looked_up_in_data_dir_then_the_variable_then_shared(
    fake_kodak: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared" / "data" / "kodak"
    for name in FAKE_NAMES:
        shared.parent.mkdir(parents=True, exist_ok=True)
        shared.mkdir(exist_ok=True)
        (shared / name).write_bytes((fake_kodak / name).read_bytes())
    assert datasets.find_dataset("kodak").folder.resolve() == shared
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(fake_kodak.parent))
    assert datasets.find_dataset("kodak").folder == fake_kodak
    chosen = tmp_path / "chosen" / "kodak"
    chosen.parent.mkdir()
    fake_kodak.rename(chosen)
    assert datasets.find_dataset("kodak", chosen.parent).folder == chosen
    assert datasets.find_dataset("kodak", chosen).folder == chosen  # the set itself may be named too
    assert datasets.find_dataset("kodak", chosen).names == FAKE_NAMES


def test_a_kodak_folder_with_missing_files_is_refused_and_they_are_named(fake_kodak: Path) -> None:
    (fake_kodak / "kodim02.png").unlink()
    with pytest.raises(FileError, match=r"kodim02\.png missing") as caught:
        datasets.find_dataset("kodak", fake_kodak.parent)
    assert caught.value.file == str(fake_kodak)


def test_a_kodak_folder_with_another_picture_is_refused_and_it_is_named(fake_kodak: Path) -> None:
    make_picture(fake_kodak / "kodim03.png", 99)
    with pytest.raises(FileError, match=r"kodim03\.png with a wrong SHA-256"):
        datasets.find_dataset("kodak", fake_kodak.parent)


def test_kodak_is_downloaded_once_into_the_cache_when_it_is_nowhere(
    fake_kodak: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "KODAK_URL", server)
    said: list[str] = []
    found = datasets.find_dataset("kodak", announce=said.append)
    assert tmp_path / "cache" in found.folder.parents
    for name in FAKE_NAMES:
        assert found.path(name).read_bytes() == (fake_kodak / name).read_bytes()
    assert len(said) == 1
    assert server in said[0]
    for name in FAKE_NAMES:
        (fake_kodak / name).unlink()  # from now on the server has nothing to give
    assert datasets.find_dataset("kodak", announce=said.append) == found
    assert len(said) == 1


def test_a_download_with_a_wrong_checksum_is_refused_and_not_kept(
    fake_kodak: Path, server: str, tmp_path: Path
) -> None:
    make_picture(fake_kodak / "kodim02.png", 77)
    with pytest.raises(FileError, match="wrong SHA-256") as caught:
        datasets.download_kodak(tmp_path / "download", server)
    assert caught.value.file == f"{server}kodim02.png"
    assert [path.name for path in (tmp_path / "download").iterdir()] == ["kodim01.png"]


def test_without_a_network_the_error_says_how_to_name_a_folder(
    fake_kodak: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(HpcmError, match=r"cannot be downloaded.*--data-dir"):
        datasets.download_kodak(tmp_path / "download", "http://127.0.0.1:9/")  # the discard port: no server listens
