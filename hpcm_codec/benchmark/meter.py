"""Attributes a rising quantity (seconds, operations, bytes) to the stages of a computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Meter:
    """An `observing.Observer` that attributes every rise of a quantity to one stage: the innermost one that is open.

    read: the quantity's present value, such as `time.perf_counter`.

    >>> done = 0
    >>> meter = Meter(lambda: done)
    >>> with meter.stage("outer"):
    ...     done += 1
    ...     with meter.stage("inner"):
    ...         done += 10
    ...     done += 1
    >>> meter.charged
    {'outer': 2, 'inner': 10}
    """

    watches = True

    def __init__(self, read: Callable[[], float]) -> None:
        self.charged: dict[str, float] = {}
        self._read = read
        self._open: list[str] = []
        self._since: float = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def switch(self, name: str) -> None:
        """From now on the innermost open stage is called `name`."""
        self._charge()
        self._open[-1] = name

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`function`, charged to a stage."""

        def charged(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **options)

        return charged

    def _charge(self) -> None:
        now = self._read()
        if self._open:
            self.charged[self._open[-1]] = self.charged.get(self._open[-1], 0) + now - self._since
        self._since = now
