"""Operators that PyTorch lacks.

`biwkv4` is the linear attention of the RWKV context cell. `toolchain_report` and `ensure_built` are about its compiled
backends; importing this package compiles nothing.
"""

from __future__ import annotations

from hpcm_codec.ops.biwkv4 import biwkv4
from hpcm_codec.ops.build import ensure_built, toolchain_report
from hpcm_codec.ops.cache import BuildError

__all__ = ["BuildError", "biwkv4", "ensure_built", "toolchain_report"]
