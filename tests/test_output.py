"""What a run finds in OUT before it starts: its own parts, another plan's, damaged ones, and what is not ours."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from job_pairs import write_manifest, write_pairs

from jobs.errors import PlanChanged
from jobs.prepare import RunConfig, open_checked_manifest, shard_task
from jobs.results.summary import Reason, RunState, build_summary, read_status
from jobs.run import begin, survey
from jobs.worker.shard import run_shard


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """A run of two shards whose parts are made."""
    manifest = write_manifest(tmp_path / "m.parquet", write_pairs(tmp_path, 3))
    run = RunConfig(manifest=str(manifest), out=str(tmp_path / "out"), shard_rows=2)
    make_parts(run)
    return run


def make_parts(run: RunConfig) -> RunState:
    manifest = open_checked_manifest(run)
    state = survey(run, manifest, run.output)
    begin(run, run.output, state)
    for shard in range(state.plan.num_shards):
        run_shard(shard_task(run, manifest, state.plan, shard))
    return state


def settled(run: RunConfig) -> RunState:
    state = survey(run, open_checked_manifest(run), run.output)
    begin(run, run.output, state)
    return state


def test_parts_of_this_plan_are_done(run):
    state = settled(run)
    assert state.done == {0, 1}
    assert state.is_complete
    assert state.tally.rows == 3


def test_a_damaged_part_is_made_again(run):
    part = Path(run.out) / "data" / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    assert settled(run).done == {0}


def test_a_part_of_another_plan_is_refused_with_both_fingerprints(run, tmp_path):
    mine = settled(run).plan.fingerprint
    other = dataclasses.replace(run, out=str(tmp_path / "other"), shard_rows=1)
    theirs = make_parts(other).plan.fingerprint
    shutil.copy(tmp_path / "other" / "data" / "part-000001.parquet", tmp_path / "out" / "data")
    with pytest.raises(PlanChanged, match=rf"part-000001\.parquet is of plan {theirs}, this is plan {mine}"):
        settled(run)
    shutil.copy(tmp_path / "other" / "data" / "part-000002.parquet", tmp_path / "out" / "data")
    (tmp_path / "out" / "data" / "part-000001.parquet").unlink()
    with pytest.raises(PlanChanged, match=r"part-000002\.parquet is no part of this plan, which has 2 shards"):
        settled(run)


def test_parts_without_a_plan_are_refused(run):
    (Path(run.out) / "plan.json").unlink()
    with pytest.raises(PlanChanged, match=r"holds 2 parts without a plan\.json; --overwrite clears them"):
        settled(run)


def test_overwrite_removes_what_is_ours_and_nothing_else(run):
    out = Path(run.out)
    for name in ("_SUCCESS", "summary.json", "report.html", "notes.txt", "data/notes.txt"):
        (out / name).write_text("x")
    (out / "data" / f".part-000000.parquet.{'a' * 32}.tmp").write_text("x")
    other_config = dataclasses.replace(run, overwrite=True, shard_rows=3)
    assert settled(other_config).done == set()
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == [
        "data",
        "data/notes.txt",
        "notes.txt",
        "plan.json",
    ]


def test_an_unfinished_run_has_no_marker_of_success(run):
    out = Path(run.out)
    (out / "_SUCCESS").write_text("x")
    (out / "data" / "part-000000.parquet").unlink()
    assert settled(run).done == {1}
    assert not (out / "_SUCCESS").exists()


def test_status_says_done_only_while_every_part_is_there(run):
    run.output.write_success(settled(run).plan)
    assert read_status(run.output)["state"] == "done"
    (Path(run.out) / "data" / "part-000001.parquet").write_bytes(b"damaged")
    assert read_status(run.output)["state"] == "unfinished"
    (Path(run.out) / "data" / "part-000001.parquet").unlink()
    status = read_status(run.output)
    assert (status["state"], status["shards_done"], status["unfinished_shards"]) == ("unfinished", 1, [1])


def test_the_summary_that_a_run_writes_is_read_back(run):
    summary = build_summary(settled(run), Reason.DONE)
    run.output.write_summary(summary)
    assert run.output.read_summary() == summary


@pytest.mark.parametrize(
    "damage",
    [
        lambda summary: {"fingerprint": summary["fingerprint"]},
        lambda summary: {**summary, "rows_done": "3"},
        lambda summary: {**summary, "rows_done": None},
        lambda summary: {**summary, "pairs_per_second": "fast"},
        lambda summary: {**summary, "counts": {"ok": "3"}},
        lambda summary: {**summary, "counts": ["ok"]},
        lambda summary: {**summary, "errors": [{"kind": "unreadable"}]},
        lambda summary: {**summary, "errors": ["unreadable"]},
        lambda summary: [summary],
    ],
)
def test_a_damaged_summary_counts_as_none(run, damage):
    run.output.write_summary(damage(build_summary(settled(run), Reason.DONE)))
    assert run.output.read_summary() is None
