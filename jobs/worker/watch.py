"""Who looks on while a shard is made: what is under way, and an end to what does not come back.

Work is told of as groups of rows: one row that is fetched and decoded, or a batch that is aligned.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

SLACK = 0.01
"""Share of the time allowed that may pass before the watchdog is wound up again: every start of its clock ends one
thread and begins another, which at each row's every step would be a hundredth of a small pair's time."""

LONGEST_WAIT_S = 2e6
"""23 days: more than any row takes, and less than systems that count milliseconds in 32 bits can wait."""


class Watch(Protocol):
    """Is told what begins and what ends, from any thread."""

    def begin(self, numbers: Sequence[int]) -> None:
        """Work on these rows begins."""

    def end(self, numbers: Sequence[int]) -> None:
        """Work on these rows, begun together, is over."""

    def settle(self, number: int, row: Mapping[str, Any]) -> None:
        """This row has its result, though a thread that was given up may still be at it and do harm."""


class Unwatched:
    """Looks away."""

    def begin(self, numbers: Sequence[int]) -> None:
        """Do nothing."""

    def end(self, numbers: Sequence[int]) -> None:
        """Do nothing."""

    def settle(self, number: int, row: Mapping[str, Any]) -> None:
        """Do nothing."""


class UnderWay:
    """The groups of rows that are worked on."""

    def __init__(self) -> None:
        self.groups: Counter[tuple[int, ...]] = Counter()
        self.ended_last: tuple[int, ...] = ()

    def begin(self, numbers: Sequence[int]) -> None:
        """Note a group."""
        self.groups[tuple(numbers)] += 1

    def end(self, numbers: Sequence[int]) -> None:
        """Forget a group."""
        group = self.ended_last = tuple(numbers)
        self.groups[group] -= 1
        if self.groups[group] <= 0:
            del self.groups[group]

    def rows(self) -> list[int]:
        """Return the rows of all groups, in order."""
        return sorted({number for group in self.groups for number in group})

    def suspects(self) -> list[int]:
        """Return the rows that may have ended the process: those under way, else those that ended last, in order.

        A signal may come late, and memory that is broken while one thing is done shows when the next is.
        """
        return self.rows() or sorted(self.ended_last)

    def most_rows(self) -> int:
        """Return the size of the largest group, and 1 where there is none."""
        return max(map(len, self.groups), default=1)

    def allowed_s(self, row_timeout_s: float) -> float:
        """Return how long nothing may begin or end: time is allowed by the row."""
        return min(row_timeout_s * self.most_rows(), LONGEST_WAIT_S)


class Watchdog:
    """Ends this process when no work begins or ends for too long; use as a context manager.

    A thread of `faulthandler` keeps the time: unlike one of Python's, it also ends a process that hangs in native
    code and lets no other thread run. The traceback of every thread goes to standard error first.
    """

    def __init__(self, row_timeout_s: float) -> None:
        self.row_timeout_s = row_timeout_s
        self.under_way = UnderWay()
        self.changed = threading.Lock()
        self._allowed_s, self._wound_up_at = 0.0, 0.0

    def __enter__(self) -> Watchdog:
        with self.changed:
            self._wind_up()
        return self

    def __exit__(self, *exception: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def begin(self, numbers: Sequence[int]) -> None:
        """Note what begins."""
        with self.changed:
            self.under_way.begin(numbers)
            self._wind_up()

    def end(self, numbers: Sequence[int]) -> None:
        """Note what ends."""
        with self.changed:
            self.under_way.end(numbers)
            self._wind_up()

    def settle(self, number: int, row: Mapping[str, Any]) -> None:
        """Do nothing: no one looks into this process once it is gone."""

    def _wind_up(self) -> None:
        """Start the clock anew, unless it runs for as long and was started a moment ago."""
        allowed_s, now = self.under_way.allowed_s(self.row_timeout_s), time.monotonic()
        if allowed_s == self._allowed_s and now - self._wound_up_at < SLACK * allowed_s:
            return
        self._allowed_s, self._wound_up_at = allowed_s, now
        faulthandler.dump_traceback_later((1 + SLACK) * allowed_s, exit=True)
