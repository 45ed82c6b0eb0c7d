"""Many small reads at a time, in order, holding few of their results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

READERS = 16
AHEAD = 4 * READERS


def map_in_order(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Yield `function` of each item, in order; at most `AHEAD` results wait, however many items there are."""
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
