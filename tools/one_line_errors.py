"""What the commands in this folder do about errors: one line on stderr, and the error's exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hpcm_codec.errors import debugging
from hpcm_codec.system.files import as_hpcm_error


def status_of(tool: str, work: Callable[[], object]) -> int:
    """Do the work; returns 0, or the exit status of an error of ours, which is printed after the tool's name. Others are raised."""
    try:
        work()
    except Exception as error:
        known = as_hpcm_error(error)
        if known is None or debugging():
            raise
        print(f"{tool}: {known}", file=sys.stderr, flush=True)
        return known.exit_status
    return 0
