"""Signals before there is a run to hand back. Imports nothing heavy: it is there first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODE = 130
PASS_ON_POLL_S = 0.1

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Let SIGINT and SIGTERM come to `handler` while the block runs; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    install(handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def install(handler: Handler) -> None:
    """Let SIGINT and SIGTERM come to `handler` from now on."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, handler)


@contextmanager
def sigterm_as_sigint() -> Iterator[None]:
    """Take SIGTERM in a thread while the block runs, and pass it on as SIGINT.

    While Ray joins a cluster its native code handles SIGTERM itself, and dies of it. Threads and processes that start
    within the block are not disturbed: the former leave SIGTERM alone as well, the latter get it as ever.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "sigtimedwait"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    over = threading.Event()
    thread = threading.Thread(target=_pass_on, args=(over,), name="homoalign-sigterm", daemon=True)
    thread.start()
    _is_held.set()
    try:
        yield
    finally:
        _is_held.clear()
        over.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_is_held, _was_taken = threading.Event(), threading.Event()


def _pass_on(over: threading.Event) -> None:
    while not over.is_set():
        if signal.sigtimedwait({signal.SIGTERM}, PASS_ON_POLL_S) is not None:
            _was_taken.set()
            os.kill(os.getpid(), signal.SIGINT)


def _let_through() -> None:
    if _is_held.is_set():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


os.register_at_fork(after_in_child=_let_through)


def signal_name(number: int) -> str:
    """Return the name of the signal that was sent to this process, where one was passed on as another."""
    return signal.SIGTERM.name if _was_taken.is_set() else signal.Signals(number).name


def leave_at_once(number: int, _: FrameType | None) -> None:
    """End the process: nothing was begun, and an exception would not get through the import of a native module."""
    sys.stderr.write(f"homoalign: interrupted by {signal_name(number)}; nothing was begun\n")
    sys.stderr.flush()
    os._exit(EXIT_CODE)
