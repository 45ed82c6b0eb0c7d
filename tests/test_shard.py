"""One shard: rows in order, batches that depend on rows alone, what the part says, and what fails it."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from job_pairs import TRUTH, encoded, pair, photo, write_manifest, write_pairs
from shard_tasks import STORE, FakeAlign, part, task_for

from homoalign.result import AlignResult
from jobs.errors import ManifestChanged, ManifestInvalid
from jobs.manifests.manifest import read_rows
from jobs.results.rows import has_truth, read_footer
from jobs.storage.access import AccessRules
from jobs.storage.errors import StorageError
from jobs.storage.store import Store
from jobs.worker import prefetch, shard
from jobs.worker.fetch import Fetched, Reader, fetch_pair
from jobs.worker.prefetch import Ahead
from jobs.worker.shard import Batching, run_shard


def test_rows_come_out_in_manifest_order_each_with_its_own_result(tmp_path, mixed_manifest):
    run_shard(task_for(tmp_path, mixed_manifest, carry=("kind",), batching=Batching(pairs=3)), FakeAlign())
    rows, manifest = part(tmp_path), pq.read_table(mixed_manifest).to_pylist()
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


def test_batches_and_bytes_do_not_depend_on_which_thread_was_first(tmp_path, mixed_manifest, monkeypatch):
    def slowly(*arguments: Any) -> Fetched:
        time.sleep(delays.random() / 50)
        return fetch_pair(*arguments)

    delays = random.Random("slowly")
    monkeypatch.setattr(prefetch, "fetch_pair", slowly)
    seen = []
    for threads in (1, 3, 8):
        align = FakeAlign()
        run_shard(task_for(tmp_path, mixed_manifest, ahead=Ahead(threads=threads), batching=Batching(pairs=3)), align)
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


def test_anything_but_a_pair_error_fails_the_shard(tmp_path, mixed_manifest):
    def broken(*_: Any, **__: Any) -> AlignResult:
        raise RuntimeError("a bug of ours")

    with pytest.raises(RuntimeError, match="a bug of ours"):
        run_shard(task_for(tmp_path, mixed_manifest), broken)
    assert not (tmp_path / "out").exists()


def test_the_footer_says_which_plan_and_shard_and_what_was_counted(tmp_path, mixed_manifest):
    done = run_shard(task_for(tmp_path, mixed_manifest), FakeAlign())
    footer = read_footer(STORE, f"{tmp_path}/out/part-000000.parquet")
    assert footer.fingerprint == task_for(tmp_path, mixed_manifest).fingerprint
    assert footer.tally.counts == done.tally.counts == {"low_confidence": 10, "unreadable": 2}
    assert footer.tally.timings["bytes_read"] > 0
    metadata = pq.read_metadata(tmp_path / "out" / "part-000000.parquet").metadata
    assert sum(count for count, _ in json.loads(metadata[b"homoalign.errors"]).values()) == 12


def test_the_part_says_which_rows_have_a_truth(tmp_path):
    rows = write_pairs(tmp_path, 3)
    rows[1]["dst_homo_src_gt"] = None
    run_shard(task_for(tmp_path, write_manifest(tmp_path / "m.parquet", rows)), FakeAlign())
    assert has_truth(pq.read_table(tmp_path / "out" / "part-000000.parquet")).tolist() == [True, False, True]


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


@pytest.mark.parametrize("nested", [None, "list", "struct", "dictionary"])
def test_carried_text_that_is_no_utf8_makes_its_row_invalid_and_is_null(tmp_path, nested):
    manifest = write_manifest(tmp_path / "m.parquet", write_pairs(tmp_path, 3))
    table = pq.read_table(manifest)
    texts = pa.array([b"sea", b"\xff\xfe", b"town"]).view(pa.string())
    columns = {
        None: texts,
        "list": pa.ListArray.from_arrays([0, 1, 2, 3], texts),
        "struct": pa.StructArray.from_arrays([texts], ["name"]),
        "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), texts),
    }
    pq.write_table(table.append_column("scene", columns[nested]), manifest)
    run_shard(task_for(tmp_path, manifest, carry=("scene",)), FakeAlign())
    rows = part(tmp_path)
    assert [row["status"] for row in rows] == ["low_confidence", "invalid_row", "low_confidence"]
    assert rows[1]["status_detail"] == "scene holds text that is not UTF-8"
    assert [row["scene"] is None for row in rows] == [False, True, False]
    found = pq.read_table(tmp_path / "out" / "part-000000.parquet")
    assert found.schema.field("scene").type == columns[nested].type
    found.validate(full=True)
    assert list(pandas.read_parquet(tmp_path / "out")["pair_id"]) == ["pair0", "pair1", "pair2"]


def test_an_id_that_is_no_utf8_is_found_also_where_ids_were_not_checked(tmp_path):
    manifest = write_manifest(tmp_path / "m.parquet", write_pairs(tmp_path, 2))
    table = pq.read_table(manifest)
    spoilt = pa.array([b"a", b"\xff\xfe"]).view(pa.string())
    pq.write_table(table.set_column(0, "pair_id", spoilt), manifest)
    with pytest.raises(ManifestInvalid, match="is not UTF-8 text"):
        run_shard(task_for(tmp_path, manifest), FakeAlign())


def test_a_file_that_is_rewritten_while_it_is_read_is_said_to_have_changed(tmp_path, monkeypatch):
    manifest = write_manifest(tmp_path / "m.parquet", write_pairs(tmp_path, 2))
    task = task_for(tmp_path, manifest)

    def rewritten(*_: Any, **__: Any) -> Any:
        manifest.write_bytes(manifest.read_bytes()[:100])
        return read_rows(*_, **__)

    monkeypatch.setattr(shard, "read_rows", rewritten)
    with pytest.raises(ManifestChanged, match="changed while the run read it: size"):
        run_shard(task, FakeAlign())
    monkeypatch.setattr(Store, "info", lambda *_: (_ for _ in ()).throw(StorageError("503")))
    with pytest.raises(StorageError, match="503"):  # so that another try is made
        run_shard(task, FakeAlign())
