"""What watches a computation: a benchmark's meter, or nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Observer(Protocol):
    """Receives the stages of some work as they begin and end. Stages nest; one thread at a time."""

    @property
    def watches(self) -> bool:
        """Whether anything is recorded. If so, the work is done in one thread and as plain code, so that no stages overlap."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """What is done inside belongs to the stage `name`."""

    def switch(self, name: str) -> None:
        """From now on, the innermost open stage is called `name`."""


class Unobserved:
    """The observer that records nothing."""

    watches = False

    def stage(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def switch(self, name: str) -> None:
        pass


UNOBSERVED = Unobserved()


def step_name(scale: str, number: int) -> str:
    """What the stage of a scale's step is called; numbers count from 1."""
    return f"{scale} step {number}"
