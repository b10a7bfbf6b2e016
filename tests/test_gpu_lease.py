"""A rehearsal of the GPU lease: every call as in CALLS.md, on a simulated machine that has only the carried files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import small_photograph

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def tools_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


def tool(folder: Path, *arguments: object) -> str:
    """A command of tools/gpu_lease.py here; what it printed."""
    command = [sys.executable, str(ROOT / "tools" / "gpu_lease.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Machine:
    """A machine of the device tool: a folder that the checkout and the carried paths are copied to before each call.

    here: the folder where .lease was prepared; folder: the machine's.
    """

    here: Path
    folder: Path

    def start(self, call: dict[str, Any]) -> subprocess.Popen[str]:
        """Begin a call."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        for name in ("hpcm_codec", "tests", "csrc", "checkpoints", "tools", "pyproject.toml"):
            (copy / name).symlink_to(ROOT / name)
        for path in call["carry"]:
            shutil.copytree(self.here / path, copy / path)
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        variables = {"OUT": str(self.out), "HPCM_LEASE_HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        # python3 there must be ours; `exec` would be one process less, but the tool runs what it is given
        return subprocess.Popen(
            ["bash", "-c", call["command"].replace("python3", sys.executable)],
            cwd=copy,
            env={**os.environ, **variables, "PATH": path},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(self, call: dict[str, Any], status: int = 0) -> str:
        process = self.start(call)
        text = process.communicate(timeout=call["timeout_s"] + 300)[0]
        assert process.returncode == status, text
        returned = list(self.out.rglob("*"))
        assert len(returned) <= 8 and all(file.stat().st_size <= 16 * 2**20 for file in returned)
        return text

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def figures(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads((self.out / "figures.jsonl").read_text().splitlines()[-1])
        return line


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a prepared rehearsal in .lease: four training pictures, two to score with, one to check with, a small model."""
    from hpcm_codec.model.hpcm import HPCM
    from hpcm_codec.weights.checkpoints import save_checkpoint
    from test_hpcm_phase1 import SMALL

    folder = tmp_path_factory.mktemp("here")
    for name, count, edge in (("train", 4, 140), ("valid", 2, 260), ("checks", 1, 64), ("kodak", 2, 96)):
        (folder / name).mkdir()
        for number in range(count):
            Image.fromarray(small_photograph(edge + 4, edge, number)).save(folder / name / f"{'abcd'[number]}.png")
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels" / "lease_probe-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("lease_probe.py", "")
        about = "lease_probe-1.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: lease-probe\nVersion: 1\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    save_checkpoint(folder / "small.safetensors", SMALL, HPCM(SMALL).state_dict(), {})
    arguments = [f"--{name}={folder / path}" for name, path in (("pictures", "train"), ("wheels", "wheels"))]
    arguments += [f"--{name}={folder / name}" for name in ("valid", "checks")]
    reported = tool(folder, "prepare", "--rehearse", *arguments, "--weights", folder / "small.safetensors")
    assert "CALLS.md: 6 calls" in reported
    yield folder


def calls(here: Path) -> dict[str, dict[str, Any]]:
    return {call["name"]: call for call in json.loads((here / ".lease" / "calls.json").read_text())}


def length_in(text: str) -> tuple[float, float]:
    """The minutes of a run and the share of them from which its rate falls, as a stretch prints them."""
    found = re.search(r"trains until minute ([0-9.]+), falling from ([0-9]+)%", text)
    assert found is not None, text
    return float(found[1]), int(found[2]) / 100


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, "it has ended"
        time.sleep(0.05)


def child_of(process: subprocess.Popen[str], name: str) -> int:
    """The number of the process that runs tools/gpu_lease.py below a call's shell."""
    psutil = pytest.importorskip("psutil")
    below = psutil.Process(process.pid).children(recursive=True)
    return int(next(child.pid for child in below if any(name in part for part in child.cmdline())))


@pytest.mark.slow
def test_a_lease_from_staging_to_a_curve(here: Path, tmp_path: Path) -> None:
    machine, call = Machine(here, tmp_path), calls(here)
    assert list(call) == ["stage 1", "stage 2", "choose", "train 1", "train 2", "check"]
    assert "still to come: part-2" in machine.call(call["stage 1"])
    assert (machine.home / "site" / "lease_probe.py").exists()
    assert "4 pictures; all parts are there" in machine.call(call["stage 2"])
    reported = machine.call(call["choose"])
    assert "CHOSEN: 2 crops, adamw" in reported and "tests passed" in reported, reported
    assert json.loads((machine.out / "trials.json").read_text())[0]["crops_per_second"] > 0

    # the first stretch, asked to end in the middle, as when the tool's limit is reached
    process = machine.start(call["train 1"])
    wait_for(machine.home / "run" / "metrics.jsonl", process)
    os.kill(child_of(process, "gpu_lease.py"), signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 0
    cut = machine.figures()
    assert (
        cut["ended"] == "asked to end" and cut["steps"] >= 1 and cut["last_row"]["progress"] < 0.9
    )  # a busy machine is slow to see the signal
    # and once more, to the end of its time
    machine.call(call["train 1"])
    first = machine.figures()
    assert first["ended"] == "cut" and first["steps"] > cut["steps"] and first["seconds"] >= 3
    assert first["last_row"]["learning_rate"] == pytest.approx(8e-4, rel=0.02), "it falls too early"
    assert first["files"] == [
        f"weights.safetensors.{n}of{len(first['files'])}" for n in range(1, 1 + len(first["files"]))
    ]
    assert len(first["files"]) > 1 and first["score"] > 0
    assert "stretch 1 of 2 cut" in tool(here, "bring", machine.out)

    reported = machine.call(call["train 2"])
    assert length_in(reported) == pytest.approx(((first["seconds"] + 3) / 60, 0.8), abs=0.006), (
        "the fall ends with the stretch"
    )
    last = machine.figures()
    assert last["ended"] == "finished" and last["steps"] > first["steps"] and last["offset"] == 0
    assert "stretch 2 of 2 finished" in tool(here, "bring", machine.out)
    reported = machine.call(call["check"])
    assert "'cpu's file read alike\": True" in reported.replace('"cpu', "'cpu") and "backward floor ms" in reported, (
        reported
    )
    assert {"check.json", "bench.json"} <= {path.name for path in machine.out.iterdir()}

    reported = tool(here, "finish", "--evaluate", here / "kodak", "-q", "20,80")
    curve = json.loads((here / ".lease" / "result" / "curve.json").read_text())
    assert len(curve["results"]["bpp"]) == 2
    from hpcm_codec.training.light import load_weights

    joined = load_weights(str(here / ".lease" / "result" / "weights.safetensors"))
    assert joined.training["steps"] == last["steps"]
    undecayed = load_weights(str(here / ".lease" / "result" / "undecayed.safetensors"))
    assert 0 < undecayed.training["steps"] < last["steps"]


@pytest.mark.exhaustive
def test_another_machine_is_detected_and_training_continues_from_the_returned_weights(
    here: Path, tmp_path: Path
) -> None:
    from hpcm_codec.training.light import export_light
    from lease.calls import calls_after_a_loss
    from lease.plan import REHEARSAL, Choice, Plan

    plan = Plan.read(here / ".lease")
    call = {entry.name: vars(entry) for entry in calls_after_a_loss(plan, 2, 2)}
    back = here / ".lease" / "back"
    shutil.rmtree(back, ignore_errors=True)
    back.mkdir()
    export_light(str(here / "small.safetensors"), back / "weights.safetensors", int(REHEARSAL.piece_mib * 2**20))
    Choice(1).write(back / "choice.json")
    (back / "figures.jsonl").write_text(json.dumps({"seconds": 3.0, "rate_factor": 0.5, "start_seconds": 1.0}) + "\n")

    machine = Machine(here, tmp_path)
    text = machine.call(calls(here)["train 2"], status=1)
    assert "this machine lacks part-1, part-2" in text and "Traceback" not in text
    for name in ("stage 1", "stage 2"):
        machine.call(call[name])
    text = machine.call(calls(here)["train 2"], status=1)
    assert "carry .lease/back" in text
    reported = machine.call(call["train 2 again"])
    assert "from the weights that came back after 3 s" in reported
    figures = machine.figures()
    assert figures["ended"] == "finished" and figures["offset"] == 3 and figures["seconds"] >= 6
    assert figures["choice"] == "1 crops, adamw" and figures["rate_factor"] == 0.5
    # 3 s were trained of 6, so the rate falls from 0.8·6 - 3 = 1.8 of the new run's 3 s on
    assert length_in(reported) == pytest.approx((3 / 60, 0.6), abs=0.006)
    assert figures["last_row"]["learning_rate"] <= 0.51 * 8e-4


def test_the_schedule_of_all_stretches_ends_with_the_last_one() -> None:
    from lease.plan import Plan
    from lease.stretches import schedule

    plan = Plan(stretches=3, stretch_seconds=120, start_seconds=10, end_seconds=10, decay_start=0.8)
    assert schedule(plan, 0, 100, 2, 0) == schedule(plan, 100, 100, 1, 0) == schedule(plan, 200, 100, 0, 0)
    assert schedule(plan, 0, 100, 2, 0).minutes == 5 and schedule(plan, 0, 100, 2, 0).decay_start == pytest.approx(0.8)
    # a slow second stretch: what is left becomes less, and the rate falls earlier
    assert schedule(plan, 160, 100, 0, 0).minutes == pytest.approx(260 / 60)
    # begun anew after 100 of 300 seconds: its own clock has 200, and 240 is at 140 of them
    anew = schedule(plan, 100, 100, 1, 100)
    assert anew.minutes == pytest.approx(200 / 60) and anew.decay_start == pytest.approx(0.7)
    # begun anew inside the fall
    assert schedule(plan, 280, 20, 0, 280).decay_start == 0


def trial(batch: int, rate: float, optimiser: str = "adamw", compile: bool = False, start: float = 10.0) -> Any:
    from lease.choosing import Trial
    from lease.plan import Choice

    return Trial(Choice(batch, optimiser, compile), rate, start)


def test_the_choice_counts_crops_and_what_starting_costs() -> None:
    from hpcm_codec.errors import HpcmError
    from lease.choosing import best
    from lease.plan import Choice, Plan

    plan = Plan(optimisers=("adamw",))
    assert best(plan, [trial(32, 900), trial(64, 1000)]) == Choice(32)
    assert best(plan, [trial(32, 700), trial(64, 1000)]) == Choice(64)
    assert best(plan, [trial(32, 0), trial(64, 10)]) == Choice(64), "32 did not work"
    plain = [trial(32, 900), trial(64, 1000)]
    assert best(plan, [*plain, trial(32, 1300, compile=True, start=60)]) == Choice(32, compile=True)
    assert best(plan, [*plain, trial(32, 1000, compile=True, start=90)]) == Choice(32)
    assert best(plan, [*plain, trial(32, 800, "muon")]) == Choice(32, "muon")
    assert best(plan, [*plain, trial(32, 700, "muon")]) == Choice(32)
    assert best(plan, [*plain, trial(64, 1000, "muon")]) == Choice(32), "of another batch"
    with pytest.raises(HpcmError, match="no way of training works"):
        best(plan, [trial(32, 0)])


def test_a_loss_that_diverges_is_detected_and_the_good_weights_are_restored(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpcm_codec.model.hpcm import HPCM
    from hpcm_codec.weights.checkpoints import save_checkpoint
    from lease.plan import Plan
    from lease.stretches import Position, Stretch, blown_up
    from test_hpcm_phase1 import SMALL

    rows = [{"loss": 1.0 + 0.1 * (number % 3)} for number in range(20)]
    assert not blown_up(rows, 1.5) and not blown_up([], 1.5) and not blown_up([{"loss": 9.0}], 1.5)
    assert blown_up([*rows, {"loss": 1.8}], 1.5) and blown_up([*rows[:1], {"loss": float("nan")}], 1.5)

    monkeypatch.setenv("HPCM_LEASE_HOME", str(tmp_path))
    Position(100.0, 1.0, "trunk").write()
    stretch = Stretch(Plan.read(here / ".lease"), 1, 2)
    stretch.run.mkdir()
    (stretch.run / "state.pt").write_bytes(b"bad")
    save_checkpoint(stretch.good, SMALL, HPCM(SMALL).state_dict(), {"seconds": 50, "steps": 9})
    stretch._go_back()
    assert not list(stretch.run.iterdir()) and not stretch.good.exists()
    assert Position.read() == stretch.position
    assert (stretch.position.offset, stretch.position.rate_factor) == (150, 0.5)
    assert Path(stretch.position.start).exists()
    stretch._go_back()  # before any save: the same weights, a quarter of the rate
    assert stretch.position == Position(150, 0.25, stretch.position.start)


def test_pieces_of_two_exports_are_not_kept(here: Path, tmp_path: Path) -> None:
    from hpcm_codec.errors import FileError
    from lease.returning import bring

    (tmp_path / "files").mkdir()
    for number in (1, 2):
        (tmp_path / "files" / f"weights.safetensors.{number}of2").write_bytes(b"x")
    with pytest.raises(FileError, match="do not make a checkpoint"):
        bring(tmp_path / "lease", tmp_path / "files")
    assert not list((tmp_path / "lease" / "back").iterdir())


def test_the_real_calls_fit_the_tool_and_name_every_file_they_need(tmp_path: Path) -> None:
    from lease.calls import LONGEST_CALL, calls_of, write_calls
    from lease.plan import Plan

    plan = Plan(parts={f"part-{number}": "" for number in (1, 2, 3)})
    written = calls_of(plan)
    assert [call.name for call in written] == [
        *(f"stage {n}" for n in (1, 2, 3)),
        "choose",
        "train 1",
        "train 2",
        "check",
    ]
    assert all(call.timeout_s <= LONGEST_CALL and ".lease/plan" in call.carry for call in written)
    assert {".lease/wheels", ".lease/part-1", ".lease/start", ".lease/checks"} <= {
        p for call in written for p in call.carry
    }
    write_calls(plan, tmp_path, {})
    page = (tmp_path / "CALLS.md").read_text()
    assert all(call.command in page for call in written) and "train --stretch N --of M" in page
    plan.write(tmp_path)
    assert Plan.read(tmp_path) == plan
