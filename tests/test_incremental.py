"""A manifest folder that grows: only what is new is aligned, whatever happened in between."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import click
import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_pairs import ROOT, TRUTH, homoalign, result_rows, write_manifest, write_pairs
from shard_tasks import FakeAlign

from jobs.cli import main
from jobs.errors import ManifestInvalid, PlanChanged
from jobs.manifests.plan import build_plan, default_shard_rows
from jobs.prepare import RunConfig, open_checked_manifest, settings_of, shard_task
from jobs.run import survey
from jobs.worker.shard import run_shard


@pytest.fixture
def pairs(tmp_path: Path) -> list[dict[str, Any]]:
    rows = write_pairs(tmp_path, 8)
    (tmp_path / "m").mkdir()
    for row in rows:
        row.update({name: str(tmp_path / row[name]) for name in ("src", "dst")})
    return rows


def run_night(folder: Path, *, die_after: int | None = None, **changes: Any) -> list[int]:
    """Do what `run --incremental` does, in this process and with a stand-in for the aligner.

    Args:
        folder: where the manifest `m` and the results `out` are.
        die_after: stop after so many shards.
        changes: to the run.

    Returns:
        The shards that were made.
    """
    run = RunConfig(**{"manifest": f"{folder}/m", "out": f"{folder}/out", "incremental": True, **changes})
    manifest, output = open_checked_manifest(run), run.output
    previous = output.read_plan()
    plan = build_plan(manifest, settings_of(run, manifest, previous), previous=previous, incremental=run.incremental)
    output.write_plan(plan)
    carried = manifest.fields(run.carry)
    done = {shard for shard, _ in output.tallies(plan, output.part_numbers(), carried)}
    todo = [shard for shard in range(plan.num_shards) if shard not in done][:die_after]
    for shard in todo:
        run_shard(shard_task(run, manifest, plan, shard), FakeAlign())
    return todo


def ids(folder: Path) -> list[str]:
    return [row["pair_id"] for row in result_rows(folder / "out")]


def test_it_may_grow_many_times_and_each_night_aligns_only_what_is_new(tmp_path, pairs):
    # names that sort before those of earlier nights, and a column that earlier nights did not have
    for night, name in enumerate(("d", "c", "b", "a")):
        rows = pairs[2 * night : 2 * night + 2]
        rows = rows if night < 2 else [{**row, "src_mask": None, "dst_homo_src_init": None} for row in rows]
        write_manifest(tmp_path / "m" / f"{name}.parquet", rows)
        before = {path: path.read_bytes() for path in (tmp_path / "out" / "data").glob("*")}
        assert run_night(tmp_path) == [night]
        assert {path: path.read_bytes() for path in before} == before
    assert ids(tmp_path) == [f"pair{i}" for i in range(8)]
    assert run_night(tmp_path) == []
    assert run_night(tmp_path, incremental=False) == [], "the plan is found again without the mode"


def test_a_night_that_died_is_finished_by_the_next_also_when_more_has_come(tmp_path, pairs):
    write_manifest(tmp_path / "m" / "1.parquet", pairs[:2])
    run_night(tmp_path, shard_rows=1)
    write_manifest(tmp_path / "m" / "2.parquet", pairs[2:5])
    assert run_night(tmp_path, shard_rows=1, die_after=1) == [2]
    assert run_night(tmp_path, shard_rows=1, die_after=0) == []
    write_manifest(tmp_path / "m" / "3.parquet", pairs[5:])
    os.unlink(tmp_path / "out" / "data" / "part-000001.parquet")  # as if its shard had failed on the first night
    assert run_night(tmp_path, shard_rows=1) == [1, 3, 4, 5, 6, 7]
    assert ids(tmp_path) == [f"pair{i}" for i in range(8)]


@pytest.mark.parametrize("incremental", [False, True])
def test_what_was_planned_may_neither_change_nor_go(tmp_path, pairs, incremental):
    write_manifest(tmp_path / "m" / "1.parquet", pairs[:2])
    write_manifest(tmp_path / "m" / "2.parquet", pairs[2:4])
    run_night(tmp_path)
    write_manifest(tmp_path / "m" / "3.parquet", pairs[4:6])
    kept = (tmp_path / "m" / "1.parquet").read_bytes()
    status = os.stat(tmp_path / "m" / "1.parquet")

    write_manifest(tmp_path / "m" / "1.parquet", [*pairs[:2], pairs[7]])  # rows appended to an old file
    with pytest.raises(PlanChanged, match=r"rows of .*1\.parquet is 2 there and 3 now") as caught:
        run_night(tmp_path, incremental=incremental)
    assert ("new rows belong into new files" in str(caught.value)) is incremental
    os.unlink(tmp_path / "m" / "1.parquet")
    with pytest.raises(PlanChanged, match=r"1\.parquet is planned there and not in the manifest now"):
        run_night(tmp_path, incremental=incremental)

    (tmp_path / "m" / "1.parquet").write_bytes(kept)
    os.utime(tmp_path / "m" / "1.parquet", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run_night(tmp_path) == [1]


def test_an_id_of_an_earlier_night_is_refused(tmp_path, pairs):
    write_manifest(tmp_path / "m" / "1.parquet", pairs[:2])
    run_night(tmp_path)
    write_manifest(tmp_path / "m" / "2.parquet", pairs[1:3])
    with pytest.raises(ManifestInvalid, match="'pair1' stands in 2 rows"):
        run_night(tmp_path)


def test_an_empty_night_and_an_empty_first_night_are_no_obstacle(tmp_path, pairs):
    write_manifest(tmp_path / "m" / "1.parquet", pairs[:1])
    run_night(tmp_path, limit=None)
    empty = write_manifest(tmp_path / "m" / "2.parquet", pairs[:1])
    pq.write_table(pq.read_table(empty).slice(0, 0), empty)
    assert run_night(tmp_path) == []
    write_manifest(tmp_path / "m" / "3.parquet", pairs[1:2])
    assert run_night(tmp_path) == [1]
    assert ids(tmp_path) == ["pair0", "pair1"]


def nights_with_notes(folder: Path, pairs: list[dict[str, Any]], *notes: Any) -> list[int]:
    """Run a night for each column of notes, two rows each; return the last night's shards."""
    shards = []
    for night, column in enumerate(notes):
        path = write_manifest(folder / "m" / f"{night}.parquet", pairs[2 * night : 2 * night + 2])
        pq.write_table(pq.read_table(path).append_column("notes", column), path)
        shards = run_night(folder, carry=("notes",))
    return shards


