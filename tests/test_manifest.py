"""The manifest: what is accepted, what is refused with which words, and how row ranges are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import ManifestInvalid, UsageError
from jobs.manifests import ids
from jobs.manifests.ids import check_ids
from jobs.manifests.manifest import check_carry, check_unchanged, open_manifest, read_rows
from jobs.storage.store import Store

NINE = [float(i) for i in range(9)]
STORE = Store()


def write(path: Path, *, row_group_size: int | None = None, **columns: Any) -> Path:
    columns = {"pair_id": ["a", "b", "c"], "src": ["x", "y", "z"], "dst": ["x", "y", "z"], **columns}
    pq.write_table(
        pa.table({name: value for name, value in columns.items() if value is not None}),
        path,
        row_group_size=row_group_size,
    )
    return path


@pytest.mark.parametrize(
    "columns",
    [
        {"pair_id": pa.array([1, 2, 3], pa.uint16())},
        {"pair_id": pa.array(["a", "b", "c"], pa.large_string())},
        {
            "pair_id": pa.array(["a", "b", "c"]).dictionary_encode(),
            "src": pa.array(["x", "x", "y"]).dictionary_encode(),
        },
        {"src": pa.array([b"1", b"2", None])},
        {"src": pa.array([b"1", b"2", None], pa.large_binary())},
        {"dst": pa.array([{"bytes": b"1", "path": None}, {"bytes": None, "path": "p"}, None])},
        {"src_mask": pa.nulls(3), "dst_homo_src_init": pa.nulls(3)},
        {"dst_homo_src_init": pa.array([NINE, None, NINE])},
        {"dst_homo_src_gt": pa.array([NINE, None, NINE], pa.list_(pa.float64(), 9))},
        {"dst_homo_src_gt": pa.array([NINE, None, NINE], pa.large_list(pa.float32()))},
    ],
)
def test_the_contracts_types_are_accepted_and_read(tmp_path, columns):
    manifest = open_manifest(STORE, str(write(tmp_path / "m.parquet", **columns)))
    check_ids(STORE, manifest)
    (batch,) = read_rows(STORE, manifest.files[0], 1, 3, manifest.schema, batch_rows=10)
    assert batch["pair_id"].to_pylist() == columns.get("pair_id", pa.array(["a", "b", "c"]))[1:].to_pylist()
    for name in columns:
        assert batch[name].to_pylist() == columns[name][1:].to_pylist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"src": None}, "column src is missing"),
        ({"pair_id": None}, "column pair_id is missing"),
        ({"pair_id": [1.5, 2.5, 3.5]}, "column pair_id .* has type double; it should be string or integer"),
        ({"dst": [1, 2, 3]}, "column dst .* has type int64; it should be string, binary or struct<bytes, path>"),
        ({"dst": pa.nulls(3)}, "column dst .* has type null"),
        ({"src_mask": [{"path": "x"}] * 3}, "column src_mask .* has type struct"),
        (
            {"dst_homo_src_init": ["x"] * 3},
            "column dst_homo_src_init .* has type string; it should be list of 9 doubles",
        ),
        ({"dst_homo_src_gt": pa.array([[1.0] * 8] * 3, pa.list_(pa.float64(), 8))}, r"dst_homo_src_gt .*\[8\]"),
    ],
)
def test_a_wrong_column_is_named_with_what_was_found(tmp_path, columns, message):
    with pytest.raises(ManifestInvalid, match=message):
        open_manifest(STORE, str(write(tmp_path / "m.parquet", **columns)))


def test_what_is_no_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestInvalid, match=r"nowhere\.parquet does not exist"):
        open_manifest(STORE, str(tmp_path / "nowhere.parquet"))
    with pytest.raises(ManifestInvalid, match="names no Parquet file"):
        open_manifest(STORE, str(tmp_path))
    (tmp_path / "text.parquet").write_text("this is no Parquet file")
    with pytest.raises(ManifestInvalid, match="not readable as Parquet"):
        open_manifest(STORE, str(tmp_path / "text.parquet"))


def test_files_may_store_a_column_differently_but_not_be_of_another_type(tmp_path):
    write(tmp_path / "a.parquet", dst_homo_src_init=pa.nulls(3), notes=["n"] * 3)
    write(
        tmp_path / "b.parquet",
        pair_id=pa.array(["d", "e", "f"], pa.large_string()),
        src=pa.array(["x", "y", "z"]).dictionary_encode(),
        dst_homo_src_init=pa.array([NINE] * 3, pa.list_(pa.float64(), 9)),
        notes=[1, 2, 3],
    )
    manifest = open_manifest(STORE, str(tmp_path))
    assert manifest.rows == 6
    (batch,) = read_rows(
        STORE, manifest.files[1], 0, 3, manifest.schema.remove(manifest.schema.get_field_index("notes")), batch_rows=10
    )
    assert batch["pair_id"].to_pylist() == ["d", "e", "f"]
    assert batch["dst_homo_src_init"].to_pylist() == [NINE] * 3
    with pytest.raises(
        ManifestInvalid, match=r"column notes is of type string in .*a\.parquet and of type int64 in .*b"
    ):
        open_manifest(STORE, str(tmp_path), ["notes"])
    write(tmp_path / "c.parquet", pair_id=[7, 8, 9], dst_homo_src_init=pa.nulls(3))
    with pytest.raises(
        ManifestInvalid, match=r"column pair_id is of type string in .*a\.parquet and of type int64 in .*c"
    ):
        open_manifest(STORE, str(tmp_path))


@pytest.mark.parametrize("first", ["without", "with"])
def test_a_column_that_only_some_files_have_is_null_in_the_others(tmp_path, first):
    names = ("a.parquet", "b.parquet") if first == "without" else ("b.parquet", "a.parquet")
    write(tmp_path / names[0])
    write(tmp_path / names[1], src_mask=["m", None, "m"], dst_homo_src_init=[NINE] * 3, kind=[1, 2, 3])
    manifest = open_manifest(STORE, str(tmp_path), ["kind"])
    check_carry(manifest, ["kind"])
    schema = pa.schema([manifest.schema.field(name) for name in manifest.columns_read(["kind"])])
    found = {
        file.path.rpartition("/")[2]: next(iter(read_rows(STORE, file, 0, 3, schema, batch_rows=3))).to_pydict()
        for file in manifest.files
    }
    assert found[names[1]]["src_mask"] == ["m", None, "m"]
    assert (found[names[1]]["kind"], found[names[1]]["dst_homo_src_init"]) == ([1, 2, 3], [NINE] * 3)
    for name in ("src_mask", "dst_homo_src_init", "kind"):
        assert found[names[0]][name] == [None] * 3


def test_a_repeated_id_is_named_with_its_count_across_files(tmp_path):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", pair_id=["d", "b", "b"])
    with pytest.raises(ManifestInvalid, match="pair_id 'b' stands in 3 rows; 1 of 4 ids are repeated"):
        check_ids(STORE, open_manifest(STORE, str(tmp_path)))


@pytest.mark.parametrize("share", [1, 7, 2**25])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.int8(), pa.uint64(), pa.dictionary(pa.int32(), pa.string())]
)
def test_repeats_are_found_among_ids_of_any_type_read_in_shares(tmp_path, monkeypatch, kind, share):
    monkeypatch.setattr(ids, "HASHES_AT_A_TIME", share)
    given = [*range(120), 7, 119, 7] if pa.types.is_integer(kind) else [*map("x".__mul__, range(120)), "x" * 7, "", ""]
    repeated, count = (7, 3) if pa.types.is_integer(kind) else ("", 3)
    for name, values in (("a", given[:60]), ("b", given[60:])):
        write(
            tmp_path / f"{name}.parquet",
            pair_id=pa.array(values, kind),
            src=["x"] * len(values),
            dst=["x"] * len(values),
        )
    message = f"pair_id {repeated!r} stands in {count} rows; 2 of 120 ids are repeated"
    with pytest.raises(ManifestInvalid, match=re.escape(message)):
        check_ids(STORE, open_manifest(STORE, str(tmp_path)))
    write(tmp_path / "b.parquet", pair_id=pa.array(given[60:120], kind), src=["x"] * 60, dst=["x"] * 60)
    check_ids(STORE, open_manifest(STORE, str(tmp_path)))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_an_id_that_is_no_utf8_is_refused(tmp_path, kind):
    spoilt = pa.array([b"a", b"\xff\xfe", b"\xff\xfe"], pa.binary() if kind == pa.string() else pa.large_binary())
    manifest = open_manifest(STORE, str(write(tmp_path / "m.parquet", pair_id=spoilt.view(kind))))
    with pytest.raises(ManifestInvalid, match=r"pair_id b'\\xff\\xfe' in row 1 of .*m\.parquet is not UTF-8 text"):
        check_ids(STORE, manifest)


def test_ids_whose_hashes_agree_are_not_taken_for_repeats(tmp_path, monkeypatch):
    monkeypatch.setattr(ids, "hash_ids", lambda values: np.zeros(len(values), np.uint64))
    manifest = open_manifest(STORE, str(write(tmp_path / "m.parquet")))
    check_ids(STORE, manifest)
    manifest = open_manifest(STORE, str(write(tmp_path / "m.parquet", pair_id=["a", "b", "a"])))
    with pytest.raises(ManifestInvalid, match="'a' stands in 2 rows"):
        check_ids(STORE, manifest)


def test_a_null_id_is_refused(tmp_path):
    write(tmp_path / "m.parquet", pair_id=["a", None, "c"])
    with pytest.raises(ManifestInvalid, match="pair_id is null in 1 of 3 rows"):
        check_ids(STORE, open_manifest(STORE, str(tmp_path)))


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (3, 4), (2, 9), (9, 10), (4, 6)])
@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_a_row_range_is_read_whatever_the_row_groups(tmp_path, start, stop, batch_rows):
    ids = [f"{i}" for i in range(10)]
    write(tmp_path / "m.parquet", pair_id=ids, src=ids, dst=ids, row_group_size=4)
    manifest = open_manifest(STORE, str(tmp_path))
    batches = read_rows(STORE, manifest.files[0], start, stop, manifest.schema, batch_rows=batch_rows)
    assert [value for batch in batches for value in batch["pair_id"].to_pylist()] == ids[start:stop]


def test_a_file_that_changed_after_planning_is_refused_with_both_values(tmp_path):
    path = write(tmp_path / "m.parquet")
    manifest = open_manifest(STORE, str(path))
    check_unchanged(STORE, manifest.files[0])
    write(path, pair_id=["a", "b", "longer"])
    with pytest.raises(ManifestInvalid, match=f"size {manifest.files[0].size} then, {path.stat().st_size} now"):
        check_unchanged(STORE, manifest.files[0])


def test_a_carried_column_must_exist_once_and_hide_nothing(tmp_path):
    manifest = open_manifest(STORE, str(write(tmp_path / "m.parquet", kind=["k"] * 3, status=["s"] * 3)))
    check_carry(manifest, ["kind"])
    for carry, message in (
        (["color"], "'color'; the manifest has pair_id"),
        (["status"], "a result column"),
        (["kind", "kind"], "more than once"),
    ):
        with pytest.raises(UsageError, match=message):
            check_carry(manifest, carry)
