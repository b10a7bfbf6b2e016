"""`stage N`: copies one part of the pictures from the uploaded checkout to the machine's disk; the first call also installs our wheels."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile

from hpcm_codec.errors import FileError, HpcmError
from lease.machine import home
from lease.plan import LEASE, Plan

ARCHIVE = "pictures.zip"


def stage(plan: Plan, number: int) -> None:
    """Raises FileError for a part that is missing or incomplete, HpcmError where pip does not install the wheels."""
    name = f"part-{number}"
    if name not in plan.parts:
        raise FileError(f"there is no part {number}, there are {len(plan.parts)}", file=LEASE / name)
    archive = LEASE / name / ARCHIVE
    if not archive.exists():
        raise FileError("has not come", file=archive, advice=f"name .lease/{name} in carry")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != plan.parts[name]:
        raise FileError("has not come whole, or is of another plan", file=archive, advice="make the call again")
    folder = home() / "pictures"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive) as pictures:
        pictures.extractall(folder)
    (home() / f"{name}.staged").touch()
    install_wheels()
    missing = [part for part in plan.parts if not (home() / f"{part}.staged").exists()]
    count = len(list(folder.iterdir()))
    print(
        f"{name} is there: {count} pictures; {'still to come: ' + ', '.join(missing) if missing else 'all parts are there'}"
    )


def install_wheels() -> None:
    """Install the carried wheels into the folder that is kept between calls."""
    wheels = sorted((LEASE / "wheels").glob("*.whl"))
    if not wheels:
        return
    options = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--upgrade", "--target", str(home() / "site")]
    if subprocess.run([*command, *map(str, wheels)], check=False).returncode:
        raise HpcmError(
            "pip did not install the wheels", advice="see its message above; without compressai only training works"
        )
    print("installed:", ", ".join(wheel.name for wheel in wheels))
