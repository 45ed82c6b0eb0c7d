"""Images fetched ahead: bounded, in order, timed out by row, and no thread left behind."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from job_pairs import write_pairs

from jobs.storage.access import AccessRules
from jobs.storage.store import Store
from jobs.worker import prefetch
from jobs.worker.fetch import Fetched, Reader, fetch_pair
from jobs.worker.prefetch import Ahead, fetch_in_order

STORE = Store()


def test_decoded_bytes_ahead_are_bounded_and_nothing_deadlocks(tmp_path, monkeypatch):
    rows = write_pairs(tmp_path, 20)
    pair_bytes = 2 * 96 * 128
    waiting, most, counted = 0, 0, threading.Lock()

    def counting(*arguments: Any) -> Fetched:
        nonlocal waiting, most
        fetched = fetch_pair(*arguments)
        with counted:
            waiting += 1
            most = max(most, waiting)
        return fetched

    monkeypatch.setattr(prefetch, "fetch_pair", counting)
    reader = Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"))
    ahead = Ahead(threads=8, decoders=1, rows=20, decoded_bytes=2 * pair_bytes)
    numbers = []
    for number, _ in fetch_in_order(enumerate(rows), reader, ahead):
        time.sleep(0.005)
        with counted:
            waiting -= 1
        numbers.append(number)
    assert numbers == list(range(20))
    # two wait, one was being decoded meanwhile, one was due, one is in the consumer's hands
    assert most <= 5


@pytest.mark.parametrize("what", ["fetching", "decoding"])
def test_rows_whose_images_do_not_come_are_timed_out_and_hold_up_no_other(tmp_path, monkeypatch, what):
    rows = write_pairs(tmp_path, 12)
    hanging, let_go = {0, 1, 2, 3, 4, 10}, threading.Event()

    def hangs_at_times(row: Any, reader: Reader, before_decoding: Any) -> Fetched:
        is_hanging = int(row["pair_id"].removeprefix("pair")) in hanging
        if what == "fetching" and is_hanging:
            let_go.wait()
        before_decoding()
        if what == "decoding" and is_hanging:
            let_go.wait()
        return fetch_pair(row, reader)

    monkeypatch.setattr(prefetch, "fetch_pair", hangs_at_times)
    reader = Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"), fetch_timeout_s=0.4)
    before, started = threading.active_count(), time.monotonic()
    found = dict(fetch_in_order(enumerate(rows), reader, Ahead(threads=3, decoders=2)))
    elapsed = time.monotonic() - started
    assert threading.active_count() == before + len(hanging)
    let_go.set()
    assert list(found) == [*range(12)]
    for number, fetched in found.items():
        if number in hanging:
            assert fetched.error is not None
            assert fetched.error.status == "timed_out"
            assert str(fetched.error) == f"{what} the row's images took longer than 0.4 s (--fetch-timeout)"
        else:
            assert fetched.images is not None
    assert elapsed < 0.4 * len(hanging) + 2


@pytest.mark.parametrize("num_threads", [2, 8])
def test_a_thread_that_comes_back_after_its_time_leaves_its_place_to_the_other(tmp_path, monkeypatch, num_threads):
    """A store that stalls for longer than a row may take, and then answers: the thread was replaced meanwhile."""
    rows, slow, most, under_way, counted = write_pairs(tmp_path, 12), {0, 1, 2, 5}, 0, 0, threading.Lock()

    def answers_late(row: Any, reader: Reader, before_decoding: Any) -> Fetched:
        nonlocal most, under_way
        number = int(row["pair_id"].removeprefix("pair"))
        if number in slow:
            time.sleep(0.5)
        with counted:
            under_way += number not in slow
            most = max(most, under_way)
        time.sleep(0.15)
        with counted:
            under_way -= number not in slow
        return fetch_pair(row, reader, before_decoding)

    monkeypatch.setattr(prefetch, "fetch_pair", answers_late)
    reader = Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"), fetch_timeout_s=0.3)
    before, started = threading.active_count(), time.monotonic()
    found = dict(fetch_in_order(enumerate(rows), reader, Ahead(threads=num_threads, decoders=num_threads)))
    elapsed = time.monotonic() - started
    assert {number for number, fetched in found.items() if fetched.error is not None} == slow
    assert most <= num_threads
    time.sleep(0.8)  # the slow ones end meanwhile
    assert threading.active_count() == before
    assert elapsed < prefetch.LEAVE_S


def test_waiting_for_ones_turn_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch._Gate, "enter", lambda *_: time.sleep(0.8))
    reader = Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"), fetch_timeout_s=0.4)
    found = fetch_in_order(enumerate(write_pairs(tmp_path, 2)), reader, Ahead())
    assert [fetched.error for _, fetched in found] == [None, None]


@pytest.mark.parametrize("fetch_timeout_s", [float("inf"), 1e10])
def test_images_may_have_all_the_time_in_the_world(tmp_path, fetch_timeout_s):
    reader = Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"), fetch_timeout_s=fetch_timeout_s)
    found = fetch_in_order(enumerate(write_pairs(tmp_path, 2)), reader, Ahead())
    assert [fetched.error for _, fetched in found] == [None, None]


def test_a_bug_in_a_thread_comes_out(tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch, "fetch_pair", lambda *_: 1 / 0)
    reader = Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"))
    with pytest.raises(ZeroDivisionError):
        list(fetch_in_order(enumerate(write_pairs(tmp_path, 2)), reader, Ahead()))


def test_a_consumer_that_stops_early_leaves_no_thread_behind(tmp_path):
    reader = Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"))
    before = set(threading.enumerate())  # what other tests left may end in between
    fetching = fetch_in_order(enumerate(write_pairs(tmp_path, 12)), reader, Ahead(decoded_bytes=1))
    next(fetching)
    assert set(threading.enumerate()) - before
    fetching.close()
    assert not set(threading.enumerate()) - before