NO_NOTES = pa.nulls(2)
NOTES = {"string": pa.array(["blurred", None]), "large_string": pa.array(["blurred", None], pa.large_string())}


@pytest.mark.parametrize("kind", NOTES)
def test_a_carried_column_that_held_only_nulls_at_first_may_hold_text_later(tmp_path, pairs, kind):
    assert nights_with_notes(tmp_path, pairs, NO_NOTES, NO_NOTES, NOTES[kind], NO_NOTES) == [3]
    data, expected = tmp_path / "out" / "data", [None] * 4 + ["blurred"] + [None] * 3
    notes = pandas.read_parquet(data)["notes"]
    assert [None if pandas.isna(note) else note for note in notes] == expected
    assert polars.read_parquet(f"{data}/*.parquet")["notes"].to_list() == expected
    found = duckdb.sql(f"select notes from '{data}/*.parquet' order by pair_id").fetchall()
    assert [note for (note,) in found] == expected


@pytest.mark.parametrize("later", [pa.array([1, 2]), pa.array([[1.0], None]), NOTES["string"].dictionary_encode()])
def test_a_carried_column_that_held_only_nulls_may_not_become_anything_else(tmp_path, pairs, later):
    kind = re.escape(str(later.type)).replace("item", "element")  # as Parquet has it
    message = rf"column notes is of type string in .*part-000000\.parquet, .* and of type {kind} in the manifest now"
    with pytest.raises(PlanChanged, match=message):
        nights_with_notes(tmp_path, pairs, NO_NOTES, later)
    run = RunConfig(manifest=f"{tmp_path}/m", out=f"{tmp_path}/out", incremental=True, carry=("notes",))
    with pytest.raises(PlanChanged, match=message):
        survey(run, open_checked_manifest(run), run.output)
    assert run_night(tmp_path, carry=("notes",), out=f"{tmp_path}/other") == [0], "a run of its own may"


def test_parts_of_an_earlier_version_whose_column_has_no_type_are_not_added_to(tmp_path, pairs):
    nights_with_notes(tmp_path, pairs, NO_NOTES)
    part = tmp_path / "out" / "data" / "part-000000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.set_column(table.schema.get_field_index("notes"), "notes", NO_NOTES), part)
    with pytest.raises(PlanChanged, match="column notes is of type null in"):
        run_night(tmp_path, carry=("notes",))


def test_a_carried_prior_that_is_null_at_first_is_a_matrix_all_the_same(tmp_path, pairs):
    for night, prior in enumerate((None, TRUTH)):
        rows = [{**row, "dst_homo_src_init": prior} for row in pairs[2 * night : 2 * night + 2]]
        write_manifest(tmp_path / "m" / f"{night}.parquet", rows)
        assert run_night(tmp_path, carry=("dst_homo_src_init",)) == [night]
    assert [prior is None for prior in pandas.read_parquet(tmp_path / "out" / "data")["dst_homo_src_init"]] == [
        *(True, True),
        *(False, False),
    ]


def test_a_manifest_that_began_small_gets_shards_that_fit_what_comes(tmp_path, pairs):
    write_manifest(tmp_path / "m" / "1.parquet", pairs[:1])
    run_night(tmp_path)
    run = RunConfig(manifest=f"{tmp_path}/m", out=f"{tmp_path}/out", incremental=True)
    manifest, previous = open_checked_manifest(run), run.output.read_plan()
    huge = dataclasses.replace(manifest.files[0], path="file:///m/huge.parquet", rows=10**6)
    grown = dataclasses.replace(manifest, files=(*manifest.files, huge))
    plan = build_plan(grown, settings_of(run, grown, previous), previous=previous, incremental=True)
    assert plan.num_shards == 1 + -(-(10**6) // default_shard_rows(10**6))
    assert sum(segment.stop - segment.start for shard in range(1, 978) for segment in plan.shard(shard)) == 10**6
    asked = dataclasses.replace(settings_of(run, grown, None), shard_rows=100)
    first = build_plan(manifest, asked)
    assert build_plan(grown, asked, previous=first, incremental=True).num_shards == 1 + 10**4


def test_the_readmes_line_for_cron_is_a_command_and_does_the_same_every_night(tmp_path, pairs, joined):
    (line,) = re.findall(r"^0 1 \* \* \* homoalign (run .*)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    verb, manifest, out, *options = line.split()
    assert main.get_command(click.Context(main), verb).make_context(verb, [manifest, out, *options])
    assert "--incremental" in options
    for night in range(2):
        write_manifest(tmp_path / "m" / f"{night}.parquet", pairs[night : night + 1])
        done = homoalign(verb, tmp_path / "m", tmp_path / "out", *options, *joined)
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert (summary["rows_aligned"], summary["rows_done"], summary["reason"]) == (1, night + 1, "done")
        assert (tmp_path / "out" / "_SUCCESS").exists()
