"""What the driver makes of shards that are lost, fail, or can leave nothing in OUT. Workers are made up."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_pairs import write_manifest, write_pairs
from shard_tasks import FakeAlign

from jobs import run as run_module
from jobs.cluster import Outcome, ShardFailed, ShardLost
from jobs.errors import LockHeld, ManifestChanged, OutputNotWritable, ShardsUnfinished
from jobs.prepare import RunConfig
from jobs.run import MAX_LOSSES, RunInterrupted, run_job
from jobs.worker.shard import RunOver, ShardTask, run_shard

Fate = Callable[[ShardTask], Outcome | None]


class FakeWorkers:
    """Makes a shard when it is waited for, unless `fate` has another outcome."""

    device, num_under_way = "cpu", 0

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.tasks: list[ShardTask] = []
        self.seen: list[tuple[int, int]] = []

    def __enter__(self) -> FakeWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def capacity(self) -> int:
        return 1

    num_workers = capacity

    def submit(self, task: ShardTask) -> None:
        self.tasks.append(task)
        self.num_under_way = 1

    def wait(self, _: float) -> list[tuple[int, Outcome]]:
        task, self.num_under_way = self.tasks.pop(), 0
        self.seen.append((task.index, task.attempt))
        return [(task.index, self.fate(task) or run_shard(task, FakeAlign()))]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    manifest = write_manifest(tmp_path / "m.parquet", write_pairs(tmp_path, 3))
    return RunConfig(manifest=str(manifest), out=str(tmp_path / "out"), shard_rows=1, progress="none")


@pytest.fixture
def work(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Callable[[Fate], tuple[FakeWorkers, Any]]:
    def work_with(fate: Fate) -> tuple[FakeWorkers, Any]:
        workers = FakeWorkers(fate)
        monkeypatch.setattr(run_module, "RayWorkers", lambda *_, **__: workers)
        try:
            return workers, run_job(run)
        except Exception as error:
            return workers, error

    return work_with


def lost(task: ShardTask) -> ShardLost:
    return ShardLost(shard=task.index, reason="WorkerCrashedError: it died")


def failed(task: ShardTask, cause: Exception) -> ShardFailed:
    return ShardFailed(shard=task.index, reason=str(cause), cause=cause)


def test_a_lost_shard_is_tried_again_at_once_and_told_how_often(work):
    workers, summary = work(lambda task: lost(task) if (task.index, task.attempt) in ((1, 0), (1, 1)) else None)
    assert workers.seen == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert summary["workers_lost"] == 2
    assert summary["reason"] == "done"


def test_a_shard_that_is_always_lost_is_given_up_and_listed(work, run):
    workers, error = work(lambda task: lost(task) if task.index == 1 else None)
    assert isinstance(error, ShardsUnfinished)
    assert f"1 of 3 shards could not be finished: shard 1: lost {MAX_LOSSES + 1} times" in str(error)
    assert "it died" in str(error)
    assert workers.seen.count((1, MAX_LOSSES)) == 1
    assert len(workers.seen) == 3 + MAX_LOSSES
    assert not Path(run.out, "_SUCCESS").exists()


def test_what_our_own_code_raises_is_not_tried_again(work):
    workers, error = work(lambda task: failed(task, RuntimeError("a bug")) if task.index == 1 else None)
    assert isinstance(error, ShardsUnfinished)
    assert workers.seen == [(0, 0), (1, 0), (2, 0)]


def test_an_out_that_takes_no_part_ends_the_run_at_once(work, run):
    full = OutputNotWritable("OUT cannot be written: part-000001.parquet: No space left on device")
    workers, error = work(lambda task: failed(task, full) if task.index == 1 else None)
    assert error is full
    assert workers.seen == [(0, 0), (1, 0)]
    assert not Path(run.out, "lock.json").exists()


def test_a_shard_that_finds_the_lock_taken_ends_the_run_which_leaves_out_alone(work, run):
    def taken_over(task: ShardTask) -> ShardFailed | None:
        if task.index != 1:
            return None
        lock = json.loads(Path(run.out, "lock.json").read_text())
        Path(run.out, "lock.json").write_text(json.dumps({**lock, "owner": "another"}))
        return failed(task, RunOver("no longer holds"))

    _, error = work(taken_over)
    assert isinstance(error, LockHeld)
    assert not Path(run.out, "summary.json").exists()


def test_a_worker_that_does_not_find_a_lock_that_is_held_does_not_share_out(work, run):
    workers, error = work(lambda task: failed(task, RunOver("no longer holds")) if task.index == 1 else None)
    assert isinstance(error, OutputNotWritable)
    assert "storage that all workers share" in str(error)
    assert workers.seen == [(0, 0), (1, 0)]
    assert not Path(run.out, "lock.json").exists()


@pytest.mark.parametrize("change", ["grow", "go"])
def test_a_manifest_that_changes_while_it_is_read_ends_the_run_with_3(work, run, change):
    def changed(task: ShardTask) -> ShardFailed | None:
        manifest = Path(run.manifest)
        if change == "go":
            manifest.unlink(missing_ok=True)
        else:
            write_manifest(manifest, write_pairs(manifest.parent, 4))
        with pytest.raises(ManifestChanged) as caught:
            run_shard(task, FakeAlign())
        return failed(task, caught.value)

    workers, error = work(changed)
    assert error.exit_code == 3
    assert "m.parquet" in str(error)
    assert ("does not exist" if change == "go" else "changed while the run read it") in str(error)
    assert workers.seen == [(0, 0)]
    assert json.loads(Path(run.out, "summary.json").read_text())["reason"] == "failed"


def test_a_file_in_the_place_of_the_results_is_said_before_anything_is_done(work, run):
    Path(run.out).mkdir()
    Path(run.out, "data").write_text("a file")
    workers, error = work(lambda _: None)
    assert isinstance(error, OutputNotWritable)
    assert "out/data: a file stands where a folder should" in str(error)
    assert workers.seen == []
    assert [path.name for path in Path(run.out).iterdir()] == ["data"]


def test_a_run_without_anything_to_do_needs_no_workers(work, run):
    work(lambda _: None)
    Path(run.out, "_SUCCESS").unlink()
    workers, summary = work(lambda _: pytest.fail("there is nothing to do"))
    assert workers.seen == []
    assert summary["rows_done"] == 3
    assert json.loads(Path(run.out, "_SUCCESS").read_text())["rows"] == 3


def test_a_finished_run_still_sweeps_what_a_killed_command_left(work, run):
    work(lambda _: None)
    Path(run.out, f".lock.json.{'0' * 32}.tmp").write_bytes(b"half a lock")
    work(lambda _: pytest.fail("there is nothing to do"))
    assert sorted(path.name for path in Path(run.out).iterdir()) == ["_SUCCESS", "data", "plan.json", "summary.json"]


def test_a_signal_inside_a_storage_action_is_no_failure_of_the_store(work, run, monkeypatch):
    def signalled(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(os, "link", signalled)
    _, error = work(lambda _: None)
    assert isinstance(error, RunInterrupted)
    assert "interrupted by SIGINT" in str(error)
    assert not Path(run.out, "lock.json").exists()
