"""Processes that work through a list of items, each with its own copy of the data that it loads.

A process that ends unexpectedly (the system kills those that use too much memory) does not affect the others. The unfinished items are
tried again one at a time, so that only the item that ends a process fails.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from typing import Generic, TypeVar

from hpcm_codec.errors import HpcmError
from hpcm_codec.system.temporaries import remove_mine
from hpcm_codec.system.warning_filters import print_warnings

Item = TypeVar("Item")
Made = TypeVar("Made")

# Sums come out the same with any number of threads from two on (measured: oneDNN's convolutions, torch 2.13), but not with one.
FEWEST_THREADS = 2
SECONDS_TO_END = 10.0


class WorkerDiedError(HpcmError):
    """The process that worked on an item has ended, twice."""

    def __init__(self) -> None:
        super().__init__(
            "the process that worked on it has ended unexpectedly", advice="use fewer --jobs if memory is short"
        )


class Workers(Generic[Item, Made]):
    """`jobs` processes, started when first needed, that apply one function to items. Use as a context: its end stops them.

    threads: of torch in each of them; None divides those that torch would use by the number of processes, but not below
             `FEWEST_THREADS`, so that results do not depend on the number of processes.
    """

    def __init__(self, work: Callable[[Item], Made], jobs: int, threads: int | None = None) -> None:
        self._work, self._jobs, self._threads = work, jobs, threads
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers[Item, Made]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def results(self, items: Iterable[Item]) -> Generator[tuple[int, Future[Made]], None, None]:
        """(index of an item, its future), in the order in which they finish.

        A future holds what the function returned or raised, or WorkerDiedError.
        """
        waiting = enumerate(items)
        running: dict[Future[Made], tuple[int, Item]] = {}
        while True:
            # just enough to keep all busy: if a process ends, all unfinished items have to be tried again
            for place, item in islice(waiting, self._jobs + 1 - len(running)):
                running[self._submit(item)] = place, item
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            if any(_died(future) for future in done):
                done, _ = wait(running)  # all of them fail with it
            suspects = []
            for future in done:
                place, item = running.pop(future)
                if _died(future):
                    suspects.append((place, item))
                else:
                    yield place, future
            if suspects:
                self.close()
            for place, item in suspects:
                yield place, self._tried_alone(item)

    def close(self) -> None:
        """End the processes at once; their temporary files are removed."""
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(SECONDS_TO_END)
            if process.is_alive():
                process.kill()

    def _submit(self, item: Item) -> Future[Made]:
        for _ in range(2):
            if self._pool is None:
                context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
                arguments = (self._threads, self._jobs)
                self._pool = ProcessPoolExecutor(self._jobs, context, prepare_worker, arguments)
            with suppress(BrokenProcessPool):  # an idle process has ended
                return self._pool.submit(self._work, item)
            self.close()
        raise WorkerDiedError

    def _tried_alone(self, item: Item) -> Future[Made]:
        future = self._submit(item)
        wait([future])
        if _died(future):
            self.close()
            future = Future()
            future.set_exception(WorkerDiedError())
        return future


def _died(future: Future[Made]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def prepare_worker(threads: int | None, jobs: int) -> None:
    """Make this process a worker: set its threads; on a signal, or when its parent has ended, it ends and leaves no temporary files."""
    print_warnings()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process handles Ctrl-C
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: _end())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(divided_threads(torch.get_num_threads(), jobs) if threads is None else threads)


def divided_threads(threads: int, jobs: int) -> int:
    """How many threads each of `jobs` processes uses where one would use `threads`.

    >>> [divided_threads(threads, 4) for threads in (1, 2, 16)]
    [1, 2, 4]
    """
    return min(threads, max(FEWEST_THREADS, threads // jobs))


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        _end()


def _end() -> None:
    remove_mine()
    os._exit(128 + signal.SIGTERM)
