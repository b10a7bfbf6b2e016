"""`bring` and `finish`, on this machine: check and keep the results; at the end join the weights, export a checkpoint and measure it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from hpcm_codec.errors import FileError, HpcmError
from lease.machine import ROOT, hpcm
from lease.stretches import UNDECAYED, WEIGHTS


def bring(folder: Path, source: Path) -> None:
    """Keep a call's files (those below `source`) in .lease/back, from where they can be uploaded again.

    Weights are checked first. Raises FileError for pieces that are missing, damaged or not of one export; earlier files are then kept.
    """
    if not source.is_dir():
        raise FileError("no such folder", file=source, advice="give the folder that the call's reply names as files_at")
    back, came = folder / "back", folder / "came"
    shutil.rmtree(came, ignore_errors=True)
    for made in (back, came):
        made.mkdir(parents=True, exist_ok=True)
    for path in source.rglob("*"):
        if path.is_file():
            shutil.copyfile(path, came / path.name)  # not the permissions: what comes back is read-only
    print(
        f"{came}: a copy; the next call may begin", flush=True
    )  # before torch is loaded: an idle machine is released after 30 s
    files = {path.name: path for path in came.iterdir()}
    pieces = [path for name, path in files.items() if name.startswith(WEIGHTS)]
    if pieces:
        from hpcm_codec.training.light import load_weights
        from hpcm_codec.weights.checkpoints import verify_checkpoint

        verify_checkpoint(load_weights(str(pieces[0].parent / WEIGHTS)), str(source))
        for earlier in back.glob(f"{WEIGHTS}*"):
            earlier.unlink()
    for name, path in files.items():
        shutil.copyfile(path, back / name)
    print(f"{back}: {', '.join(sorted(files))}")
    if pieces:
        line = json.loads((back / "figures.jsonl").read_text().splitlines()[-1])
        print(
            f"stretch {line['stretch']} of {line['of']} {line['ended']}: {line['seconds']:.0f} s trained in all, "
            f"{line['steps']} steps of this run, score {line.get('score', 'not measured')}, rate factor {line['rate_factor']:g}"
        )


def finish(folder: Path, calibrate: Path | None, evaluate: str | None, qualities: str | None) -> None:
    """Join the returned weights into one file, export it, and measure real files where a data set is named.

    Raises FileError where no weights were returned, HpcmError where a command fails.
    """
    from hpcm_codec.training.light import load_weights, pieces_of

    weights = folder / "back" / WEIGHTS
    load_weights(str(weights))  # whole and of one export
    result = folder / "result"
    result.mkdir(exist_ok=True)
    joined = result / WEIGHTS
    for name in (WEIGHTS, UNDECAYED):
        pieces = pieces_of(folder / "back" / name)
        if pieces or (folder / "back" / name).exists():
            (result / name).write_bytes(b"".join(piece.read_bytes() for piece in pieces or [folder / "back" / name]))
    exported = result / "exported.safetensors"
    form = ["--dtype", "float16"] if calibrate is None else ["--dtype", "int11", "--exact", "--calibrate", calibrate]
    _run(hpcm("checkpoints", "export", joined, "-o", exported, "-f", *form))
    print(f"{joined}: the averaged weights; {exported}: the checkpoint")
    if evaluate is not None:
        chosen = [] if qualities is None else ["-q", qualities]
        curve = result / "curve.json"
        _run(
            hpcm("eval", "--dataset", evaluate, "--model", exported, "--json", curve, "-f", "--device", "cpu", *chosen)
        )
        print(f"{curve}: the curve")


def _run(command: list[str]) -> None:
    print("$ hpcm", *command[3:], flush=True)
    paths = [str(ROOT), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if subprocess.run(command, env=environment, check=False).returncode:
        raise HpcmError(f"`hpcm {command[3]}` failed", advice="see its message above")
