"""OUT/lock.json: one run at a time, with a heartbeat.

A lock whose heart has not beaten for `STALE_S`, or whose process is known to be gone from this machine, belongs to a
dead run and is taken over. Of several runs that see the same dead lock only one may: the one that creates, exclusively,
the claim named after the dead owner and then still finds that owner in the lock. A run that was paused for so long
that its lock was taken finds out at its next heartbeat, and stops.
"""

from __future__ import annotations

import json
import math
import os
import platform
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from jobs.errors import LockHeld, OutputNotWritable
from jobs.storage.errors import ObjectExists, ObjectMissing, StorageError
from jobs.storage.store import Store

LOCK_NAME = "lock.json"
HEARTBEAT_S = 10.0
STALE_S = 60.0
POLL_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Who holds a lock."""

    owner: str
    host: str
    boot: str
    """Tells machines, and containers on one machine, apart; empty where the system does not say."""
    pid: int
    process_start: str
    """Tells a process from a later one of the same pid; empty where the system does not say."""
    started: str
    heartbeat: float
    """Seconds since 1970."""

    def __post_init__(self) -> None:
        kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, kinds[str(field.type)]):
                raise TypeError(f"{field.name}={value!r} is no {field.type}")
        if not math.isfinite(self.heartbeat):
            raise ValueError(f"heartbeat={self.heartbeat} is not finite")

    def text(self) -> str:
        """Return who and how long ago, for a message."""
        return f"{self.host} (pid {self.pid}, since {self.started}, last sign {time.time() - self.heartbeat:.0f} s ago)"


NOBODY = Owner(owner="nobody", host="", boot="", pid=0, process_start="", started="", heartbeat=0.0)
"""Whose lock one is that stays unreadable."""


class RunLock:
    """A lock that is held; `lost` is set when another run took it."""

    def __init__(self, store: Store, url: str, me: Owner, *, heartbeat_s: float, stale_s: float) -> None:
        self.store, self.url, self.me = store, url, me
        self.heartbeat_s, self.stale_s = heartbeat_s, stale_s
        self.lost = threading.Event()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="homoalign-heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        last = time.monotonic()
        while not self._released.wait(self.heartbeat_s):
            try:
                if not is_owner(self.store, self.url, self.me.owner):
                    self.lost.set()
                    return
                self.store.publish(self.url, encoded(replace(self.me, heartbeat=time.time())))
                last = time.monotonic()
            except StorageError:
                if time.monotonic() - last > self.stale_s:  # others may take it from now on
                    self.lost.set()
                    return

    def release(self) -> None:
        """Stop the heart and remove the lock, unless another run has it by now."""
        self._released.set()
        self._thread.join()
        if not self.lost.is_set():
            _give_back(self.store, self.url, self.me)


@contextmanager
def hold_lock(
    store: Store, out: str, *, wait_s: float = 0.0, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S
) -> Iterator[RunLock]:
    """Hold OUT's lock while the block runs.

    Args:
        store: where OUT is.
        out: the run's folder.
        wait_s: how long to wait for a live lock.
        heartbeat_s: time between two signs of life.
        stale_s: silence after which a lock counts as dead.

    Raises:
        LockHeld: another run holds it and is alive.
        OutputNotWritable: OUT cannot be written.
    """
    url = f"{out}/{LOCK_NAME}"
    me = _myself()
    deadline = time.monotonic() + wait_s
    try:
        while not _try_acquire(store, url, me, stale_s):
            if time.monotonic() >= deadline:
                holder = read_owner(store, url)
                raise LockHeld(f"{out} is locked by {holder.text() if holder else 'a run that has just ended'}")
            time.sleep(min(POLL_S, max(deadline - time.monotonic(), 0.01)))
        _remove_claims(store, out, me)
    except StorageError as error:
        raise OutputNotWritable(f"OUT cannot be written: {error}") from error
    except BaseException:  # a signal
        _give_back(store, url, me)
        raise
    lock = RunLock(store, url, me, heartbeat_s=heartbeat_s, stale_s=stale_s)
    try:
        yield lock
    finally:
        lock.release()


def read_owner(store: Store, url: str) -> Owner | None:
    """Return who a lock names; None where there is no lock or it does not say."""
    try:
        return Owner(**json.loads(store.read(url)))
    except (ObjectMissing, ValueError, TypeError, OverflowError, RecursionError):
        return None


def is_owner(store: Store, url: str, owner: str) -> bool:
    """Return whether the lock at `url` names this owner."""
    holder = read_owner(store, url)
    return holder is not None and holder.owner == owner


def is_dead(holder: Owner, stale_s: float = STALE_S) -> bool:
    """Return whether a lock's run is over: silent for too long, or its process gone from this very machine."""
    if time.time() - holder.heartbeat > stale_s:
        return True
    return bool(holder.boot) and holder.boot == _boot() and _process_start(holder.pid) != holder.process_start


