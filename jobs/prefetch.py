"""Fetch and decode ahead of alignment: threads, in the rows' order, bounded in bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jobs.fetch import Fetched, Reader, fetch_pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead:
    """How far fetching and decoding may run ahead."""

    threads: int = 8
    """Rows that are fetched at a time."""
    decoders: int = 2
    """Rows that are decoded at a time."""
    rows: int = 64
    """Rows that may be waiting or under way."""
    decoded_bytes: int = 128 * 2**20
    """No further row is decoded while this much waits, but for the one that is due."""


class _Gate:
    """Holds decoding back while enough is under way or waits; the row that is due always passes."""

    def __init__(self, ahead: Ahead) -> None:
        self.ahead = ahead
        self.changed = threading.Condition()
        self.decoding: set[int] = set()
        self.held_bytes, self.due = 0, -1

    def enter(self, number: int) -> None:
        """Wait for this row's turn to decode."""
        with self.changed:
            self.changed.wait_for(lambda: self._may_enter(number))
            self.decoding.add(number)

    def _may_enter(self, number: int) -> bool:
        is_room = len(self.decoding) < self.ahead.decoders and self.held_bytes < self.ahead.decoded_bytes
        return is_room or number <= self.due

    def leave(self, number: int, nbytes: int) -> None:
        """A row's images are decoded, or never will be; its bytes wait from now on."""
        with self.changed:
            self.decoding.discard(number)
            self.held_bytes += nbytes
            self.changed.notify_all()

    def take(self, nbytes: int) -> None:
        """A row's images went to the consumer."""
        with self.changed:
            self.held_bytes -= nbytes
            self.changed.notify_all()

    def expect(self, number: int) -> None:
        """Let this row and those before it pass."""
        with self.changed:
            self.due = number
            self.changed.notify_all()


def fetch_in_order(
    rows: Iterable[tuple[int, Mapping[str, Any]]], reader: Reader, ahead: Ahead
) -> Iterator[tuple[int, Fetched]]:
    """Yield every row's images in the rows' order, while later rows are under way.

    Args:
        rows: ascending numbers, each with the manifest's cells.
        reader: how images are read.
        ahead: how far to run ahead.
    """
    gate = _Gate(ahead)
    waiting: deque[tuple[int, Future[Fetched]]] = deque()

    def fetch(number: int, row: Mapping[str, Any]) -> Fetched:
        nbytes = 0
        try:
            fetched = fetch_pair(row, reader, lambda: gate.enter(number))
            nbytes = _nbytes(fetched)
        finally:
            gate.leave(number, nbytes)
        return fetched

    def take() -> tuple[int, Fetched]:
        number, future = waiting.popleft()
        gate.expect(number)
        fetched = future.result()
        gate.take(_nbytes(fetched))
        return number, fetched

    pool = ThreadPoolExecutor(ahead.threads, thread_name_prefix="homoalign-fetch")
    try:
        for number, row in rows:
            waiting.append((number, pool.submit(fetch, number, row)))
            if len(waiting) >= ahead.rows:
                yield take()
        while waiting:
            yield take()
    finally:
        if waiting:  # ended early: let those that wait for their turn run out
            gate.expect(waiting[-1][0])
        pool.shutdown(cancel_futures=True)


def _nbytes(fetched: Fetched) -> int:
    return 0 if fetched.images is None else fetched.images.nbytes
