"""Measurements on disk, written as one line each when they are made, so that a crash or Ctrl-C costs only the unfinished ones.

A line of the file is a JSON object: "key", all that the figures depend on (codec, settings and library versions,
checkpoint, the picture's SHA-256, quality…), and "row", the figures. A measurement whose key is in the file is not made
again; a last line that was cut short is ignored. Lines with other keys stay: one file may serve several runs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hpcm_codec.errors import FileError
from hpcm_codec.evaluation.runner import Row
from hpcm_codec.system.lines import append_line, read_lines

Key = Mapping[str, str | float | bool | None]


class WorkLog:
    """The measurements made so far. path: the file, made at the first measurement; None keeps them in memory only.

    Raises FileError when the file cannot be read, or is not one of these.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self._rows: dict[str, Row] = {}
        self._torn = False
        if self.path is not None:
            self._read(self.path)

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, key: Key, image: str) -> Row | None:
        """The row of a measurement made before, for a picture that is now called `image`."""
        row = self._rows.get(_text_of(key))
        return None if row is None else replace(row, image=image)

    def add(self, key: Key, row: Row) -> None:
        """Keep a measurement: on disk when this returns. Raises FileError when it cannot be written."""
        self._rows[_text_of(key)] = row
        if self.path is None:
            return
        figures = {name: None if value is None else _writable(value) for name, value in asdict(row).items()}
        line = json.dumps({"key": dict(key), "row": figures}, ensure_ascii=False, sort_keys=True)
        append_line(self.path, "\n" + line if self._torn else line, durable=True)
        self._torn = False

    def remove(self) -> None:
        """Delete the file, if there is one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        lines, torn = read_lines(path)
        self._torn = bool(torn)
        for number, content in enumerate([*lines, torn], start=1):
            line = content.decode("utf-8", errors="replace")
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                row = Row(**{name: _read_back(value) for name, value in entry["row"].items()})
                self._rows[_text_of(entry["key"])] = row
            except (ValueError, TypeError, KeyError) as error:
                if _is_cut(line):
                    continue
                raise FileError(
                    f"line {number} is not a measurement ({type(error).__name__})",
                    file=path,
                    advice="name another file with --work, or remove this one",
                ) from error


def _is_cut(line: str) -> bool:
    """Whether a line can be the truncated beginning of one of ours, after the program ended while it was written."""
    return '{"key": {'.startswith(line[:9]) and not line.endswith("}}")


def _text_of(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)


def _writable(value: Any) -> Any:
    return "infinite" if isinstance(value, float) and math.isinf(value) else value


def _read_back(value: Any) -> Any:
    return math.inf if value == "infinite" else value
