"""Hatchling's hook: csrc/ and checkpoints/ lie beside the package in a checkout, and inside it once installed."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DataFolders(BuildHookInterface):
    """An editable install finds both folders in the checkout; only a wheel needs copies."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"].update({folder: f"hpcm_codec/{folder}" for folder in ("csrc", "checkpoints")})
