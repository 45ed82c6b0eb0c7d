"""What every benchmark shares: one thread, CPU seconds, a table and a JSON file."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich import box
from rich.table import Table

from jobs.console import stdout_console

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timed:
    """A call's answer and its cost.

    Attributes:
        value: what it returned the last time.
        cpu_s: median CPU seconds of the process over the runs.
        wall_s: median wall seconds.
    """

    value: Any
    cpu_s: float
    wall_s: float


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch and OpenCV to one thread."""
    import cv2

    torch_threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv_threads)


def time_call(call: Callable[[], T], *, runs: int, warm_ups: int) -> Timed:
    """Call `warm_ups` times uncounted, then `runs` times, and return the medians."""
    for _ in range(warm_ups):
        call()
    cpu, wall = [], []
    value: T
    for _ in range(runs):
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        value = call()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return Timed(value, statistics.median(cpu), statistics.median(wall))


def machine() -> dict[str, Any]:
    """Return what a reader needs to place the figures."""
    return {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def show(
    title: str,
    rows: list[dict[str, Any]],
    *,
    caption: str,
    json_path: Path | None,
    more: dict[str, Any] | None = None,
) -> None:
    """Print rows as a table, and write them with the machine's description where `json_path` names a file.

    Args:
        title: above the table.
        rows: of one set of columns; None is "failed" in the table, "" what does not apply.
        caption: below the table: how to read it.
        json_path: of the file.
        more: what else belongs in the file.
    """
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.padding = (0, 0, 0, 1)  # twenty columns fit a page
    for name in rows[0]:
        is_text = all(isinstance(row[name], str) for row in rows)
        table.add_column(name, justify="left" if is_text else "right", no_wrap=is_text)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    stdout_console().print(table)
    if json_path is not None:
        document = {"title": title, "caption": caption, "machine": machine(), "rows": rows, **(more or {})}
        json_path.write_text(json.dumps(document, indent=2) + "\n")


def _cell(value: object) -> str:
    if value is None:
        return "failed"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
