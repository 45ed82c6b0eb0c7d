"""A shard's part: retried, attempted twice or late, in the way of another; storage that fails, a lock that is gone."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest
from job_pairs import encoded, photo
from shard_tasks import STORE, FakeAlign, part, task_for

from jobs.errors import OutputNotWritable
from jobs.storage.errors import num_retries
from jobs.storage.lock import hold_lock
from jobs.worker.shard import RunOver, run_shard


def test_a_retry_aligns_only_the_rows_it_should_and_takes_the_old_counts_back(tmp_path, mixed_manifest):
    run_shard(task_for(tmp_path, mixed_manifest), FakeAlign())
    before = part(tmp_path)
    (tmp_path / "missing.png").write_bytes(encoded(photo(99)))
    align = FakeAlign()
    done = run_shard(task_for(tmp_path, mixed_manifest, retry=frozenset({"unreadable"})), align)
    after = part(tmp_path)
    assert sum(batch[0] for batch in align.batches) == 2
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        assert new["status"] == "low_confidence"
        assert (old == new) is (i % 5 != 4)
    assert done.replaced is not None
    assert done.replaced.counts == {"low_confidence": 10, "unreadable": 2}
    assert done.tally.counts == {"low_confidence": 12}


def under_lock(folder: Path) -> tuple[str, str]:
    with hold_lock(STORE, f"file://{folder}") as lock:
        text = STORE.read(lock.url)
    STORE.publish(lock.url, text)  # the heart stands still, and beats in no other test
    return lock.url, lock.me.owner


def test_of_an_attempt_and_one_that_comes_late_the_first_counts(tmp_path, mixed_manifest):
    task = task_for(tmp_path, mixed_manifest, lock=under_lock(tmp_path))
    first = run_shard(dataclasses.replace(task, attempt=1), FakeAlign())
    before = (tmp_path / "out" / "part-000000.parquet").read_bytes()
    late = FakeAlign()
    assert run_shard(task, late).tally.to_metadata() == first.tally.to_metadata()
    assert late.batches
    assert (tmp_path / "out" / "part-000000.parquet").read_bytes() == before


def test_an_attempt_that_published_before_it_was_lost_is_not_made_again(tmp_path, mixed_manifest):
    task = task_for(tmp_path, mixed_manifest, lock=under_lock(tmp_path))
    first = run_shard(task, FakeAlign())
    again = FakeAlign()
    assert run_shard(dataclasses.replace(task, attempt=1), again).tally.to_metadata() == first.tally.to_metadata()
    assert again.batches == []


def test_a_retry_that_published_before_it_was_lost_still_says_what_it_replaced(tmp_path, mixed_manifest):
    run_shard(task_for(tmp_path, mixed_manifest), FakeAlign())
    (tmp_path / "missing.png").write_bytes(encoded(photo(99)))
    task = task_for(tmp_path, mixed_manifest, lock=under_lock(tmp_path), retry=frozenset({"unreadable"}))
    first = run_shard(task, FakeAlign())
    again = run_shard(dataclasses.replace(task, attempt=1), FakeAlign())
    assert again.tally.to_metadata() == first.tally.to_metadata()
    assert again.replaced is not None
    assert again.replaced.counts == {"low_confidence": 10, "unreadable": 2}
    assert again.tally.counts == {"low_confidence": 12}


def test_a_retry_that_was_lost_before_it_published_is_made(tmp_path, mixed_manifest):
    run_shard(task_for(tmp_path, mixed_manifest), FakeAlign())
    (tmp_path / "missing.png").write_bytes(encoded(photo(99)))
    changes = {"lock": under_lock(tmp_path), "retry": frozenset({"unreadable"}), "attempt": 1}
    assert run_shard(task_for(tmp_path, mixed_manifest, **changes), FakeAlign()).tally.counts == {"low_confidence": 12}


def test_a_damaged_part_in_the_way_is_replaced(tmp_path, mixed_manifest):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-000000.parquet").write_bytes(b"half a part")
    run_shard(task_for(tmp_path, mixed_manifest), FakeAlign())
    assert len(part(tmp_path)) == 12


def test_an_out_that_is_full_is_said_to_be_so(tmp_path, mixed_manifest, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OutputNotWritable, match=r"part-000000\.parquet: No space left on device"):
        run_shard(task_for(tmp_path, mixed_manifest), FakeAlign())
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_in_the_place_of_the_results_is_no_failure_that_another_try_would_mend(tmp_path, mixed_manifest):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputNotWritable, match="a file stands where a folder should"):
        run_shard(task_for(tmp_path, mixed_manifest), FakeAlign())


def test_storage_actions_that_were_tried_again_are_counted(tmp_path, mixed_manifest, monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    failures, link = [OSError(5, "Input/output error")] * 2, os.link

    def failing(*arguments: str) -> None:
        if failures:
            raise failures.pop()
        link(*arguments)

    monkeypatch.setattr(os, "link", failing)
    before = num_retries()
    run_shard(task_for(tmp_path, mixed_manifest), FakeAlign())
    assert num_retries() == before + 2
    (tmp_path / "b").mkdir()
    assert "storage_retries" in run_shard(task_for(tmp_path / "b", mixed_manifest), FakeAlign()).tally.timings


def test_a_shard_of_a_run_that_lost_its_lock_publishes_nothing(tmp_path, mixed_manifest):
    lock = f"file://{tmp_path}/lock.json"
    STORE.publish(lock, b"{}")
    with pytest.raises(RunOver, match="no longer holds"):
        run_shard(task_for(tmp_path, mixed_manifest, lock=(lock, "me")), FakeAlign())
    assert not (tmp_path / "out").exists()
