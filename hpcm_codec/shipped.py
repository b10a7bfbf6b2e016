"""The checkpoints that came with the program, by name and by identity."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hpcm_codec.checkpoints import DEFAULT_MODEL, load_checkpoint, shipped_folders
from hpcm_codec.errors import HpcmError


def shipped_checkpoints() -> dict[str, Path]:
    """Name → file, the default model first."""
    found: dict[str, Path] = {}
    for folder in shipped_folders():
        for path in sorted(folder.glob("*.safetensors")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items(), key=lambda item: (item[0] != DEFAULT_MODEL, item[0])))


@cache
def identity_of_shipped(name: str) -> bytes:
    """The 8 bytes by which bitstreams name a shipped checkpoint; raises HpcmError when its file is damaged."""
    return load_checkpoint(name).identity


def shipped_name(identity: bytes) -> str | None:
    """The shipped checkpoint of that identity, or None; damaged ones are nobody's."""
    for name in shipped_checkpoints():
        try:
            if identity_of_shipped(name) == identity:
                return name
        except HpcmError:
            continue
    return None
