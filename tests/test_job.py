"""The whole job through the real command line, on real processes."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import polars
import pyarrow.parquet as pq
import pytest
import tifffile
from job_pairs import (
    TRUTH,
    encoded,
    homoalign,
    pair,
    photo,
    result_rows,
    start_homoalign,
    write_manifest,
    write_pairs,
)
from loopback import HeldServer, serve_held

from homoalign.status import Status
from jobs.schema import RESULT_COLUMNS

pytestmark = pytest.mark.timeout(900)  # a run takes seconds, and on a machine that is shared out minutes
QUIET = ("--progress", "none", "--address", "local")
PATIENT = ("--fetch-timeout", 900)
"""For runs that a held server stalls, on a machine that may be slow."""


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds next to nothing."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def with_nan(path: Path, pixels: np.ndarray) -> None:
    image = pixels.astype(np.float32) / 255
    image[20:30, 20:30] = np.nan
    tifffile.imwrite(path, image)


BAD_ROWS: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
    ("missing_file", {"src": "nowhere.png"}, "unreadable", ("src", "nowhere.png", "does not exist")),
    ("empty_file", {"dst": "empty.png"}, "unreadable", ("dst", "empty.png", "0 bytes")),
    ("truncated_jpeg", {"src": "cut.jpg"}, "unreadable", ("src", "cut.jpg")),
    ("text_as_png", {"src": "text.png"}, "unreadable", ("src", "text.png")),
    ("empty_cell", {"src": ""}, "invalid_row", ("src", "empty")),
    ("null_cell", {"dst": None}, "invalid_row", ("dst", "null")),
    ("one_pixel", {"src": "one.png"}, "too_small", ("src", "1 x 1")),
    ("huge_header", {"src": "huge.png"}, "too_large", ("src", "huge.png", "60000", "100000000")),
    ("constant", {"src": "constant.png"}, "low_texture", ("src", "min_contrast")),
    ("nan_prior", {"dst_homo_src_init": [1.0, 0, 0, 0, float("nan"), 0, 0, 0, 1]}, "invalid_row", ("init[4]", "nan")),
    ("singular_prior", {"dst_homo_src_init": [1.0, 2, 3, 2, 4, 6, 0, 0, 1]}, "invalid_row", ("init", "singular")),
    ("short_truth", {"dst_homo_src_gt": [1.0, 0.0]}, "invalid_row", ("dst_homo_src_gt", "2 values")),
    ("mask_size", {"src_mask": "small_mask.png"}, "invalid_row", ("src_mask", "20 x 10", "128 x 96")),
    ("not_allowed", {"dst": "http://127.0.0.1:1/x.png"}, "not_allowed", ("dst", "127.0.0.1", "file://")),
    ("chained", {"dst": "zip://a.png::b.zip"}, "not_allowed", ("dst", "zip://a.png")),
    ("pipe", {"src": "pipe.png"}, "unreadable", ("src", "pipe.png", "no regular file")),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A manifest with good rows and every kind of bad one, and the folder of its finished run."""
    folder = tmp_path_factory.mktemp("job")
    rows = write_pairs(folder, 6)
    (folder / "empty.png").write_bytes(b"")
    jpeg = encoded(photo(0), "jpeg")
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "text.png").write_text("this is no image")
    (folder / "one.png").write_bytes(encoded(np.full((1, 1), 90, dtype=np.uint8)))
    (folder / "huge.png").write_bytes(png_header(60_000, 60_000))
    (folder / "constant.png").write_bytes(encoded(np.full((96, 128), 90, dtype=np.uint8)))
    (folder / "small_mask.png").write_bytes(encoded(np.full((10, 20), 255, dtype=np.uint8)))
    with_nan(folder / "nan.tif", pair(0)[0])
    os.mkfifo(folder / "pipe.png")
    rows += [{**rows[0], "pair_id": name, **cells} for name, cells, _, _ in BAD_ROWS]
    rows.append({**rows[0], "pair_id": "nan_pixels", "src": "nan.tif"})
    write_manifest(folder / "pairs.parquet", rows)
    out = folder / "out"
    done = homoalign("run", folder / "pairs.parquet", out, "--shard-rows", 8, "--carry", "kind", *QUIET)
    assert done.returncode == 0, done.stderr
    return folder, out


