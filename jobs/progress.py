"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ProgressKind = Literal["auto", "plain", "none"]
PLAIN_INTERVAL_S = 10.0


class Reporter(Protocol):
    """What shows how far a run is."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *exception: object) -> None:
        """End."""

    def update(self, rows_done: int, counts: Mapping[str, int]) -> None:
        """Show that `rows_done` rows have their results, and how many of which status."""


def reporter(kind: ProgressKind, *, total: int, done: int) -> Reporter:
    """Return what shows progress: `auto` is a bar on a terminal and plain lines elsewhere.

    Args:
        kind: as `--progress` says.
        total: rows of the plan.
        done: rows that had their results before this run.
    """
    if kind == "none":
        return _Silent()
    if kind == "auto" and sys.stderr.isatty():
        return _Bar(total, done)
    return _Lines(total, done)


class _Silent:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def update(self, rows_done: int, counts: Mapping[str, int]) -> None:  # noqa: ARG002, the reporters' signature
        return


class _Bar:
    def __init__(self, total: int, done: int) -> None:
        self.progress = Progress(
            TextColumn("aligning"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[counts]}"),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task("aligning", total=total, completed=done, counts="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def update(self, rows_done: int, counts: Mapping[str, int]) -> None:
        self.progress.update(self.task, completed=rows_done, counts=counts_text(counts))


class _Lines:
    def __init__(self, total: int, done: int) -> None:
        self.total, self.done_before = total, done
        self.started = time.monotonic()
        self.last_line = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def update(self, rows_done: int, counts: Mapping[str, int]) -> None:
        now = time.monotonic()
        if now - self.last_line < PLAIN_INTERVAL_S and rows_done < self.total:
            return
        self.last_line = now
        rate = (rows_done - self.done_before) / max(now - self.started, 1e-9)
        left = f"{duration_text((self.total - rows_done) / rate)} left" if rate > 0 else "time left unknown"
        share = 100 * rows_done / self.total if self.total else 100.0
        text = f"{rows_done}/{self.total} rows ({share:.0f} %), {rate:.2f} pairs/s, {left}"
        click.echo(f"{text}; {counts_text(counts)}" if counts else text, err=True)


def counts_text(counts: Mapping[str, int]) -> str:
    """Return statuses with their counts, most frequent first."""
    return ", ".join(f"{status} {count}" for status, count in sorted(counts.items(), key=lambda item: -item[1]))


def error_lines(errors: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each kind of error in a summary: how many, which status, and one as it is."""
    return [f"{error['count']} x {error['kind'].partition(':')[0]}, such as: {error['example']}" for error in errors]


def duration_text(seconds: float) -> str:
    """Return a duration for people: 42 s, 3 min 10 s, 2 h 5 min, 3 d 4 h."""
    whole = max(0, round(seconds))
    for size, unit, next_size, next_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // next_size} {next_unit}"
    return f"{whole} s"
