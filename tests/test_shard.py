"""One shard: rows in order, batches that depend on rows alone, bounded memory, and what fails it."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from job_pairs import TRUTH, encoded, pair, photo, write_manifest, write_pairs

from homoalign import AlignConfig
from homoalign.result import AlignResult
from homoalign.status import Status
from jobs import prefetch
from jobs.access import AccessRules
from jobs.errors import OutputNotWritable
from jobs.fetch import Fetched, Reader, fetch_pair
from jobs.lock import hold_lock
from jobs.manifest import open_manifest
from jobs.plan import Settings, build_plan
from jobs.prefetch import Ahead, fetch_in_order
from jobs.prepare import config_values
from jobs.rows import has_truth, read_footer
from jobs.shard import Batching, RunOver, ShardTask, run_shard
from jobs.storage_errors import num_retries
from jobs.store import Store

STORE = Store()


class FakeAlign:
    """Gives every pair the mean of its source as `bias`, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, src: torch.Tensor, dst: torch.Tensor, **inputs: Any) -> AlignResult:
        self.batches.append((*src.shape, *dst.shape[2:]))
        self.inputs = inputs
        result = AlignResult.blank([Status.LOW_CONFIDENCE] * len(src), ["made up"] * len(src))
        return dataclasses.replace(result, bias=src.double().flatten(1).mean(1))


def task_for(folder: Path, manifest: Path, **changes: Any) -> ShardTask:
    carry = changes.get("carry", ())
    opened = open_manifest(STORE, str(manifest), carry)
    plan = build_plan(opened, Settings(config=config_values(AlignConfig()), shard_rows=1000, carry=carry))
    values = {
        "index": 0,
        "segments": plan.shard(0),
        "part": f"file://{folder}/out/part-000000.parquet",
        "fingerprint": plan.fingerprint,
        "schema": pa.schema([opened.schema.field(name) for name in opened.columns_read(carry)]),
        "config": AlignConfig(),
        "carry": carry,
        "trace": False,
        "reader": Reader(store=STORE, rules=AccessRules(opened.root)),
        "out": STORE,
    }
    return ShardTask(**{**values, **changes})