def row_of(out: Path, pair_id: str) -> dict[str, Any]:
    (row,) = (row for row in result_rows(out) if row["pair_id"] == pair_id)
    return row


def test_every_manifest_row_has_exactly_one_result_row_in_order(finished):
    folder, out = finished
    manifest = pq.read_table(folder / "pairs.parquet").to_pylist()
    rows = result_rows(out)
    assert [row["pair_id"] for row in rows] == [row["pair_id"] for row in manifest]
    assert [row["kind"] for row in rows] == [row["kind"] for row in manifest]
    assert {row["status"] for row in rows} <= {status.value for status in Status}
    assert sorted(path.name for path in out.iterdir()) == ["_SUCCESS", "data", "plan.json", "summary.json"]


def test_good_rows_are_aligned_to_their_truth(finished):
    for i in range(6):
        row = row_of(finished[1], f"pair{i}")
        assert row["status"] == "ok"
        assert row["status_detail"] is None
        # the crops are whole pixels apart, so only the solver's tolerance is left
        assert row["gt_corner_error_px"] < 0.1
        assert np.allclose(row["dst_homo_src"], TRUTH, atol=0.1)
        assert (row["src_height"], row["src_width"]) == (96, 128)


@pytest.mark.parametrize(("name", "status", "words"), [(name, status, words) for name, _, status, words in BAD_ROWS])
def test_a_bad_row_gets_its_status_with_values(finished, name, status, words):
    row = row_of(finished[1], name)
    assert row["status"] == status
    for word in words:
        assert word in row["status_detail"]
    assert row["dst_homo_src"] is None


def test_nan_pixels_are_masked_and_the_pair_still_aligns(finished):
    row = row_of(finished[1], "nan_pixels")
    assert row["status"] == "ok"
    assert row["gt_corner_error_px"] < 0.1


def test_the_results_are_read_with_nothing_of_ours_installed(finished):
    data = finished[1] / "data"
    num = len(result_rows(finished[1]))
    frame = pandas.read_parquet(data)
    names = [column.name for column in RESULT_COLUMNS if column.name != "levels"]
    assert list(frame.columns) == [*names, "kind"]
    assert len(frame) == num
    assert polars.read_parquet(f"{data}/*.parquet").height == num
    counted = duckdb.sql(f"select count(*) from '{data}/*.parquet' where status = 'ok'").fetchall()
    assert counted == [(7,)]


def test_summary_and_footers_agree_with_the_rows(finished):
    _, out = finished
    rows = result_rows(out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["reason"] == "done"
    assert summary["counts"] == dict(pandas.Series([row["status"] for row in rows]).value_counts())
    assert summary["rows_aligned"] == len(rows)
    plan = json.loads((out / "plan.json").read_text())
    metadata = pq.read_metadata(out / "data" / "part-000001.parquet").metadata
    assert metadata[b"homoalign.fingerprint"].decode() == plan["fingerprint"] == summary["fingerprint"]
    assert metadata[b"homoalign.shard"] == b"1"
    assert sum(json.loads(metadata[b"homoalign.counts"]).values()) == 8
    assert json.loads(metadata[b"homoalign.timings"])["align_s"] > 0


def test_status_and_evaluate_read_the_run_from_its_files(finished):
    status = json.loads(homoalign("status", finished[1], "--json").stdout)
    assert (status["state"], status["rows_done"], status["rows"]) == ("done", 23, 23)
    figures = json.loads(homoalign("evaluate", finished[1], "--by", "kind", "--json").stdout)
    assert figures["rows"] == 23
    assert figures["without_truth"] == 0
    # 7 of 23 are right; the others have a truth and no estimate
    assert figures["overall"]["below_px"]["5"] == pytest.approx(7 / 23)
    assert set(figures["by"]["groups"]) == {"even", "odd"}


def test_the_same_command_again_does_nothing(finished, joined):
    folder, out = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = homoalign("run", folder / "pairs.parquet", out, "--shard-rows", 8, "--carry", "kind", *joined)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in (out / "data").iterdir()}.items() <= before.items()


