"""Work on several tiles at a time, with results in order and never more of them than that in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result]:
    """work(item) for every item, in their order, by that many threads; with one, in this thread when it is asked for.

    An item is taken when a worker is about to be free for it: at most `workers` are being worked on or wait to be fetched. What an item or
    its work raises is raised in its turn, and nothing is begun after it.

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
