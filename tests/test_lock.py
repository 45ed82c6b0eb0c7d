"""The lock: one run at a time; the dead are taken over, the living are left alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import threading
import time
import uuid
from pathlib import Path

import pytest

from jobs.errors import LockHeld, OutputNotWritable
from jobs.storage import lock as lock_module
from jobs.storage.lock import LOCK_NAME, Owner, encoded, hold_lock, is_owner, read_owner
from jobs.storage.store import Store

STORE = Store()


@pytest.fixture(params=["local", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/out" if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def other(**changes: object) -> Owner:
    """A run on another machine."""
    values = {"owner": uuid.uuid4().hex, "host": "elsewhere", "boot": "other", "pid": 1, "process_start": "5"}
    return Owner(**{**values, "started": "2026-01-01T00:00:00+00:00", "heartbeat": time.time(), **changes})


def test_a_lock_is_there_while_held_and_gone_after(out):
    with hold_lock(STORE, out) as lock:
        owner = read_owner(STORE, f"{out}/{LOCK_NAME}")
        assert owner is not None
        assert (owner.owner, owner.pid) == (lock.me.owner, os.getpid())
    assert STORE.list_names(out) == []


def test_a_live_lock_ends_a_second_run_at_once_and_names_its_holder(out):
    STORE.publish(f"{out}/{LOCK_NAME}", encoded(other()))
    started = time.monotonic()
    with pytest.raises(LockHeld, match=r"elsewhere \(pid 1, since 2026-01-01"), hold_lock(STORE, out):
        pass
    assert time.monotonic() - started < 1


def test_a_lock_whose_heart_stopped_is_taken_over(out):
    STORE.publish(f"{out}/{LOCK_NAME}", encoded(other(heartbeat=time.time() - 61)))
    with hold_lock(STORE, out) as lock:
        assert is_owner(STORE, f"{out}/{LOCK_NAME}", lock.me.owner)
    assert STORE.list_names(out) == []


def test_a_silence_just_below_the_limit_is_no_death(out):
    STORE.publish(f"{out}/{LOCK_NAME}", encoded(other(heartbeat=time.time() - 55)))
    with pytest.raises(LockHeld), hold_lock(STORE, out):
        pass


@pytest.mark.skipif(not lock_module._boot(), reason="this system does not say which boot it is")
def test_a_process_known_to_be_gone_from_this_machine_is_dead_at_once(out):
    gone = other(boot=lock_module._boot(), pid=os.getpid(), process_start="0")
    STORE.publish(f"{out}/{LOCK_NAME}", encoded(gone))
    with hold_lock(STORE, out):
        pass


def test_a_second_run_waits_as_long_as_it_is_told(out):
    url = f"{out}/{LOCK_NAME}"
    STORE.publish(url, encoded(other()))
    threading.Timer(0.5, STORE.delete, [url]).start()
    started = time.monotonic()
    with hold_lock(STORE, out, wait_s=20):
        assert 0.4 < time.monotonic() - started < 10


def test_the_heart_beats(out):
    with hold_lock(STORE, out, heartbeat_s=0.05) as lock:
        first = read_owner(STORE, lock.url)
        deadline = time.monotonic() + 10
        while read_owner(STORE, lock.url) == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_run_whose_lock_was_taken_finds_out_and_leaves_it_alone(out):
    thief = other()
    with hold_lock(STORE, out, heartbeat_s=0.05) as lock:
        STORE.publish(lock.url, encoded(thief))
        assert lock.lost.wait(10)
    assert is_owner(STORE, f"{out}/{LOCK_NAME}", thief.owner)


def taken_and_refused(out: str, num: int) -> tuple[int, int]:
    """Return how many of `num` runs that start together get the lock, and how many are told that another has it."""
    barrier, release, taken, refused = threading.Barrier(num), threading.Event(), [], []

    def run() -> None:
        barrier.wait()
        try:
            with hold_lock(STORE, out):
                taken.append(1)
                release.wait(20)
        except LockHeld:
            refused.append(1)

    threads = [threading.Thread(target=run) for _ in range(num)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(taken) + len(refused) < num and time.monotonic() < deadline:
        time.sleep(0.01)
    found = (len(taken), len(refused))
    release.set()
    for thread in threads:
        thread.join()
    return found


def test_of_many_that_see_a_dead_lock_exactly_one_takes_it(tmp_path):
    STORE.publish(f"file://{tmp_path}/{LOCK_NAME}", encoded(other(heartbeat=0.0)))
    assert taken_and_refused(f"file://{tmp_path}", 8) == (1, 7)


def test_a_claim_that_comes_late_gives_way_to_the_run_that_took_over(out, monkeypatch):
    """Between reading a dead lock and claiming it, another run took over, and let its claim go."""
    dead, winner, url = other(heartbeat=0.0), other(), f"{out}/{LOCK_NAME}"
    STORE.publish(url, encoded(winner))
    stale_answers = [dead]
    monkeypatch.setattr(
        lock_module,
        "read_owner",
        lambda store, where: stale_answers.pop() if stale_answers else read_owner(store, where),
    )
    me = dataclasses.replace(other(), owner="me")
    assert not lock_module._try_take_over(STORE, url, me, 60.0)
    assert is_owner(STORE, url, winner.owner)
    assert STORE.list_names(out) == [LOCK_NAME]


def test_claims_of_runs_that_died_while_they_took_a_lock_over_are_removed(out):
    STORE.publish(f"{out}/{LOCK_NAME}", encoded(other(heartbeat=0.0)))
    STORE.publish(f"{out}/{LOCK_NAME}.{uuid.uuid4().hex}.claim", encoded(other(heartbeat=0.0)))
    with hold_lock(STORE, out):
        assert STORE.list_names(out) == [LOCK_NAME]


@pytest.mark.parametrize("num", [1, 3])
def test_the_lock_of_a_run_is_taken_over_although_others_died_when_they_tried(out, num):
    dead = [other(heartbeat=0.0) for _ in range(num + 1)]
    STORE.publish(f"{out}/{LOCK_NAME}", encoded(dead[0]))
    for before, claimer in itertools.pairwise(dead):
        STORE.publish(f"{out}/{LOCK_NAME}.{before.owner}.claim", encoded(claimer))
    with hold_lock(STORE, out) as lock:
        assert is_owner(STORE, f"{out}/{LOCK_NAME}", lock.me.owner)
        assert STORE.list_names(out) == [LOCK_NAME]


def test_a_claim_that_lives_is_left_alone(out):
    dead, living = other(heartbeat=0.0), other()
    STORE.publish(f"{out}/{LOCK_NAME}", encoded(dead))
    STORE.publish(f"{out}/{LOCK_NAME}.{dead.owner}.claim", encoded(living))
    with pytest.raises(LockHeld), hold_lock(STORE, out):
        pass
    assert is_owner(STORE, f"{out}/{LOCK_NAME}.{dead.owner}.claim", living.owner)


def test_a_signal_while_the_lock_is_taken_leaves_none(out, monkeypatch):
    create = Store.create

    def interrupted(store: Store, url: str, data: bytes) -> None:
        create(store, url, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "create", interrupted)
    with pytest.raises(KeyboardInterrupt), hold_lock(STORE, out):
        pass
    assert STORE.list_names(out) == []


def lock_with(**changes: object) -> bytes:
    return json.dumps({**json.loads(encoded(other())), **changes}).encode()


GARBAGE = {
    "empty": b"",
    "text": b"no json",
    "bytes": b"\xff\xfe",
    "list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "words for numbers": lock_with(heartbeat="soon"),
    "numbers for words": lock_with(owner=5),
    "no time": lock_with(heartbeat=float("nan")),
    "the end of time": lock_with(heartbeat=10**400),
    "no process": lock_with(pid=None),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_in_the_lock_is_replaced_at_once(out, what):
    STORE.publish(f"{out}/{LOCK_NAME}", GARBAGE[what])
    assert read_owner(STORE, f"{out}/{LOCK_NAME}") is None
    with hold_lock(STORE, out, stale_s=0.02) as lock:  # which is how long it is watched, five times
        assert is_owner(STORE, lock.url, lock.me.owner)
    assert STORE.list_names(out) == []


def test_a_lock_that_is_only_being_written_is_left_alone(out):
    url = f"{out}/{LOCK_NAME}"
    STORE.publish(url, b"")
    writer = threading.Timer(0.3, STORE.publish, [url, encoded(other())])
    writer.start()
    with pytest.raises(LockHeld, match="elsewhere"), hold_lock(STORE, out):
        pass
    writer.join()


def test_of_many_that_see_garbage_in_the_lock_exactly_one_takes_it(tmp_path):
    STORE.publish(f"file://{tmp_path}/{LOCK_NAME}", b"")
    assert taken_and_refused(f"file://{tmp_path}", 8) == (1, 7)


def test_an_out_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(OutputNotWritable, match="a file stands where a folder should"),
        hold_lock(STORE, f"{tmp_path}/file/out"),
    ):
        pass