def encoded(owner: Owner) -> bytes:
    """Return what the lock file holds."""
    return (json.dumps(asdict(owner)) + "\n").encode()


def _give_back(store: Store, url: str, me: Owner) -> None:
    with suppress(StorageError):
        if is_owner(store, url, me.owner):
            store.delete(url)


def _try_acquire(store: Store, url: str, me: Owner, stale_s: float) -> bool:
    me = replace(me, heartbeat=time.time())
    try:
        store.create(url, encoded(me))
    except ObjectExists:  # by another run, or by us where the store's first answer was lost
        return is_owner(store, url, me.owner) or _try_take_over(store, url, me, stale_s)
    except ObjectMissing:  # the run that has the lock by now removed our temporary file
        if read_owner(store, url) is None:
            raise
        return False
    return is_owner(store, url, me.owner)


def _try_take_over(store: Store, url: str, me: Owner, stale_s: float) -> bool:
    holder = read_owner(store, url)
    if holder is None and _stays_unreadable(store, url, stale_s):
        holder = NOBODY
    if holder is None or not is_dead(holder, stale_s):
        return False
    claims: list[str] = []
    try:
        # whoever had the claim before us wrote the lock before letting the claim go
        if not _claim(store, url, holder, me, stale_s, claims) or not _is_still_of(store, url, holder):
            return False
        store.publish(url, encoded(me))
    finally:
        for claim in claims:
            store.delete(claim)
    return is_owner(store, url, me.owner)


def _claim(store: Store, url: str, dead: Owner, me: Owner, stale_s: float, claims: list[str]) -> bool:
    """Create the claim on the succession of `dead`; where the one who has it died as well, on the succession of that.

    Args:
        store: where the lock is.
        url: of the lock.
        dead: whose lock, or claim, it is.
        me: who claims it.
        stale_s: silence after which a claim counts as dead.
        claims: gets what has to be deleted in the end.

    Returns:
        Whether the lock may be taken.
    """
    claim = f"{url}.{dead.owner}.claim"
    try:
        store.create(claim, encoded(me))
    except ObjectExists:
        rival = read_owner(store, claim)
        if rival is None or not is_dead(rival, stale_s) or not _claim(store, url, rival, me, stale_s, claims):
            return False
    claims.append(claim)
    return True


def _remove_claims(store: Store, out: str, me: Owner) -> None:
    """Remove claims on earlier locks, left by runs that died while they took one over."""
    for name in store.list_names(out):
        if name.startswith(f"{LOCK_NAME}.") and name.endswith(".claim") and me.owner not in name:
            store.delete(f"{out}/{name}")


def _is_still_of(store: Store, url: str, dead: Owner) -> bool:
    holder = read_owner(store, url)
    return store.exists(url) if holder is None and dead == NOBODY else holder is not None and holder.owner == dead.owner


def _stays_unreadable(store: Store, url: str, stale_s: float) -> bool:
    """Return whether a lock says no one's name and goes on so; one that is being written is soon readable."""
    for _ in range(5):
        time.sleep(min(0.2, stale_s))
        if read_owner(store, url) is not None or not store.exists(url):
            return False
    return True


def _myself() -> Owner:
    return Owner(
        owner=uuid.uuid4().hex,
        host=socket.gethostname(),
        boot=_boot(),
        pid=os.getpid(),
        process_start=_process_start(os.getpid()),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        heartbeat=time.time(),
    )


def _boot() -> str:
    """Return what names this boot of this machine and this container's process table; empty where unknown."""
    if platform.system() != "Linux":
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; `gone` where there is none or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "gone"
    return "gone" if fields[0] in "ZX" else fields[19]
