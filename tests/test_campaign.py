"""Several codecs in one run, in several processes, resumed after an interruption: always the same figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from conftest import small_photograph
from hpcm_codec.cli.eval import command
from hpcm_codec.errors import FileError, UsageError
from hpcm_codec.evaluation import campaign, codecs
from hpcm_codec.evaluation.codecs import CodecChoice, PillowCodec, encode_to_size
from hpcm_codec.evaluation.datasets import OTHER_SETS, find_dataset
from hpcm_codec.evaluation.runner import Row
from hpcm_codec.evaluation.worklog import WorkLog
from hpcm_codec.images import Picture

ORDINARY = ("jpeg", "webp", "jpeg2000")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.fromarray(small_photograph(96, 64, number)).save(pictures / f"p{number}.png")
    return pictures


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def without_times(path: Path) -> Any:
    """The results file without what the clock and the number of processes decide."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(part) for key, part in value.items() if not key.endswith("_time") and key != "jobs"}
        return [cleaned(part) for part in value] if isinstance(value, list) else value

    return cleaned(json.loads(path.read_text()))


# -------------------------------------------------------------------------------------------------------- equal figures


def test_two_runs_and_two_processes_give_the_same_json_except_for_times(folder: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", folder, "--codec", ",".join(("hpcm", *ORDINARY)), "-q", "0,50", "--device", "cpu")
    for name, more in {"a": (), "b": (), "c": ("--jobs", 2)}.items():
        result = run(*arguments, *more, "--json", tmp_path / f"{name}.json")
        assert result.exception is None, result.exception
    first = without_times(tmp_path / "a.json")
    assert first == without_times(tmp_path / "b.json")
    assert first == without_times(tmp_path / "c.json")
    assert len(first["per_image"]) == 6
    assert [other["name"] for other in first["other_codecs"]] == ["JPEG", "WebP", "JPEG 2000"]
    assert sorted(first["pictures_sha256"]) == ["p0.png", "p1.png", "p2.png"]


def test_other_codecs_get_the_file_sizes_of_the_first(folder: Path, tmp_path: Path) -> None:
    result = run("--dataset", folder, "--codec", "webp,jpeg", "-q", "60,90", "--json", tmp_path / "o.json")
    assert result.exception is None, result.exception
    data = json.loads((tmp_path / "o.json").read_text())
    (jpeg,) = data["other_codecs"]
    for ours, theirs in zip(data["per_image"], jpeg["per_image"], strict=True):
        assert (ours["image"], ours["quality"]) == (theirs["image"], theirs["quality"])
        assert theirs["bytes"] >= ours["bytes"]
        assert theirs["setting"] == int(theirs["setting"])
    assert "at the file size of WebP" in jpeg["description"]
    assert "setting" not in data["per_image"][0]


def test_own_qualities_are_kept_when_asked_for(folder: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", folder, "--codec", "webp", "--codec", "jpeg", "-q", "20,50,90", "--own-qualities")
    result = run(*arguments, "--json", tmp_path / "o.json")
    assert result.exception is None, result.exception
    (jpeg,) = json.loads((tmp_path / "o.json").read_text())["other_codecs"]
    own = run("--dataset", folder, "--codec", "jpeg", "-q", "20,50,90", "--json", tmp_path / "j.json")
    assert own.exception is None
    assert jpeg["results"]["bpp"] == json.loads((tmp_path / "j.json").read_text())["results"]["bpp"]
    assert "JPEG (this run)" in result.output


def test_a_file_is_the_smallest_that_reaches_the_size() -> None:
    picture, codec = Picture(small_photograph()), PillowCodec("jpeg")
    sizes = [len(codec.encode(picture, quality)) for quality in codec.qualities]
    for wanted in (sizes[0] - 5, sizes[7], sizes[60] + 1, sizes[100]):
        found = encode_to_size(codec, picture, wanted)
        assert len(found.data) == min(size for size in sizes if size >= wanted)
        assert not found.short
    beyond = encode_to_size(codec, picture, sizes[100] + 1)
    assert (beyond.quality, len(beyond.data), beyond.short) == (100, sizes[100], True)


def test_memory_is_written_when_asked_for_and_shown_anyway(folder: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", folder, "--codec", "jpeg", "-q", "50")
    assert "memory" in run(*arguments, "--json", tmp_path / "a.json").output
    assert "encoding_memory" not in (tmp_path / "a.json").read_text()
    assert run(*arguments, "--memory", "--json", tmp_path / "b.json").exception is None
    data = json.loads((tmp_path / "b.json").read_text())
    peaks = [row["encoding_memory"] for row in data["per_image"]]
    if None in peaks:
        pytest.skip("this system does not tell")
    assert max(peaks) == data["results"]["encoding_memory"][0] > 10_000_000


# ------------------------------------------------------------------------------------------------------------ resuming


def noting(real: Callable[[campaign.Trial], Row], made: list[campaign.Trial]) -> Callable[[campaign.Trial], Row]:
    """`real`, which notes what it is given."""

    def perform(trial: campaign.Trial) -> Row:
        made.append(trial)
        return real(trial)

    return perform


class Stopped(BaseException):
    pass


def test_an_interrupted_run_goes_on_where_it_was(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--dataset", folder, "--codec", "jpeg", "-q", "10,50", "--json", tmp_path / "o.json")
    real, made = campaign.perform, list[campaign.Trial]()

    def stops_at_the_fourth(trial: campaign.Trial) -> Row:
        if len(made) == 3:
            raise Stopped
        made.append(trial)
        return real(trial)

    monkeypatch.setattr(campaign, "perform", stops_at_the_fourth)
    with pytest.raises(Stopped):
        CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    partial = tmp_path / "o.json.partial"
    assert len(partial.read_text().splitlines()) == 3
    with open(partial, "a") as file:
        file.write('{"key": {"codec": "jp')  # the power fails in the middle of a line
    made.clear()
    monkeypatch.setattr(campaign, "perform", noting(real, made))
    result = run(*arguments)
    assert result.exception is None, result.exception
    assert len(made) == 3
    assert "3 measurements are in" in result.output
    assert not partial.exists()
    monkeypatch.undo()
    whole = run("--dataset", folder, "--codec", "jpeg", "-q", "10,50", "--json", tmp_path / "whole.json")
    assert whole.exception is None
    assert without_times(tmp_path / "o.json") == without_times(tmp_path / "whole.json")


def test_a_killed_process_has_left_its_measurements_on_disk(folder: Path, tmp_path: Path) -> None:
    work, output = tmp_path / "work.jsonl", tmp_path / "o.json"
    qualities = ",".join(map(str, range(101)))
    arguments = ["--dataset", folder, "--codec", "webp", "-q", qualities, "--work", work, "--json", output]
    child = subprocess.Popen(
        [sys.executable, "-m", "hpcm_codec", "eval", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (work.exists() and work.read_text().count("\n") >= 5) and time.monotonic() < deadline:
        assert child.poll() is None, "ended before it was killed"
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not output.exists()
    log = WorkLog(work)
    assert len(log) >= 5
    before = len(log)
    made: list[campaign.Trial] = []
    real = campaign.perform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "perform", noting(real, made))
        assert run(*arguments).exception is None
    assert len(made) == 303 - before


def test_a_changed_picture_or_setting_is_measured_again(folder: Path, tmp_path: Path) -> None:
    trial = campaign.Trial(CodecChoice("jpeg"), "v1", folder / "p0.png", "p0.png", "aa", 50.0)
    log = WorkLog(tmp_path / "w.jsonl")
    row = campaign.perform(trial)
    log.add(trial.key(), row)
    again = WorkLog(tmp_path / "w.jsonl")
    assert again.find(trial.key(), "other name.png") == Row(**{**row.__dict__, "image": "other name.png"})
    for change in ({"about": "v2"}, {"sha256": "bb"}, {"quality": 51.0}, {"size": 100}, {"verify": True}):
        changed = campaign.Trial(**{**trial.__dict__, **change})
        assert again.find(changed.key(), "p0.png") is None


def test_a_lossless_row_survives_the_work_file(tmp_path: Path) -> None:
    row = Row("p.png", 5, 200, 200, 100, 1.0, float("inf"), None, 0.1, 0.2)
    WorkLog(tmp_path / "w.jsonl").add({"codec": "x"}, row)
    assert WorkLog(tmp_path / "w.jsonl").find({"codec": "x"}, "p.png") == row


def test_a_work_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "diary.txt"
    path.write_text("dear diary\n")
    with pytest.raises(FileError, match="line 1 is not a measurement"):
        WorkLog(path)
    assert path.read_text() == "dear diary\n"


# ------------------------------------------------------------------------------------------------------- what is missing


def test_a_codec_that_is_not_installed_is_named_and_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    result = run("--dataset", folder, "--codec", "jpeg,jxl", "-q", "50", "--json", tmp_path / "o.json")
    assert result.exception is None, result.exception
    assert "jxl is left out" in result.stderr
    assert "pip install pillow-jxl-plugin" in result.stderr
    assert "other_codecs" not in json.loads((tmp_path / "o.json").read_text())
    alone = run("--dataset", folder, "--codec", "jxl", "-q", "50")
    assert isinstance(alone.exception, codecs.MissingCodecError)
    assert "pip install pillow-jxl-plugin" in str(alone.exception)


def test_unknown_codecs_and_pictures_are_refused(folder: Path, tmp_path: Path) -> None:
    for arguments in (
        ("--codec", "jpeg,gif"),
        ("--codec", "jpeg", "--report", tmp_path / "r.html", "--report-images", "nobody"),
        ("--codec", "jpeg", "--report-images", "p0"),
        ("--codec", "jpeg", "--anchor", "jpge"),
    ):
        assert isinstance(run("--dataset", folder, *arguments).exception, UsageError), arguments


@pytest.mark.parametrize("name", sorted(OTHER_SETS))
def test_sets_that_have_to_be_brought_along_are_found_and_counted(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="--data-dir"):
        find_dataset(name, tmp_path)
    folder = tmp_path / name
    folder.mkdir()
    for number in range(OTHER_SETS[name].pictures):
        (folder / f"{number}.png").touch()
    assert len(find_dataset(name, tmp_path).names) == OTHER_SETS[name].pictures
    (folder / "one more.png").touch()
    with pytest.raises(FileError, match=name):
        find_dataset(name, tmp_path)
