"""The rows of metrics that a run writes: metrics.jsonl always, TensorBoard's event files when asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpcm_codec.errors import UnsupportedError
from hpcm_codec.system.files import write_atomically
from hpcm_codec.system.lines import append_line, read_lines
from hpcm_codec.training.processes import INSTALL

FILE_NAME = "metrics.jsonl"
_NOT_SCALARS = ("step", "progress", "seconds")


class MetricsLog:
    """Appends rows to RUN/metrics.jsonl, and their scalars to RUN/tensorboard.

    step: where the run continues; rows that a killed run wrote after its last save, and a torn last line, are removed.
    Raises UnsupportedError for TensorBoard where it is not installed.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self._path = folder / FILE_NAME
        self._writer: Any = _summary_writer(folder / "tensorboard", step) if tensorboard else None
        lines, torn = read_lines(self._path)
        kept = [line for line in lines if _belongs(line, step)]
        if torn or kept != lines:
            write_atomically(self._path, b"".join(line + b"\n" for line in kept), overwrite=True)

    def write(self, row: dict[str, float]) -> None:
        """Add a row; it has a `step`."""
        append_line(self._path, json.dumps(row))
        if self._writer is not None:
            for name, value in row.items():
                if name not in _NOT_SCALARS:
                    self._writer.add_scalar(f"train/{name}", value, int(row["step"]))
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _belongs(line: bytes, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UnsupportedError(
            "the package tensorboard is not installed",
            advice=f"{INSTALL} (or: tensorboard), or leave --tensorboard out",
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
