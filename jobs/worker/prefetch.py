"""Fetch and decode ahead of alignment: threads, in the rows' order, bounded in bytes and in time.

A thread cannot be ended. One that is stuck, in a file system or a decoder, is given up with its row, which is
`timed_out`; another thread takes its place.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from homoalign.errors import PairTimedOut
from jobs.worker.fetch import Fetched, Reader, fetch_pair
from jobs.worker.watch import LONGEST_WAIT_S, Unwatched, Watch

LEAVE_S = 5.0
"""How long threads are waited for when no more rows are wanted."""


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


class _GivenUp(Exception):
    """No one waits for this row any more."""


class _Job:
    """One row on its way through a thread, and the time it takes."""

    def __init__(self, number: int, row: Mapping[str, Any], gate: _Gate, limit_s: float) -> None:
        self.number, self.row, self.gate, self.limit_s = number, row, gate, limit_s
        self.thread: threading.Thread | None = None
        self.changed = threading.Condition()
        self.doing: str | None = None
        """`fetching` or `decoding`; None while it waits, which no one counts."""
        self.since = 0.0
        self.is_over = False
        self.is_thread_given_up = False
        self.fetched: Fetched | None = None
        self.bug: BaseException | None = None

    def run(self, reader: Reader) -> None:
        """Fetch and decode."""
        fetched, bug = None, None
        try:
            self._now("fetching")
            fetched = fetch_pair(self.row, reader, self._before_decoding)
        except _GivenUp:
            return
        except BaseException as error:
            bug = error
        with self.changed:
            if not self.is_over:
                self.fetched, self.bug = fetched, bug
                self._finish(0 if fetched is None else _nbytes(fetched))

    def take(self) -> Fetched | None:
        """Wait for the row's images; None where the thread had to be given up.

        Raises:
            BaseException: whatever but a `PairError` came up, which is a bug of ours.
        """
        with self.changed:
            while not self.is_over:
                left = None if self.doing is None else self.since + self.limit_s - time.monotonic()
                if left is not None and left <= 0:
                    self.is_thread_given_up = True
                    self._finish(0)
                    return None
                self.changed.wait(None if left is None else min(left, LONGEST_WAIT_S))
        if self.bug is not None:
            raise self.bug
        return self.fetched

    def give_up(self) -> None:
        """Let the thread end at its next step, where it still takes one."""
        with self.changed:
            if not self.is_over:
                self._finish(0)

    def _finish(self, nbytes: int) -> None:
        self.is_over = True
        self.gate.leave(self.number, nbytes)
        self.changed.notify_all()

    def _now(self, doing: str | None) -> None:
        with self.changed:
            if self.is_over:
                raise _GivenUp
            self.doing, self.since = doing, time.monotonic()
            self.changed.notify_all()

    def _before_decoding(self) -> None:
        self._now(None)
        self.gate.enter(self.number)
        self._now("decoding")


class _Threads:
    """Threads that run jobs, oldest first."""

    def __init__(self, num: int, reader: Reader, watch: Watch) -> None:
        self.reader, self.watch = reader, watch
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        for _ in range(num):
            self.add()

    def add(self) -> None:
        """Start one more thread."""
        # a daemon, so that one that is stuck does not keep the process from ending
        thread = threading.Thread(target=self._work, name="homoalign-fetch", daemon=True)
        self.threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            job.thread = threading.current_thread()
            self.watch.begin([job.number])
            job.run(self.reader)
            if job.bug is None:  # else it stays under way: the row did it
                self.watch.end([job.number])
            if job.is_thread_given_up:  # another one is in its place
                return

    def replace(self, job: _Job) -> None:
        """Give up the thread that runs this job."""
        self.watch.end([job.number])
        if job.thread is not None:
            self.threads.remove(job.thread)
        self.add()

    def close(self) -> None:
        """Let every thread end that can."""
        deadline = time.monotonic() + LEAVE_S
        for _ in self.threads:
            self.jobs.put(None)
        for thread in self.threads:
            thread.join(max(deadline - time.monotonic(), 0))


def fetch_in_order(
    rows: Iterable[tuple[int, Mapping[str, Any]]], reader: Reader, ahead: Ahead, watch: Watch | None = None
) -> Iterator[tuple[int, Fetched]]:
    """Yield every row's images in the rows' order, while later rows are under way.

    Args:
        rows: ascending numbers, each with the manifest's cells.
        reader: how images are read.
        ahead: how far to run ahead.
        watch: who looks on.
    """
    gate = _Gate(ahead)
    threads = _Threads(ahead.threads, reader, watch or Unwatched())
    waiting: deque[_Job] = deque()

    def take() -> tuple[int, Fetched]:
        job = waiting.popleft()
        gate.expect(job.number)
        fetched = job.take()
        if fetched is None:
            threads.replace(job)
            fetched = _timed_out(job)
        gate.take(_nbytes(fetched))
        return job.number, fetched

    try:
        for number, row in rows:
            waiting.append(_Job(number, row, gate, reader.fetch_timeout_s))
            threads.jobs.put(waiting[-1])
            if len(waiting) >= ahead.rows:
                yield take()
        while waiting:
            yield take()
    finally:
        for job in waiting:  # ended early
            job.give_up()
        if waiting:
            gate.expect(waiting[-1].number)
        threads.close()


def _timed_out(job: _Job) -> Fetched:
    error = PairTimedOut(f"{job.doing} the row's images took longer than {job.limit_s:g} s (--fetch-timeout)")
    return Fetched(
        images=None, error=error, src_size=None, dst_size=None, bytes_read=0, fetch_s=job.limit_s, decode_s=0.0
    )


def _nbytes(fetched: Fetched) -> int:
    return 0 if fetched.images is None else fetched.images.nbytes
