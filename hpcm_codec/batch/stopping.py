"""Errors that end a whole batch, not only one job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hpcm_codec.errors import HpcmError


class BatchStopped(Exception):
    """An error that is not one job's but everybody's."""

    def __init__(self, error: HpcmError) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def for_all_jobs() -> Iterator[None]:
    """What fails in here (loading the model) would fail for every job: it ends the batch."""
    try:
        yield
    except HpcmError as error:
        raise BatchStopped(error) from error
