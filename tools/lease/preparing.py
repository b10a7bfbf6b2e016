"""`prepare`: puts all that a lease needs into .lease/, in folders that are small enough for the calls, and writes the list of calls."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from hpcm_codec.errors import FileError, HpcmError
from lease.calls import calls_after_a_loss, calls_of, write_calls
from lease.machine import ROOT
from lease.plan import LEASE, PLAN, Plan
from lease.staging import ARCHIVE

# What the machine's image lacks of our dependencies (/work/.library/device/KINDS.md), and pooch's own platformdirs.
WHEELS = ("compressai==1.2.8", "pooch==1.9.0", "platformdirs==4.14.8", "bjontegaard==1.3.0")
PYTHON_THERE, GLIBC_THERE = "3.12", 39
MIB = 2**20
SHARE_OF_OTHERS = 1.0  # MiB of a stage call for the plan and the wheels


def prepare(
    plan: Plan, folder: Path, pictures: Path, valid: Path, checks: Path, weights: str, wheels: Path | None
) -> Plan:
    """Fill the folder; returns the plan that is written there.

    pictures, valid: training and validation pictures; checks: the folder with the plan's `check_pictures`; weights: where training
    begins, a checkpoint's name, path, run or pieces; wheels: a folder of them, None to ask pip.
    Raises FileError for what is missing, HpcmError where a call would be too large or .lease would travel as a whole.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tree = tree_mib()
    _write_weights(plan, folder, weights)
    _write_checks(plan, folder, valid, checks)
    _fetch_wheels(folder / "wheels", wheels)
    parts = _write_parts(folder, pictures, plan.limit_mib - tree - SHARE_OF_OTHERS, plan.least_parts)
    plan = dataclasses.replace(plan, parts=parts)
    plan.write(folder)
    sizes = {}
    calls = [*calls_of(plan), calls_after_a_loss(plan, plan.stretches, plan.stretches)[-1]]
    for call in calls:
        paths = [folder / Path(path).relative_to(LEASE) for path in call.carry]
        # what came back is as large as what training begins with
        sizes[call.name] = tree + sum(size_mib(folder / "start" if path.name == "back" else path) for path in paths)
    if heavy := {name: round(size, 1) for name, size in sizes.items() if size > plan.limit_mib}:
        raise HpcmError(f"too much for a call of {plan.limit_mib:g} MiB: {heavy}", advice="prepare with fewer pictures")
    write_calls(plan, folder, sizes)
    print(f"the working tree: {tree:.1f} MiB of the {plan.limit_mib:g} that travel with a call")
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        print(f"{path}: {size_mib(path):.1f} MiB")
    print(f"{folder / 'CALLS.md'}: {len(calls_of(plan))} calls")
    return plan


def size_mib(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / MIB


def tree_mib() -> float:
    """MiB that are uploaded with every call: all files that git does not ignore; raises HpcmError if .lease is among them."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, capture_output=True, check=False)
    ignored = (
        subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", str(LEASE / PLAN)], check=False).returncode == 0
    )
    if done.returncode or not ignored:
        raise HpcmError("this is no checkout whose git ignores .lease", advice="prepare in the session's own clone")
    files = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    shared = [path for path in (ROOT / "shared").rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in {*files, *shared} if path.is_file()) / MIB


def _write_parts(folder: Path, pictures: Path, most_mib: float, least_parts: int) -> dict[str, str]:
    """The pictures as they are, in as many archives as the size asks for; SHA-256 by the name of a part.

    They stay JPEG: smaller lossless forms would need as many calls, and a call costs seconds.
    """
    from hpcm_codec.training.data import image_files

    files = image_files(pictures)
    total = sum(_size_in_archive(path) for path in files)
    count = max(least_parts, -(-total // int(most_mib * MIB)))
    parts: dict[str, str] = {}
    ends = [total * (number + 1) / count for number in range(count)]
    done, waiting = 0, iter(files)
    for number, stop in enumerate(ends, 1):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:  # stored: they are compressed already
            for path in waiting:
                archive.write(path, path.name)
                done += _size_in_archive(path)
                if done >= stop:
                    break
        name = f"part-{number}"
        (folder / name).mkdir()
        (folder / name / ARCHIVE).write_bytes(data.getbuffer())
        parts[name] = hashlib.sha256(data.getbuffer()).hexdigest()
    return parts


def _size_in_archive(path: Path) -> int:
    return path.stat().st_size + 2 * len(path.name) + 76


def _write_weights(plan: Plan, folder: Path, weights: str) -> None:
    """The initial weights, in bfloat16 and in pieces like those of the results; in a rehearsal also the model's configuration."""
    from hpcm_codec.training.light import export_light, load_weights

    (folder / "start").mkdir()
    export_light(weights, folder / "start" / "start.safetensors", int(plan.piece_mib * MIB))
    if plan.model.endswith(".json"):
        config = folder / Path(plan.model).relative_to(LEASE)
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(json.loads(load_weights(weights).config.to_json())) + "\n")


def _write_checks(plan: Plan, folder: Path, valid: Path, checks: Path) -> None:
    """The middles of the validation pictures, from which scores are computed, and the pictures of `check`."""
    from PIL import Image

    from hpcm_codec.training.data import image_files
    from hpcm_codec.training.scoring import middles

    (folder / "checks" / "valid").mkdir(parents=True)
    for path, middle in zip(image_files(valid), middles(valid), strict=True):
        pixels = (middle * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "checks" / "valid" / f"{path.stem}.png")
    (folder / "checks" / "pictures").mkdir()
    for name in plan.check_pictures:
        if not (checks / name).is_file():
            raise FileError(
                "no such picture", file=checks / name, advice="name the folder of the Kodak pictures with --checks"
            )
        shutil.copyfile(checks / name, folder / "checks" / "pictures" / name)


def _fetch_wheels(target: Path, source: Path | None) -> None:
    """Copy the wheels of a folder, or download them with pip; raises HpcmError where pip does not find one."""
    target.mkdir()
    if source is not None:
        for path in sorted(source.glob("*.whl")):
            shutil.copyfile(path, target / path.name)
        return
    options = ["download", "-q", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    options += ["--python-version", PYTHON_THERE, "--implementation", "cp", "-d", str(target)]
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(17, GLIBC_THERE + 1)]  # pip matches them exactly
    named: Sequence[str] = [part for platform in platforms for part in ("--platform", platform)]
    if subprocess.run([sys.executable, "-m", "pip", *options, *named, *WHEELS], check=False).returncode:
        raise HpcmError(
            "pip did not fetch the wheels", advice="see its message above, or name a folder of them with --wheels"
        )
