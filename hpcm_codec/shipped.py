"""The checkpoints that came with the program, by identity."""

from __future__ import annotations

from functools import cache

from hpcm_codec.checkpoints import load_checkpoint, shipped_checkpoints
from hpcm_codec.errors import HpcmError


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
