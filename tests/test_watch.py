"""The watchdog: rows under way, and an end to a process that is stuck in native code."""

from __future__ import annotations

import subprocess
import sys
import time
from multiprocessing import Pipe

import pytest
from job_pairs import ENVIRONMENT, ROOT

from jobs.worker.watch import LONGEST_WAIT_S, SLACK, UnderWay, Watchdog


def test_what_is_under_way_is_what_began_and_did_not_end():
    under_way = UnderWay()
    assert under_way.most_rows() == 1
    for numbers in ([3], [4, 5, 6], [7]):
        under_way.begin(numbers)
    under_way.end([3])
    under_way.end([3])  # a thread that was given up, and came back
    assert under_way.rows() == [4, 5, 6, 7]
    assert under_way.most_rows() == 3


def test_what_may_have_ended_a_process_is_under_way_or_ended_last():
    under_way = UnderWay()
    assert under_way.suspects() == []
    under_way.begin([5, 4])
    assert under_way.suspects() == [4, 5]
    under_way.begin([7])
    under_way.end([5, 4])
    assert under_way.suspects() == [7]
    under_way.end([7])
    assert under_way.suspects() == [7]


@pytest.mark.parametrize("row_timeout_s", [float("inf"), 1e10, 1e6])
def test_a_time_without_end_or_longer_than_the_system_counts_is_none(row_timeout_s):
    with Watchdog(row_timeout_s) as dog:
        dog.begin([1, 2, 3])
        assert dog.under_way.allowed_s(row_timeout_s) == LONGEST_WAIT_S
        ours, theirs = Pipe()
        with ours, theirs:
            theirs.send("told")
            assert ours.poll(dog.under_way.allowed_s(row_timeout_s))


@pytest.mark.parametrize(
    ("stuck", "lasts_s"),
    [
        ("ctypes.PyDLL(None).sleep(60)", 1.0),  # holds the lock of the interpreter
        ("dog.begin([1]); time.sleep(60)", 1.0),
        ("dog.begin([1, 2, 3]); dog.begin([4]); time.sleep(60)", 3.0),
    ],
)
def test_a_process_that_is_stuck_is_ended_after_the_time_its_rows_have(stuck, lasts_s):
    code = f"""
import ctypes, time
from jobs.worker.watch import Watchdog
with Watchdog(1.0) as dog:
    print(time.time(), flush=True)
    {stuck}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert lasts_s - 0.1 < time.time() - float(done.stdout) < lasts_s + 5


def test_a_process_whose_work_goes_on_is_left_alone():
    code = """
import time
from jobs.worker.watch import Watchdog
with Watchdog(2.0) as dog:
    time.sleep(1.2)
    dog.begin([1])
    time.sleep(1.2)
    dog.end([1])
    time.sleep(1.2)
time.sleep(2.5)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, timeout=50, check=True)


def test_the_clock_is_started_anew_when_the_time_allowed_changes_or_some_of_it_is_over(monkeypatch):
    now, started = [100.0], []
    monkeypatch.setattr("jobs.worker.watch.time.monotonic", lambda: now[0])
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda timeout, **_: started.append(timeout))
    with Watchdog(50.0) as dog:
        assert started == [50 * (1 + SLACK)]
        for number in range(20):  # as fast as nothing
            dog.begin([number])
            dog.end([number])
        assert len(started) == 1
        now[0] += 1.01 * SLACK * 50
        dog.begin([20])
        assert started[1:] == [50 * (1 + SLACK)]
        dog.begin([21, 22, 23])  # more time for more rows, at once
        dog.end([21, 22, 23])  # and less
        assert started[2:] == [150 * (1 + SLACK), 50 * (1 + SLACK)]
