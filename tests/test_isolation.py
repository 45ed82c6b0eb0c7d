"""Rows that end their worker are found and marked; all others are made, in the batches of a shard without them."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from job_pairs import DEADLY, write_manifest, write_pairs
from shard_tasks import FakeAlign, task_for

from jobs.worker.child import Finished, Lost, run_child
from jobs.worker.isolation import MAX_LOST_EARLY, ChildLost, align_isolated
from jobs.worker.prefetch import Ahead
from jobs.worker.shard import ShardTask, align_rows
from jobs.worker.watch import UnderWay

ROWS = 10


class FakeChildren:
    """Makes rows like a child process, but for what `end_of` says: it is asked with the rows that one would work on."""

    def __init__(self, end_of: Callable[[list[int]], Lost | None]) -> None:
        self.end_of = end_of
        self.calls: list[list[int]] = []

    def __call__(self, task: ShardTask) -> Finished | Lost:
        left = [number for number in range(ROWS) if number not in task.settled]
        self.calls.append(left)
        groups = [[number] for number in left] if task.batching.pairs == 1 else [left]
        for group in groups:
            end = self.end_of(group)
            if end is not None:
                return end
        table, timings = align_rows(task, FakeAlign())
        return Finished(table=table, timings=timings)


def crash(*numbers: int) -> Lost:
    return Lost(how="killed by SIGSEGV", is_stuck=False, suspects=numbers)


@pytest.fixture
def task(tmp_path: Path) -> ShardTask:
    return task_for(tmp_path, write_manifest(tmp_path / "m.parquet", write_pairs(tmp_path, ROWS)))


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_a_shard_whose_child_ends_well_is_made_at_once(task):
    children = FakeChildren(lambda _: None)
    table, _ = align_isolated(task, children)
    assert len(children.calls) == 1
    assert table == align_rows(task, FakeAlign())[0]


def test_a_row_that_crashes_is_found_and_its_neighbours_keep_their_results(task):
    children = FakeChildren(lambda rows: crash(*rows[:8]) if 4 in rows[:8] else None)
    table, _ = align_isolated(task, children)
    rows, undisturbed = rows_of(table), rows_of(align_rows(task, FakeAlign())[0])
    assert rows[4]["status"] == "crashed"
    assert rows[4]["status_detail"] == "alone in a process, twice: killed by SIGSEGV"
    assert [row for row in rows if row["pair_id"] != "pair4"] == undisturbed[:4] + undisturbed[5:]
    # whole, the suspects one by one, the suspect and those after it, those after it, and whole without it
    assert children.calls == [[*range(10)], [*range(8)], [4, 5, 6, 7], [5, 6, 7], [0, 1, 2, 3, 5, 6, 7, 8, 9]]


def test_a_row_that_hangs_is_timed_out(task):
    stuck = Lost(how="no progress in 600 s (--row-timeout)", is_stuck=True, suspects=(7,))
    table, _ = align_isolated(task, FakeChildren(lambda rows: stuck if 7 in rows else None))
    row = rows_of(table)[7]
    assert row["status"] == "timed_out"
    assert "no progress in 600 s (--row-timeout)" in row["status_detail"]


def test_many_bad_rows_are_all_found_though_each_child_shows_one(task):
    bad = {0, 2, 3, 5, 9}

    def end_of(rows: list[int]) -> Lost | None:
        return next((crash(number) for number in rows if number in bad), None)

    table, _ = align_isolated(task, FakeChildren(end_of))
    assert {number for number, row in enumerate(rows_of(table)) if row["status"] == "crashed"} == bad


def test_a_child_that_something_else_killed_blames_no_row(task):
    deaths = [crash(0, 1, 2), crash(1), None, None]
    children = FakeChildren(lambda _: deaths.pop(0) if deaths else None)
    table, _ = align_isolated(task, children)
    assert table == align_rows(task, FakeAlign())[0]


def test_rows_that_no_batch_gets_through_are_aligned_one_by_one(task):
    table, _ = align_isolated(task, FakeChildren(lambda rows: crash(*rows) if len(rows) > 1 else None))
    assert {row["status"] for row in rows_of(table)} == {"low_confidence"}
    assert rows_of(table) == rows_of(align_rows(task, FakeAlign())[0])


def test_children_that_die_before_any_row_fail_the_shard_with_what_they_died_of(task):
    children = FakeChildren(lambda _: crash())
    with pytest.raises(ChildLost, match=r"shard 0: killed by SIGSEGV, before any row"):
        align_isolated(task, children)
    assert len(children.calls) < 20
    assert MAX_LOST_EARLY > 1


def test_a_row_that_ends_its_child_only_after_it_was_made_is_found(task):
    """Its signal came late, or it broke memory that only the next thing touched."""

    def end_of(rows: list[int]) -> Lost | None:
        under_way = UnderWay()
        under_way.begin(rows)
        under_way.end(rows)
        return crash(*under_way.suspects()) if 4 in rows else None

    table, _ = align_isolated(task, FakeChildren(end_of))
    assert [number for number, row in enumerate(rows_of(table)) if row["status"] == "crashed"] == [4]


@pytest.mark.parametrize("suspects", [(5,), ()])
def test_a_row_that_was_given_up_keeps_that_result_and_is_in_no_other_child(task, suspects):
    """What its thread goes on with ends the child while other rows are worked on, or none is."""
    given_up = {"status": "timed_out", "status_detail": "took longer than 6 s"}
    lost = Lost(how="killed by SIGSEGV", is_stuck=False, suspects=suspects, settled={3: given_up})
    children = FakeChildren(lambda rows: lost if 3 in rows else None)
    table, _ = align_isolated(task, children)
    rows = rows_of(table)
    assert (rows[3]["status"], rows[3]["status_detail"]) == ("timed_out", "took longer than 6 s")
    assert {row["status"] for number, row in enumerate(rows) if number != 3} == {"low_confidence"}
    assert sum(3 in call for call in children.calls) == 1


def test_a_child_tells_what_it_gave_up_before_that_ended_it(tmp_path, monkeypatch):
    rows = write_pairs(tmp_path, 2)
    for number, what in ((0, "late"), (1, "slow")):  # given up after 2 s, ends the process after 3; done after 3.5
        rows[number]["src"] = f"deadly://{what}{tmp_path}/src{number}.png"
    task = task_for(tmp_path, write_manifest(tmp_path / "m.parquet", rows))
    rules = dataclasses.replace(task.reader.rules, allow=("deadly",))
    reader = dataclasses.replace(task.reader, rules=rules, fetch_timeout_s=2.0)
    monkeypatch.syspath_prepend(DEADLY)
    end = run_child(dataclasses.replace(task, reader=reader, ahead=Ahead(threads=1, decoders=1, rows=1)), 1)
    assert isinstance(end, Lost)
    assert (end.how, end.suspects) == ("killed by SIGSEGV", (1,))
    assert [*end.settled] == [0]
    assert end.settled[0]["status"] == "timed_out"
    assert "took longer than 2 s (--fetch-timeout)" in end.settled[0]["status_detail"]


def test_rows_of_a_part_that_are_kept_are_neither_suspected_nor_made_again(task):
    kept = {number: {"status": "ok"} for number in range(5)}
    children = FakeChildren(lambda rows: crash(*rows) if 8 in rows else None)
    table, _ = align_isolated(dataclasses.replace(task, settled=kept), children)
    assert [row["status"] for row in rows_of(table)] == [
        *["ok"] * 5,
        *["low_confidence"] * 3,
        "crashed",
        "low_confidence",
    ]
    assert all(not {*call} & {*range(5)} for call in children.calls)


FAULTS = """
import resource, sys
import numpy as np
from jobs.worker import child

if sys.argv[1] == "kept":
    child.keep_freed_memory()

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        arrays = [np.ones(2_000_000, np.float32) for _ in range(6)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(3)
print(faults(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_a_worker_keeps_the_memory_of_large_arrays_for_the_next_ones():
    def faults(how):
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)

    assert faults("kept") < 0.05 * faults("given back")
