"""Errors that end a whole batch, not only one job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hpcm_codec.errors import HpcmError


class BatchStopped(Exception):
    """An error that would be the same for every job."""

    def __init__(self, error: HpcmError) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def for_all_jobs() -> Iterator[None]:
    """Errors inside (loading the model) would occur for every job: they end the batch."""
    try:
        yield
    except HpcmError as error:
        raise BatchStopped(error) from error
