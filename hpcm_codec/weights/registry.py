"""The known checkpoints: those that are installed with the program, and those in the user's folder.

Nothing here imports torch, so that commands which only name a model, such as `hpcm info`, start fast.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from hpcm_codec.constants import DEFAULT_MODEL, own_name
from hpcm_codec.errors import FileError, HpcmError, UnsupportedError
from hpcm_codec.system.folders import user_folder
from hpcm_codec.weights.families import kept_identities, read_family
from hpcm_codec.weights.identity import FRACTION_PREFIX, damaged


def shipped_folders() -> list[Path]:
    """The folder of the program's own checkpoints: inside the wheel, or beside the package in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    return [package / "checkpoints", package.parent / "checkpoints"]


def shipped_checkpoints() -> dict[str, Path]:
    """The program's own checkpoints: name → file, the default model first."""
    found: dict[str, Path] = {}
    for folder in shipped_folders():
        for path in sorted(folder.glob("*.safetensors")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items(), key=lambda item: (item[0] != DEFAULT_MODEL, item[0])))


def models_folder() -> Path | None:
    """The folder for users' own checkpoints: $HPCM_MODELS, $XDG_DATA_HOME/hpcm-codec/models or ~/.local/share/hpcm-codec/models.

    None for a user without a home folder.
    """
    if chosen := os.environ.get("HPCM_MODELS"):
        return Path(chosen)
    folder = user_folder("XDG_DATA_HOME", ".local/share")
    return None if folder is None else folder / "models"


def known_checkpoints() -> dict[str, Path]:
    """The shipped checkpoints, then those in `models_folder`: name → file. A checkpoint whose name is taken is listed by its path."""
    known = shipped_checkpoints()
    folder = models_folder()
    for path in [] if folder is None else sorted(folder.glob("*.safetensors")):
        known[str(path) if path.stem in known else path.stem] = path
    return known


def has_integer_transforms(path: Path, identity: bytes | None = None) -> bool:
    """Whether files of a checkpoint decode to the same pixels on every processor, judged by the names of its tensors.

    identity: of a family, the member that is meant. Raises FileError when the file cannot be read as a checkpoint.
    """
    family = read_family(path)
    if family is not None and identity is not None and (number := family.number_of(identity)) is not None:
        return f"{FRACTION_PREFIX}g_s" in family.header(number)
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return f"{FRACTION_PREFIX}g_s" in header
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        raise damaged(path, error) from error


def find_checkpoint(name_or_path: str) -> Path:
    """The file of a checkpoint given by name ("phase1-lite"), alias or path; raises UnsupportedError or FileError."""
    path = Path(name_or_path)
    if path.suffix == ".safetensors" or path.exists():
        if not path.is_file():
            raise FileError(f"{path}: no such checkpoint file")
        return path
    known = known_checkpoints()
    if (name := own_name(name_or_path)) in known:
        return known[name]
    raise UnsupportedError(f"no checkpoint is called {name_or_path!r}; there are: {', '.join(known) or 'none'}")


def known_name(identity: bytes) -> str | None:
    """The name of the known checkpoint of that identity, or of the family that holds it; None without one. Damaged ones are skipped."""
    for name, path in known_checkpoints().items():
        try:
            if identity in kept_identities(path):
                return name
        except HpcmError:
            continue
    return None
