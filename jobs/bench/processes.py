"""Fresh processes to measure in, and what a process and those below it have used: Linux's /proc.

Peaks are `VmHWM`: it starts anew with every program, where `ru_maxrss` begins at what the parent had when it forked.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.errors import UsageError

PROC = Path("/proc")
POLL_S = 0.25
"""Between looks at a tree; a look takes some milliseconds of another process."""
MB = 2**20
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def check_proc() -> None:
    """Raise `UsageError` where the system has no /proc to measure with."""
    if not (PROC / "self" / "status").exists():
        raise UsageError("this benchmark measures memory by /proc, which this system does not have")


def fresh_processes(
    num: int = 1, initializer: Callable[..., None] | None = None, *initargs: Any
) -> ProcessPoolExecutor:
    """Return a pool of new interpreters, which share nothing with this one, its peak memory least of all."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num, mp_context=context, initializer=initializer, initargs=initargs)


def memory_mb(field: str, pid: int | None = None) -> float:
    """Return `VmRSS` (now) or `VmHWM` (the most so far) of a process, this one without `pid`; 0 where it is gone."""
    try:
        lines = (PROC / str(pid or "self") / "status").read_text().splitlines()
    except OSError:
        return 0.0
    # a process that has ended, and is not yet waited for, has no such line
    return next((int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(f"{field}:")), 0.0)


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc/PID/stat shows it."""

    pid: int
    parent: int
    started: int
    """In ticks since the system started; tells apart two processes that had one number."""
    cpu_s: float


def read_processes() -> Iterator[Process]:
    """Yield the processes there are."""
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text()
        except OSError:  # it ended
            continue
        fields = text.rpartition(")")[2].split()  # from the third of proc(5) on: a name may hold anything
        cpu_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
        yield Process(int(folder.name), int(fields[1]), int(fields[19]), cpu_s)


class TreeMeter:
    """Watches a process and all below it, from a thread; use as a context manager."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.worker_peak_mb = 0.0
        """Of the largest process below the root."""
        self.timeline: list[tuple[float, float]] = []
        """Unix time, and CPU seconds of the whole tree until then."""
        self._cpu_s: dict[tuple[int, int], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="homoalign-meter", daemon=True)

    def __enter__(self) -> TreeMeter:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def cpu_s_between(self, start: float, end: float) -> float:
        """Return the CPU seconds used between two Unix times, interpolated between looks."""
        times, used = zip(*self.timeline, strict=True)
        return float(np.interp(end, times, used) - np.interp(start, times, used))

    def _watch(self) -> None:
        while not self._over.is_set():
            self._look()
            self._over.wait(POLL_S)
        self._look()

    def _look(self) -> None:
        below: dict[int, list[Process]] = {}
        for process in read_processes():
            below.setdefault(process.parent, []).append(process)
            if process.pid == self.root:
                self._note(process)
        waiting = [self.root]
        while waiting:
            for process in below.get(waiting.pop(), []):
                self._note(process)
                self.worker_peak_mb = max(self.worker_peak_mb, memory_mb("VmHWM", process.pid))
                waiting.append(process.pid)
        self.timeline.append((time.time(), sum(self._cpu_s.values())))

    def _note(self, process: Process) -> None:
        self._cpu_s[process.pid, process.started] = process.cpu_s  # what ended keeps what it had used
