"""Where the time of a whole command goes: from the shell's start of a process to its end, part by part."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcm_codec.benchmark.timing import Action  # which imports torch, and the process that is measured must not

PARTS = ("interpreter", "modules", "checkpoint", "network", "input", "codec", "output", "end")


def measure_whole(picture: Path, quality: float, model: str, threads: int | None, runs: int) -> dict[str, Any]:
    """Medians over fresh processes: action → seconds of PARTS and in all, and the largest resident memory in bytes.

    A process does what `hpcm encode` and `hpcm decode` do for one file, on the CPU. Raises HpcmError when one fails.
    """
    results: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        files = {
            "encode": (picture, Path(folder) / "a.hpcm"),
            "decode": (Path(folder) / "a.hpcm", Path(folder) / "a.png"),
        }
        actions: tuple[Action, Action] = ("encode", "decode")
        for action in actions:
            source, target = files[action]
            taken = [_run(action, source, target, quality, model, threads) for _ in range(runs + 1)][
                1:
            ]  # the first compiles
            parts = {part: statistics.median(one["parts"][part] for one in taken) for part in PARTS}
            whole = statistics.median(one["whole"] for one in taken)
            results[action] = {"parts": parts, "whole": whole, "memory": max(one["memory"] for one in taken)}
    return results


def _run(action: Action, source: Path, target: Path, quality: float, model: str, threads: int | None) -> dict[str, Any]:
    from hpcm_codec.benchmark.process import run_module

    job = {"action": action, "source": str(source), "target": str(target), "quality": quality}
    start = time.time()  # the same clock in both processes
    said = run_module("hpcm_codec.benchmark.whole", json.dumps({**job, "model": model, "threads": threads}))
    whole = time.time() - start
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    marks: list[float] = found["marks"]
    seconds = [later - earlier for earlier, later in zip([start, *marks], [*marks, start + whole], strict=True)]
    return {"parts": dict(zip(PARTS, seconds, strict=True)), "whole": whole, "memory": found["memory"]}


def _work(job: dict[str, Any]) -> list[float]:
    """What the fresh process does; when each of PARTS but the last was done."""
    marks = [time.time()]

    def done() -> None:
        marks.append(time.time())

    from hpcm_codec.codec import Codec
    from hpcm_codec.images import read_picture, write_picture
    from hpcm_codec.ops import build
    from hpcm_codec.system.files import write_atomically
    from hpcm_codec.system.threads import set_threads
    from hpcm_codec.weights.stored import read_models

    set_threads(job["threads"])
    build.use_compiled("integer")
    done()
    stored = read_models(job["model"])
    done()
    codec = Codec(stored, "cpu").at(job["quality"])
    done()
    if job["action"] == "encode":
        picture = read_picture(job["source"])
        done()
        data = codec.encode(picture, job["quality"])
        done()
        write_atomically(job["target"], data, overwrite=True)
    else:
        data = Path(job["source"]).read_bytes()
        done()
        picture = codec.decode(data)
        done()
        write_picture(picture, job["target"], overwrite=True)
    done()
    return marks


if __name__ == "__main__":
    from hpcm_codec.evaluation.machine import peak_memory_of_this_process

    found = _work(json.loads(sys.argv[1]))
    print(json.dumps({"marks": found, "memory": peak_memory_of_this_process()}))
