"""The checkpoints that are known: those that came with the program, and those in the user's folder; and the identities by which
bitstreams name them.

Nothing here imports torch, so that what only has to name a model, such as `hpcm info`, answers at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hpcm_codec.errors import FileError, HpcmError, UnsupportedError
from hpcm_codec.system.folders import user_folder

DEFAULT_MODEL = "phase1-lite"
# safetensors' names of types → torch's, which identities are made of; numpy has no bfloat16
_TYPES = {
    "F64": "torch.float64",
    "F32": "torch.float32",
    "F16": "torch.float16",
    "I64": "torch.int64",
    "I32": "torch.int32",
    "I16": "torch.int16",
    "I8": "torch.int8",
    "U8": "torch.uint8",
    "BOOL": "torch.bool",
}


def shipped_folders() -> list[Path]:
    """Where checkpoints come with the program: inside the wheel, or beside the package in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    return [package / "checkpoints", package.parent / "checkpoints"]


def shipped_checkpoints() -> dict[str, Path]:
    """The checkpoints that came with the program: name → file, the default model first."""
    found: dict[str, Path] = {}
    for folder in shipped_folders():
        for path in sorted(folder.glob("*.safetensors")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items(), key=lambda item: (item[0] != DEFAULT_MODEL, item[0])))


def models_folder() -> Path | None:
    """Where users keep other checkpoints: $HPCM_MODELS, $XDG_DATA_HOME/hpcm-codec/models or ~/.local/share/hpcm-codec/models.

    None for a user without a home.
    """
    if chosen := os.environ.get("HPCM_MODELS"):
        return Path(chosen)
    folder = user_folder("XDG_DATA_HOME", ".local/share")
    return None if folder is None else folder / "models"


def known_checkpoints() -> dict[str, Path]:
    """The shipped checkpoints, then those in `models_folder`: name → file. One whose name is taken goes by its path."""
    known = shipped_checkpoints()
    folder = models_folder()
    for path in [] if folder is None else sorted(folder.glob("*.safetensors")):
        known[str(path) if path.stem in known else path.stem] = path
    return known


def find_checkpoint(name_or_path: str) -> Path:
    """The file of a checkpoint given by name ("phase1-lite") or path; raises UnsupportedError or FileError."""
    path = Path(name_or_path)
    if path.suffix == ".safetensors" or path.exists():
        if not path.is_file():
            raise FileError(f"{path}: no such checkpoint file")
        return path
    known = known_checkpoints()
    if name_or_path in known:
        return known[name_or_path]
    raise UnsupportedError(f"no checkpoint is called {name_or_path!r}; there are: {', '.join(known) or 'none'}")


def identity_of_parts(parts: Iterable[tuple[str, str, tuple[int, ...], bytes | memoryview]]) -> bytes:
    """First 8 bytes of SHA-256 over names, types (as torch writes them), shapes and bytes of tensors, in the order of the names."""
    digest = hashlib.sha256()
    for name, dtype, shape, content in parts:
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
        digest.update(content)
    return digest.digest()[:8]


@contextmanager
def opened(path: str | Path, framework: str) -> Iterator[Any]:
    """A safetensors file, whose tensors come as "pt" or "numpy"; raises FileError when it is damaged, as late as what is read inside."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path}: damaged or not a checkpoint ({error}); fetch it again") from error


def identity_of_file(path: str | Path) -> bytes:
    """The identity of a checkpoint's file, as `load_checkpoint` finds it; raises FileError when it is damaged."""
    with opened(path, "numpy") as file:
        names = sorted(file.keys())
        types = {name: file.get_slice(name).get_dtype() for name in names}
        if set(types.values()) <= set(_TYPES):
            tensors = ((name, file.get_tensor(name)) for name in names)
            return identity_of_parts(
                (name, _TYPES[types[name]], tensor.shape, tensor.tobytes()) for name, tensor in tensors
            )
    from hpcm_codec.weights.checkpoints import load_checkpoint

    return load_checkpoint(str(path)).identity


@cache
def kept_identity(path: Path) -> bytes:
    """`identity_of_file`, computed once."""
    return identity_of_file(path)


def known_name(identity: bytes) -> str | None:
    """The name of the known checkpoint of that identity, or None; damaged ones are nobody's."""
    for name, path in known_checkpoints().items():
        try:
            if kept_identity(path) == identity:
                return name
        except HpcmError:
            continue
    return None
