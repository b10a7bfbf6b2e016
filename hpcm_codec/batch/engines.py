"""Where the tasks of a batch run: in this process or in several on this machine; `ray_engine` runs them on a cluster."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain, islice
from typing import Protocol

from hpcm_codec.batch.tasks import Performer, Result, Task, failed
from hpcm_codec.system.workers import WorkerDiedError, Workers


class Engine(Protocol):
    """Runs tasks and yields one result for each, in the order in which they finish. Raises what `Performer` raises."""

    def __call__(self, perform: Performer, tasks: Iterable[Task]) -> Generator[Result, None, None]: ...


def in_this_process(perform: Performer, tasks: Iterable[Task]) -> Generator[Result, None, None]:
    """One task after the other, in their order."""
    waiting = iter(tasks)
    first = list(islice(waiting, 2))
    # this may import torch: errors of a single picture are reported before that
    lookahead = perform.work.lookahead if len(first) > 1 else 1
    waiting = chain(first, waiting)
    while window := list(islice(waiting, lookahead)):
        if len(window) > 1:
            perform.prepare(window)
        for task in window:
            yield perform(task)


class InProcesses:
    """`jobs` processes with a model each. threads: of each; None divides this machine's (see `Workers`)."""

    def __init__(self, jobs: int, threads: int | None = None) -> None:
        self._jobs, self._threads = jobs, threads

    def __call__(self, perform: Performer, tasks: Iterable[Task]) -> Generator[Result, None, None]:
        handed_out: dict[int, Task] = {}

        def remembered() -> Iterator[Task]:
            for place, task in enumerate(tasks):
                handed_out[place] = task
                yield task

        with Workers(perform, self._jobs, self._threads) as workers, closing(workers.results(remembered())) as results:
            for place, future in results:
                job = handed_out.pop(place).job
                try:
                    yield future.result()
                except WorkerDiedError as error:
                    yield failed(job, error, 0.0)
