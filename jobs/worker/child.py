"""A shard in a process of its own, which may die or hang without harm to the one that looks on.

The child is `python -m jobs.worker.child FD`: over that socket it gets a task, and tells what it begins, what it ends,
and last what came of it. It dies with its parent.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.results.rows import Row
from jobs.worker.shard import ShardTask, align_rows
from jobs.worker.watch import UnderWay

START_TIMEOUT_S = 300.0
"""For the child to import what it needs: many may start at once, from a slow disk."""
END_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES = 256 * 2**20
"""So much of what is free at the end of its heap a process keeps."""
LARGEST_KEPT_BYTES = 32 * 2**20
"""Larger arrays go back to the system one by one; glibc takes no more here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The child made every row."""

    table: pa.Table
    timings: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """The child died, or was ended because it did not come back."""

    how: str
    """For people: `killed by SIGSEGV`."""
    is_stuck: bool
    """Whether it was ended for taking too long."""
    suspects: tuple[int, ...]
    """The rows it worked on; where it was between two, those that ended last."""
    settled: Mapping[int, Row] = field(default_factory=dict)
    """Rows that were given up, with their results: what still went on there may have ended it later."""


def run_child(task: ShardTask, num_threads: int) -> Finished | Lost:
    """Make a shard's rows in a process of its own.

    Raises:
        Exception: what the shard raised there.
    """
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "jobs.worker.child", str(theirs.fileno())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)  # noqa: S603, our own module
    try:
        with Connection(ours.detach()) as connection:
            return _follow(process, connection, task, num_threads)
    finally:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # it waits in the kernel, for a file system that hangs
            process.wait(END_TIMEOUT_S)


def _follow(
    process: subprocess.Popen[bytes], connection: Connection, task: ShardTask, num_threads: int
) -> Finished | Lost:
    """Hear the child out, for as long as it goes on."""
    under_way, settled = UnderWay(), dict[int, Row]()

    def lost(how: str, *, is_stuck: bool = False) -> Lost:
        return Lost(how=how, is_stuck=is_stuck, suspects=tuple(under_way.suspects()), settled=settled)

    left_s = START_TIMEOUT_S
    with suppress(OSError):  # it died at once, and the answer below says how
        connection.send((task, num_threads))
    while True:
        try:
            if not connection.poll(left_s):
                return lost(f"no progress in {left_s:g} s (--row-timeout)", is_stuck=True)
            kind, value = connection.recv()
        except (EOFError, OSError):
            return lost(_end_of(process))
        if kind == "finished":
            return Finished(table=value[0], timings=value[1])
        if kind == "raised":
            raise value
        if kind == "lost":
            return lost(value)
        if kind == "begin":
            under_way.begin(value)
        elif kind == "end":
            under_way.end(value)
        elif kind == "settled":
            settled.update([value])
        left_s = under_way.allowed_s(task.row_timeout_s)


def _end_of(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "hung up without an end"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class _Teller:
    """Tells the parent what is under way."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.turn = connection, threading.Lock()

    def begin(self, numbers: Sequence[int]) -> None:
        """Tell what begins."""
        self.tell("begin", tuple(numbers))

    def end(self, numbers: Sequence[int]) -> None:
        """Tell what ends."""
        self.tell("end", tuple(numbers))

    def settle(self, number: int, row: Mapping[str, Any]) -> None:
        """Tell a row's result."""
        self.tell("settled", (number, row))

    def tell(self, kind: str, value: object) -> None:
        """Send one message."""
        with self.turn:
            self.connection.send((kind, value))


def main(descriptor: int) -> None:
    """Make the rows of the task that comes, and tell."""
    _die_with_parent()
    with Connection(descriptor) as connection:
        teller = _Teller(connection)
        task, num_threads = connection.recv()
        try:
            prepare_process(num_threads, task.device)
            teller.tell("started", None)
            teller.tell("finished", align_rows(task, watch=teller))
        except Exception as error:
            if is_out_of_memory(error):
                teller.tell("lost", "out of memory")
            else:
                teller.tell("raised", _sendable(error))


def prepare_process(num_threads: int, device: str) -> None:
    """Set the numeric libraries' threads, keep freed memory, and compile before a row's time runs."""
    set_threads(num_threads)
    keep_freed_memory()
    from homoalign.aligner import warm_up  # loaded on any device, before a row's time runs

    if device == "cpu":
        warm_up()


def set_threads(num: int) -> None:
    """Let the numeric libraries use so many threads."""
    import cv2
    import torch

    torch.set_num_threads(num)
    cv2.setNumThreads(num)


def keep_freed_memory() -> None:
    """Have the C library keep what large arrays leave, where it is glibc.

    It would give the memory back to the system and fetch it again, page by page, at every step of a pair: a fifth of
    the time of 800 x 640.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)


def free_device_memory() -> None:
    """Give back what earlier shards left reserved on a GPU, to the child that comes."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an allocation failed, on the host or on a device."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError))


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301, our own, and read back by our parent only
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, and to choose it first when memory runs out."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    threading.Thread(target=_leave_after, args=(parent,), daemon=True).start()


def _leave_after(parent: int) -> None:
    """End this process once its parent is another: where there is no such system call, or it came too late."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