def test_another_config_is_refused_with_both_values(finished, joined):
    folder, out = finished
    done = homoalign(
        *("run", folder / "pairs.parquet", out, "--shard-rows", 8, "--carry", "kind", *joined),
        *("--set", "max_levels=5"),
    )
    assert done.returncode == 5
    assert "max_levels is 12 there and 5 now" in done.stderr
    assert done.stderr.count("\n") == 1


def test_retry_failed_changes_only_rows_that_a_retry_could_change(tmp_path, joined):
    rows = write_pairs(tmp_path, 3)
    late = (tmp_path / "src1.png").read_bytes()
    (tmp_path / "src1.png").unlink()
    manifest = write_manifest(tmp_path / "pairs.parquet", rows)
    command = ("run", manifest, tmp_path / "out", *joined)
    assert homoalign(*command).returncode == 0
    before = result_rows(tmp_path / "out")
    assert [row["status"] for row in before] == ["ok", "unreadable", "ok"]

    (tmp_path / "src1.png").write_bytes(late)
    assert homoalign(*command, "--retry-failed").returncode == 0
    after = result_rows(tmp_path / "out")
    assert [row["status"] for row in after] == ["ok", "ok", "ok"]
    assert [after[0], after[2]] == [before[0], before[2]]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["counts"] == {"ok": 3}
    assert summary["rows_aligned"] == 1


def test_incremental_aligns_only_the_new_file_and_the_rest_is_refused_when_it_changes(tmp_path, joined):
    rows = write_pairs(tmp_path, 4)
    (tmp_path / "m").mkdir()
    for row in rows:
        row.update({name: str(tmp_path / row[name]) for name in ("src", "dst")})
    write_manifest(tmp_path / "m" / "monday.parquet", rows[:2])
    command = ("run", tmp_path / "m", tmp_path / "out", *joined)
    assert homoalign(*command, "--incremental").returncode == 0
    before = (tmp_path / "out" / "data" / "part-000000.parquet").read_bytes()

    write_manifest(tmp_path / "m" / "tuesday.parquet", rows[2:])
    refused = homoalign(*command)
    assert refused.returncode == 5
    assert "tuesday.parquet" in refused.stderr
    assert homoalign(*command, "--incremental").returncode == 0
    assert [row["pair_id"] for row in result_rows(tmp_path / "out")] == ["pair0", "pair1", "pair2", "pair3"]
    assert (tmp_path / "out" / "data" / "part-000000.parquet").read_bytes() == before

    write_manifest(tmp_path / "m" / "monday.parquet", rows[:1])
    changed = homoalign(*command, "--incremental")
    assert changed.returncode == 5
    assert "rows of" in changed.stderr
    assert "is 2 there and 1 now" in changed.stderr


def wait_for_parts(out: Path, num: int, timeout_s: float = 200) -> None:
    deadline = time.monotonic() + timeout_s
    while len(list((out / "data").glob("part-*.parquet"))) < num:
        assert time.monotonic() < deadline, "no part was published in time"
        time.sleep(0.02)


