"""Work on several tiles at a time; results come in order, and at most one result for each worker is held."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result]:
    """work(item) for every item, in their order, in that many threads; with one worker, in this thread when the result is requested.

    An item is taken only when a worker is free for it: at most `workers` items are in work or finished and not yet fetched. An exception of
    an item or its work is raised in its place in the order, and no further item is started.

    >>> list(in_order(lambda number: number**2, range(5), workers=2))
    [0, 1, 4, 9, 16]
    """
    if workers < 2:
        yield from map(work, items)
        return
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="hpcm-tile") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) == workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
