"""Operators that PyTorch lacks.

`biwkv4.biwkv4` is the linear attention of the RWKV context cell. `toolchain_report` and `ensure_built` are about the compiled
backends; importing this package compiles nothing and imports no torch.
"""

from __future__ import annotations

from hpcm_codec.ops.build import ensure_built
from hpcm_codec.ops.cache import BuildError
from hpcm_codec.ops.report import toolchain_report

__all__ = ["BuildError", "ensure_built", "toolchain_report"]