def part(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "out" / "part-000000.parquet").to_pylist()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Pairs of three sizes, with missing images among them."""
    rows = write_pairs(tmp_path, 12)
    for i, row in enumerate(rows):
        if i % 3 == 0:
            (tmp_path / row["src"]).write_bytes(encoded(photo(i, 40 + 8 * (i % 2), 50)))
        if i % 5 == 4:
            row["dst"] = "missing.png"
    return write_manifest(tmp_path / "m.parquet", rows)


def test_rows_come_out_in_manifest_order_each_with_its_own_result(tmp_path, mixed):
    run_shard(task_for(tmp_path, mixed, carry=("kind",), batching=Batching(pairs=3)), FakeAlign())
    rows, manifest = part(tmp_path), pq.read_table(mixed).to_pylist()
    assert [(row["pair_id"], row["kind"]) for row in rows] == [(row["pair_id"], row["kind"]) for row in manifest]
    for row, given in zip(rows, manifest, strict=True):
        assert row["status"] == ("unreadable" if given["dst"] == "missing.png" else "low_confidence")
        if row["status"] == "low_confidence":
            pixels = fetch_pair(given, Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"))).images.src
            assert row["bias"] == pytest.approx(pixels.mean(), abs=1e-9)


def test_a_row_that_failed_half_way_keeps_the_size_of_the_image_that_was_read(tmp_path):
    rows = write_pairs(tmp_path, 1)
    (tmp_path / "dst0.png").write_bytes(b"no image")
    run_shard(task_for(tmp_path, write_manifest(tmp_path / "m.parquet", rows)), FakeAlign())
    (row,) = part(tmp_path)
    assert (row["src_height"], row["src_width"], row["dst_height"], row["dst_width"]) == (96, 128, None, None)


def test_batches_and_bytes_do_not_depend_on_which_thread_was_first(tmp_path, mixed, monkeypatch):
    def slowly(*arguments: Any) -> Fetched:
        time.sleep(delays.random() / 50)
        return fetch_pair(*arguments)

    delays = random.Random("slowly")
    monkeypatch.setattr(prefetch, "fetch_pair", slowly)
    seen = []
    for threads in (1, 3, 8):
        align = FakeAlign()
        run_shard(task_for(tmp_path, mixed, ahead=Ahead(threads=threads), batching=Batching(pairs=3)), align)
        seen.append((align.batches, part(tmp_path)))
    assert seen[0] == seen[1] == seen[2]


def test_a_batch_holds_at_most_its_pairs_and_its_bytes(tmp_path):
    manifest = write_manifest(tmp_path / "m.parquet", write_pairs(tmp_path, 7))
    align = FakeAlign()
    run_shard(task_for(tmp_path, manifest, batching=Batching(pairs=3)), align)
    assert [batch[0] for batch in align.batches] == [3, 3, 1]
    align = FakeAlign()
    two_pairs = 4 * 96 * 128
    run_shard(task_for(tmp_path, manifest, batching=Batching(pairs=99, batch_bytes=two_pairs)), align)
    assert [batch[0] for batch in align.batches] == [2, 2, 2, 1]


def test_sizes_mixed_do_not_pile_up(tmp_path):
    rows = write_pairs(tmp_path, 8)
    for i, row in enumerate(rows):
        (tmp_path / row["src"]).write_bytes(encoded(photo(i, 40 + i, 50)))
    align = FakeAlign()
    batching = Batching(pairs=99, waiting_bytes=3 * 96 * 128)
    run_shard(task_for(tmp_path, write_manifest(tmp_path / "m.parquet", rows), batching=batching), align)
    assert len(align.batches) == 8
    assert align.batches[0][2] != 40, "the largest goes first, not the oldest"


def test_priors_masks_and_truths_reach_align_where_they_are(tmp_path):
    rows = write_pairs(tmp_path, 2)
    (tmp_path / "mask.png").write_bytes(encoded(np.eye(96, 128, dtype=np.uint8)))
    rows = [{**row, "src_mask": "mask.png", "dst_mask": None} for row in rows]
    rows[0]["dst_homo_src_init"] = TRUTH
    align = FakeAlign()
    run_shard(task_for(tmp_path, write_manifest(tmp_path / "m.parquet", rows)), align)
    assert align.inputs["init"][0].flatten().tolist() == TRUTH
    assert align.inputs["init"][1].isnan().all()
    assert align.inputs["src_mask"].dtype == torch.bool
    assert align.inputs["src_mask"].sum(dim=(1, 2)).tolist() == [96, 96]
    assert align.inputs["dst_mask"] is None
    assert align.inputs["gt"].shape == (2, 3, 3)


def test_images_come_as_files_as_cells_or_as_structs(tmp_path):
    src, dst = (encoded(pixels) for pixels in pair(0))
    (tmp_path / "dst.png").write_bytes(dst)
    rows = [
        {"pair_id": 1, "src": src, "dst": {"bytes": None, "path": "dst.png"}},
        {"pair_id": 2, "src": src, "dst": {"bytes": dst, "path": "ignored.png"}},
        {"pair_id": 3, "src": b"", "dst": {"bytes": dst, "path": None}},
        {"pair_id": 4, "src": src, "dst": {"bytes": None, "path": None}},
    ]
    run_shard(task_for(tmp_path, write_manifest(tmp_path / "m.parquet", rows)), FakeAlign())
    found = part(tmp_path)
    assert [row["status"] for row in found] == ["low_confidence", "low_confidence", "invalid_row", "invalid_row"]
    assert found[2]["status_detail"] == "src is an empty cell (0 bytes)"
    assert found[3]["status_detail"] == "dst is null"


def test_too_many_bytes_are_refused_in_files_and_in_cells(tmp_path):
    row = write_pairs(tmp_path, 1)[0]
    size = (tmp_path / "src0.png").stat().st_size
    cells = {"pair_id": 2, "src": (tmp_path / "src0.png").read_bytes(), "dst": (tmp_path / "dst0.png").read_bytes()}
    for given in (row, cells):
        reader = Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"), max_bytes=size - 1)
        error = fetch_pair(given, reader).error
        assert error is not None
        assert error.status == "too_large"
        assert f"{size - 1} bytes" in str(error)


def test_anything_but_a_pair_error_fails_the_shard(tmp_path, mixed):
    def broken(*_: Any, **__: Any) -> AlignResult:
        raise RuntimeError("a bug of ours")

    with pytest.raises(RuntimeError, match="a bug of ours"):
        run_shard(task_for(tmp_path, mixed), broken)
    assert not (tmp_path / "out").exists()


def test_the_footer_says_which_plan_and_shard_and_what_was_counted(tmp_path, mixed):
    done = run_shard(task_for(tmp_path, mixed), FakeAlign())
    footer = read_footer(STORE, f"{tmp_path}/out/part-000000.parquet")
    assert footer.fingerprint == task_for(tmp_path, mixed).fingerprint
    assert footer.tally.counts == done.tally.counts == {"low_confidence": 10, "unreadable": 2}
    assert footer.tally.timings["bytes_read"] > 0
    metadata = pq.read_metadata(tmp_path / "out" / "part-000000.parquet").metadata
    assert sum(count for count, _ in json.loads(metadata[b"homoalign.errors"]).values()) == 12


def test_the_part_says_which_rows_have_a_truth(tmp_path):
    rows = write_pairs(tmp_path, 3)
    rows[1]["dst_homo_src_gt"] = None
    run_shard(task_for(tmp_path, write_manifest(tmp_path / "m.parquet", rows)), FakeAlign())
    assert has_truth(pq.read_table(tmp_path / "out" / "part-000000.parquet")).tolist() == [True, False, True]


def test_a_retry_aligns_only_the_rows_it_should_and_takes_the_old_counts_back(tmp_path, mixed):
    run_shard(task_for(tmp_path, mixed), FakeAlign())
    before = part(tmp_path)
    (tmp_path / "missing.png").write_bytes(encoded(photo(99)))
    align = FakeAlign()
    done = run_shard(task_for(tmp_path, mixed, retry=frozenset({"unreadable"})), align)
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


def test_of_an_attempt_and_one_that_comes_late_the_first_counts(tmp_path, mixed):
    task = task_for(tmp_path, mixed, lock=under_lock(tmp_path))
    first = run_shard(dataclasses.replace(task, attempt=1), FakeAlign())
    before = (tmp_path / "out" / "part-000000.parquet").read_bytes()
    late = FakeAlign()
    assert run_shard(task, late).tally.to_metadata() == first.tally.to_metadata()
    assert late.batches
    assert (tmp_path / "out" / "part-000000.parquet").read_bytes() == before


def test_an_attempt_that_published_before_it_was_lost_is_not_made_again(tmp_path, mixed):
    task = task_for(tmp_path, mixed, lock=under_lock(tmp_path))
    first = run_shard(task, FakeAlign())
    again = FakeAlign()
    assert run_shard(dataclasses.replace(task, attempt=1), again).tally.to_metadata() == first.tally.to_metadata()
    assert again.batches == []


def test_a_retry_that_published_before_it_was_lost_still_says_what_it_replaced(tmp_path, mixed):
    run_shard(task_for(tmp_path, mixed), FakeAlign())
    (tmp_path / "missing.png").write_bytes(encoded(photo(99)))
    task = task_for(tmp_path, mixed, lock=under_lock(tmp_path), retry=frozenset({"unreadable"}))
    first = run_shard(task, FakeAlign())
    again = run_shard(dataclasses.replace(task, attempt=1), FakeAlign())
    assert again.tally.to_metadata() == first.tally.to_metadata()
    assert again.replaced is not None
    assert again.replaced.counts == {"low_confidence": 10, "unreadable": 2}
    assert again.tally.counts == {"low_confidence": 12}


def test_a_retry_that_was_lost_before_it_published_is_made(tmp_path, mixed):
    run_shard(task_for(tmp_path, mixed), FakeAlign())
    (tmp_path / "missing.png").write_bytes(encoded(photo(99)))
    changes = {"lock": under_lock(tmp_path), "retry": frozenset({"unreadable"}), "attempt": 1}
    assert run_shard(task_for(tmp_path, mixed, **changes), FakeAlign()).tally.counts == {"low_confidence": 12}


def test_a_damaged_part_in_the_way_is_replaced(tmp_path, mixed):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-000000.parquet").write_bytes(b"half a part")
    run_shard(task_for(tmp_path, mixed), FakeAlign())
    assert len(part(tmp_path)) == 12


def test_an_out_that_is_full_is_said_to_be_so(tmp_path, mixed, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OutputNotWritable, match=r"part-000000\.parquet: No space left on device"):
        run_shard(task_for(tmp_path, mixed), FakeAlign())
    assert list((tmp_path / "out").iterdir()) == []


def test_storage_actions_that_were_tried_again_are_counted(tmp_path, mixed, monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    failures, link = [OSError(5, "Input/output error")] * 2, os.link

    def failing(*arguments: str) -> None:
        if failures:
            raise failures.pop()
        link(*arguments)

    monkeypatch.setattr(os, "link", failing)
    before = num_retries()
    run_shard(task_for(tmp_path, mixed), FakeAlign())
    assert num_retries() == before + 2
    (tmp_path / "b").mkdir()
    assert "storage_retries" in run_shard(task_for(tmp_path / "b", mixed), FakeAlign()).tally.timings


def test_a_shard_of_a_run_that_lost_its_lock_publishes_nothing(tmp_path, mixed):
    lock = f"file://{tmp_path}/lock.json"
    STORE.publish(lock, b"{}")
    with pytest.raises(RunOver, match="no longer holds"):
        run_shard(task_for(tmp_path, mixed, lock=(lock, "me")), FakeAlign())
    assert not (tmp_path / "out").exists()


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


def test_waiting_for_ones_turn_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch._Gate, "enter", lambda *_: time.sleep(0.8))
    reader = Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"), fetch_timeout_s=0.4)
    found = fetch_in_order(enumerate(write_pairs(tmp_path, 2)), reader, Ahead())
    assert [fetched.error for _, fetched in found] == [None, None]


def test_a_bug_in_a_thread_comes_out(tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch, "fetch_pair", lambda *_: 1 / 0)
    reader = Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"))
    with pytest.raises(ZeroDivisionError):
        list(fetch_in_order(enumerate(write_pairs(tmp_path, 2)), reader, Ahead()))


def test_a_consumer_that_stops_early_leaves_no_thread_behind(tmp_path):
    reader = Reader(store=STORE, rules=AccessRules(f"file://{tmp_path}"))
    before = threading.active_count()
    fetching = fetch_in_order(enumerate(write_pairs(tmp_path, 12)), reader, Ahead(decoded_bytes=1))
    next(fetching)
    fetching.close()
    assert threading.active_count() == before


def test_text_that_is_no_utf8_costs_its_own_row_only(tmp_path):
    manifest = write_manifest(tmp_path / "m.parquet", write_pairs(tmp_path, 3))
    table = pq.read_table(manifest)
    good = table["src"].to_pylist()
    spoilt = pa.array([good[0].encode(), b"\xff\xfe.png", good[2].encode()]).view(pa.string())
    pq.write_table(table.set_column(table.schema.get_field_index("src"), "src", spoilt), manifest)
    run_shard(task_for(tmp_path, manifest), FakeAlign())
    rows = part(tmp_path)
    assert [row["status"] for row in rows] == ["low_confidence", "invalid_row", "low_confidence"]
    assert rows[1]["status_detail"] == "src is not UTF-8 text: b'\\xff\\xfe.png'"