def write_job(folder: Path, last_src: str = "src5.png") -> Path:
    """Write a job of three shards of two rows, the same whatever the folder."""
    rows = write_pairs(folder, 6)
    rows[5]["src"] = last_src
    return write_manifest(folder / "pairs.parquet", rows)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldServer]:
    """A server that holds back what is asked of it, so that a shard stalls."""
    with serve_held(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, joined) -> list[dict[str, Any]]:
    """The rows of `write_job` in a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = homoalign("run", write_job(folder), folder / "out", "--shard-rows", 2, *joined)
    assert done.returncode == 0, done.stderr
    return result_rows(folder / "out")


def test_after_sigkill_the_same_command_ends_with_the_rows_of_an_undisturbed_run(undisturbed, tmp_path, held, joined):
    manifest = write_job(tmp_path, f"{held.url}src5.png")
    command = ("run", manifest, tmp_path / "out", "--shard-rows", 2, "--allow", held.url, *PATIENT)
    process = start_homoalign(*command, *QUIET)
    wait_for_parts(tmp_path / "out", 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert (tmp_path / "out" / "lock.json").exists()
    # as if it had been killed while it published
    (tmp_path / "out" / "data" / f".part-000002.parquet.{'0' * 32}.tmp").write_bytes(b"half a part")
    first = (tmp_path / "out" / "data" / "part-000000.parquet").stat().st_mtime_ns

    held.let_go.set()
    again = homoalign(*command, *joined)
    assert again.returncode == 0, again.stderr
    assert result_rows(tmp_path / "out") == undisturbed
    assert (tmp_path / "out" / "data" / "part-000000.parquet").stat().st_mtime_ns == first
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_SUCCESS",
        "data",
        "plan.json",
        "summary.json",
    ]
    assert not list((tmp_path / "out" / "data").glob(".*"))
    # A worker of the killed run may outlive it long enough to publish the shard that was held.
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["rows_aligned"] in (0, 2)


def test_sigterm_ends_with_130_and_a_running_lock_ends_others_with_6(undisturbed, tmp_path, held, joined):
    manifest = write_job(tmp_path, f"{held.url}src5.png")
    command = ("run", manifest, tmp_path / "out", "--shard-rows", 2, "--allow", held.url, *PATIENT)
    process = start_homoalign(*command, *QUIET)
    wait_for_parts(tmp_path / "out", 2)
    second = homoalign(*command, *joined)
    assert second.returncode == 6
    assert f"pid {process.pid}" in second.stderr
    status = json.loads(homoalign("status", tmp_path / "out", "--json").stdout)
    assert (status["state"], status["rows_done"], status["unfinished_shards"]) == ("running", 4, [2])

    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert stderr.startswith("homoalign: interrupted by SIGTERM")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["reason"] == "interrupted"
    assert not (tmp_path / "out" / "lock.json").exists()
    assert not (tmp_path / "out" / "_SUCCESS").exists()

    held.let_go.set()
    again = homoalign(*command, *joined)
    assert again.returncode == 0, again.stderr
    assert result_rows(tmp_path / "out") == undisturbed


def test_too_many_errors_end_the_run_with_the_commonest(tmp_path, joined):
    rows = write_pairs(tmp_path, 1)
    rows = [{**rows[0], "pair_id": f"{i}", "src": f"missing{i}.png" if i else "src0.png"} for i in range(4)]
    manifest = write_manifest(tmp_path / "pairs.parquet", rows)
    done = homoalign("run", manifest, tmp_path / "out", "--max-error-rate", 0.5, *joined)
    assert done.returncode == 4
    assert "75.0% of 4 rows failed" in done.stderr
    assert "3 x src" in done.stderr
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["reason"] == "error_rate"


def damage_column(path: Path, name: str) -> None:
    """Overwrite a column's pages; the footer and the other columns stay whole."""
    group = pq.read_metadata(path).row_group(0)
    (column,) = (group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == name)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)


def test_a_shard_that_cannot_be_finished_is_listed_and_the_others_are_there(tmp_path, joined):
    rows = write_pairs(tmp_path, 4)
    (tmp_path / "m").mkdir()
    for row in rows:
        row.update({name: str(tmp_path / row[name]) for name in ("src", "dst")})
    write_manifest(tmp_path / "m" / "a.parquet", rows[:2])
    damage_column(write_manifest(tmp_path / "m" / "b.parquet", rows[2:]), "src")
    done = homoalign("run", tmp_path / "m", tmp_path / "out", "--shard-rows", 2, *joined)
    assert done.returncode == 7
    assert "1 of 2 shards could not be finished: shard 1: ManifestInvalid" in done.stderr
    assert "b.parquet" in done.stderr
    assert [row["pair_id"] for row in result_rows(tmp_path / "out")] == ["pair0", "pair1"]
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["reason"] == "shards_unfinished"
    assert [failed["shard"] for failed in summary["shards_failed"]] == [1]


def test_a_manifest_without_rows_is_done_at_once_and_its_data_is_readable(tmp_path, joined):
    rows = write_pairs(tmp_path, 1)
    manifest = tmp_path / "pairs.parquet"
    write_manifest(manifest, rows)
    pq.write_table(pq.read_table(manifest).slice(0, 0), manifest)
    done = homoalign("run", manifest, tmp_path / "out", *joined)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert len(pandas.read_parquet(tmp_path / "out" / "data")) == 0
