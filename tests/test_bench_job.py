"""`bench job`: every variant does the same work, and the ratios are those of the rates."""

import json
import os
import statistics

import pytest
import torch
from click.testing import CliRunner

from jobs.bench import bench_command
from jobs.bench.job import DECODE, JOB, LIBRARY, POOL, job_rows
from jobs.bench.job_pairs import write_job_pairs
from jobs.bench.job_run import Shard, Watched, decode_shard, shard_tasks, start_worker, weigh
from jobs.bench.options import RenderOptions
from jobs.bench.processes import TreeMeter, fresh_processes
from jobs.errors import UsageError
from jobs.prepare import RunConfig

RATIOS = ["/ decode", "steady / decode", "/ pool", "steady / pool", "/ one", "steady / one"]


@pytest.fixture(scope="module")
def job_figures(tmp_path_factory):
    target = tmp_path_factory.mktemp("job") / "figures.json"
    arguments = ["--pairs", "6", "--size", "96x64", "--shard-rows", "1", "--num-workers", "1", "--rendered", "2"]
    arguments += ["--rounds", "1", "--photographs", "astronaut,coffee", "--seed", "1", "--json", str(target)]
    result = CliRunner().invoke(bench_command, ["job", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(target.read_text())


def test_every_variant_does_the_same_work(job_figures):
    rows = {row["variant"]: row for row in job_figures["rows"]}
    assert list(rows) == [JOB, POOL, LIBRARY, DECODE]
    assert rows[JOB]["median px"] == rows[POOL]["median px"] == rows[LIBRARY]["median px"] < 0.5
    assert rows[DECODE]["median px"] == ""
    assert job_figures["num_shards"] == 6
    assert job_figures["rendered"] == 2


def test_rates_ratios_and_memory_are_those_of_the_runs(job_figures):
    rows, runs = ({row["variant"]: row for row in job_figures[name]} for name in ("rows", "runs"))
    for name, row in rows.items():
        run = runs[name]
        assert row["pairs/s"] == run["pairs_per_s"] == pytest.approx(6 / run["wall_s"])
        assert row["steady pairs/s"] == run["steady_pairs_per_s"] > row["pairs/s"]  # without Python's start
        assert 0 < row["first s"] < run["wall_s"]
        assert row["CPU ms"] >= 0
        assert 100 < row["worker MB"] < 4000
    for label, other in (("decode", DECODE), ("pool", POOL)):
        assert rows[JOB][f"/ {label}"] == pytest.approx(rows[JOB]["pairs/s"] / rows[other]["pairs/s"])
        steady = rows[JOB]["steady pairs/s"] / rows[other]["steady pairs/s"]
        assert rows[JOB][f"steady / {label}"] == pytest.approx(steady)
    assert rows[JOB]["/ one"] == ""  # it was one
    assert all(rows[name][column] == "" for name in (POOL, LIBRARY, DECODE) for column in RATIOS)


def watched(rate, *, wall_s=10.0):
    return Watched(
        wall_s=wall_s, first_s=1.0, pairs_per_s=rate / 2, steady_pairs_per_s=rate, steady_cpu_s=0.01,
        worker_peak_mb=rate, shards=[],
    )  # fmt: skip


def test_a_ratio_is_of_one_round_and_two_workers_are_held_against_one():
    runs = {
        (JOB, 2): [watched(20.0), watched(2.0), watched(30.0)],
        (JOB, 1): [watched(10.0), watched(1.5), watched(20.0)],
        (POOL, 2): [watched(40.0), watched(2.5), watched(30.0)],
        (LIBRARY, 2): [watched(50.0)] * 3,
        (DECODE, 2): [watched(100.0)] * 3,
    }
    rows = {(row["variant"], row["workers"]): row for row in job_rows(runs, None, (64, 96))}
    ours = rows[JOB, 2]
    assert ours["steady pairs/s"] == 20
    assert ours["steady / one"] == ours["/ one"] == 1.5
    assert ours["steady / pool"] == 0.8  # 0.5, 0.8, 1: medians of each alone would say 20 / 30
    assert ours["steady / decode"] == pytest.approx(0.2)
    assert ours["worker MB"] == 30
    assert all(rows[JOB, 1][column] == "" for column in RATIOS)


def test_the_steady_rate_begins_when_every_worker_has_finished_one():
    shards = [Shard(ended=at, rows=4, matrices={}) for at in (103.0, 101.0, 102.0, 105.0)]
    meter = TreeMeter(0)
    meter.timeline = [(100.0, 0.0), (102.0, 10.0), (107.0, 20.0)]
    seen = weigh(shards, meter, started=100.0, ended=108.0, num_workers=2)
    assert [shard.ended for shard in seen.shards] == [101, 102, 103, 105]
    assert (seen.wall_s, seen.first_s, seen.pairs_per_s) == (8, 1, 2)
    assert seen.steady_pairs_per_s == pytest.approx(8 / 3)  # two shards after the second one
    assert seen.steady_cpu_s == pytest.approx(6 / 8)


def test_the_processes_without_ray_have_no_advantage_over_those_with_it():
    with fresh_processes(1, start_worker) as home:
        assert home.submit(torch.get_num_threads).result() == 1
        assert home.submit(os.nice, 0).result() == min(os.nice(0) + 15, 19)


def test_the_manifest_names_the_rendered_pairs_in_turn(tmp_path):
    render = RenderOptions(pairs=5, seed=0, photographs=("camera", "astronaut"))
    pairs = write_job_pairs(tmp_path, render, size=(64, 96), num_rendered=2, gray=False, num_threads=1)
    run = RunConfig(manifest=str(pairs.manifest), out=str(tmp_path / "out"), shard_rows=2)
    tasks = shard_tasks(run)
    assert [(task.segments[0].start, task.segments[0].stop) for task in tasks] == [(0, 2), (2, 4), (4, 5)]
    assert decode_shard(pairs.files, tasks[2]).rows == 1
    from homoalign.decoding.images import decode_image

    decoded = [decode_image(file.read_bytes()).pixels for pair in pairs.files for file in pair]
    assert {image.shape for image in decoded} == {(64, 96, 3)}  # the gray photograph's as well
    assert statistics.mean(image.std() for image in decoded) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "64x64,96x64"], "it should be one size"),
        (["--size", "640"], "it should be WIDTHxHEIGHT"),
        (["--pairs", "20", "--num-workers", "1", "--shard-rows", "20"], "are 1 shards"),
        (["--num-workers", "100000"], "this machine has"),
        (["--json", "nonesuch/f.json"], "there is no folder"),
        (["--set", "stepp=1"], "did you mean"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as raised:
        CliRunner().invoke(bench_command, ["job", *arguments], catch_exceptions=False)
    assert raised.value.exit_code == 2
