"""Hatchling's hook: csrc/ and checkpoints/ lie beside the package in a checkout, and inside it once installed; and a wheel that is built
where there is a C++ compiler has the integer operators compiled, for several instruction sets, of which a program takes the best."""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DataFolders(BuildHookInterface):
    """An editable install finds both folders in the checkout; only a wheel needs copies."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"].update({folder: f"hpcm_codec/{folder}" for folder in ("csrc", "checkpoints")})
            self._add_compiled(build_data)

    def _add_compiled(self, build_data: dict[str, Any]) -> None:
        """The libraries are plain C: one wheel serves every Python on such a machine."""
        folder = Path(tempfile.mkdtemp(prefix="hpcm-compiled-"))
        sys.path.insert(0, self.root)  # the package, of which nothing but `ops.shipped` and what that needs is imported
        try:
            from hpcm_codec.ops.shipped import compile_levels

            made = compile_levels(folder)
        finally:
            sys.path.remove(self.root)
        for library in made:
            build_data["force_include"][str(library)] = f"hpcm_codec/ops/compiled/{library.name}"
        if made:
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
