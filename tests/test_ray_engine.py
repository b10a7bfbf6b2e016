"""A batch on Ray: every input has exactly one row, even if workers end; and a clear error where Ray is not installed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from conftest import small_photograph
from hpcm_codec.batch import ray_engine
from hpcm_codec.bitstream.container import parse_stream
from hpcm_codec.cli.main import main

PICTURES = 16


def kill_a_worker_half_way(out: Path, killed: list[tuple[int, float]], over: threading.Event) -> None:
    """SIGKILL one of the two workers below this process as soon as a quarter of the files is there."""
    import psutil

    while not over.wait(0.005):
        if out.is_dir() and len(list(out.glob("*.hpcm"))) >= PICTURES // 4:
            workers = [
                child.pid
                for child in psutil.Process().children(recursive=True)
                if child.name().startswith("ray::") and "_Worker" in " ".join(child.cmdline())
            ]
            if workers:
                os.kill(workers[0], signal.SIGKILL)
                killed.append((len(workers), time.time()))
                return


@pytest.mark.exhaustive
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'hpcm-codec[ray]'")
def test_a_killed_worker_loses_nothing_and_makes_nothing_twice(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    album, manifest = tmp_path / "album", tmp_path / "m.jsonl"
    album.mkdir()
    for number in range(PICTURES - 1):
        Image.fromarray(small_photograph(300, 290, number)).save(album / f"{number:02}.png")
    (album / "broken.png").write_bytes(b"no picture")
    monkeypatch.setenv("PYTHONPATH", str(root))  # an installed package is another one than that under test
    monkeypatch.chdir(tmp_path)  # names stay as they are given, wherever the workers are
    killed: list[tuple[int, float]] = []
    killer = threading.Thread(target=kill_a_worker_half_way, args=(tmp_path / "out", killed, over := threading.Event()))
    killer.start()
    arguments = ["encode", "album", "-o", "out", "--manifest", str(manifest), "--engine", "ray", "--jobs", "2"]
    done = CliRunner().invoke(main, [*arguments, "-q", "30", "--quiet"])
    over.set()
    killer.join()
    assert done.exit_code == 5, (done.stderr, done.exception)
    assert len(done.stderr.splitlines()) == 2, "the broken picture, and the summary"
    assert done.stderr.splitlines()[-1] == f"hpcm: 1 of {PICTURES} failed: {os.path.join('album', 'broken.png')}"
    assert killed and killed[0][0] == 2, "two workers, one of them killed"
    outputs = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(outputs) == {f"{number:02}.hpcm" for number in range(PICTURES - 1)}
    assert max(path.stat().st_mtime for path in outputs.values()) > killed[0][1], "there was work left"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert sorted(row["path"] for row in rows) == sorted(os.path.join("album", name) for name in os.listdir(album))
    assert sorted(row["status"] for row in rows) == ["done"] * (PICTURES - 1) + ["failed"]
    alone = tmp_path / "alone"
    CliRunner().invoke(main, ["encode", str(album), "-o", str(alone), "-q", "30", "--quiet"])
    for name, path in outputs.items():
        parse_stream(path.read_bytes())
        assert path.read_bytes() == (alone / name).read_bytes()


def test_a_missing_ray_is_named_with_what_to_install(photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["encode", str(photograph), "--engine", "ray"])
    assert done.exit_code == 4 and len(done.stderr.splitlines()) == 1
    assert "--engine ray needs Ray Data" in done.stderr and "pip install 'hpcm-codec[ray]'" in done.stderr
    assert not photograph.with_suffix(".hpcm").exists()
