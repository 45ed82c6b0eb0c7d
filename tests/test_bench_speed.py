"""What the benchmarks of speed measure, and that they measure it right."""

import json
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from jobs.bench import bench_command
from jobs.bench.methods import BARE, ECC, HOMOALIGN, SIFT
from jobs.bench.options import RenderOptions
from jobs.bench.pairs import draw_pair, offset_of
from jobs.bench.processes import TreeMeter, fresh_processes, memory_mb
from jobs.bench.speed import check_targets, describe_targets
from jobs.bench.speed_run import Candidate, Lap, Measured
from jobs.errors import UsageError


def bench(folder, *arguments):
    target = folder / "figures.json"
    result = CliRunner().invoke(bench_command, [*arguments, "--json", str(target)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(target.read_text())


@pytest.fixture(scope="module")
def speed(tmp_path_factory):
    arguments = ["--sizes", "96x64,256x256", "--batches", "1,2", "--max-batch-mb", "0.7", "--pairs", "2", "--runs", "2"]
    return bench(tmp_path_factory.mktemp("speed"), "speed", *arguments, "--photographs", "astronaut,coffee")


def test_speed_has_a_row_for_every_size_batch_and_peer(speed):
    peers = [(ECC, 1), (SIFT, 1)]
    assert [(row["size"], row["method"], row["batch"]) for row in speed["rows"]] == [
        *(("96x64", *each) for each in [(HOMOALIGN, 1), (BARE, 1), (HOMOALIGN, 2), (BARE, 2), *peers]),
        *(("256x256", *each) for each in [(HOMOALIGN, 1), (BARE, 1), *peers]),
    ]
    assert speed["left_out"] == ["256x256 x 2"]  # a pair is 0.5 MB
    assert "above 0.7 MB: 256x256 x 2." in speed["caption"]


def test_speed_says_beside_the_time_how_well_it_was_spent(speed):
    for row in speed["rows"]:
        if row["method"] in (HOMOALIGN, BARE):
            assert row["median px"] < 0.5
            assert row["<1 px %"] == 100
        assert row["CPU ms"] > 0
        assert row["wall ms"] > 0
        # Python with torch takes more than 100 MB; less is another process's, or another unit
        assert 100 < row["peak MB"] < 4000
        assert 0 < row["grew MB"] < row["peak MB"]


def test_speed_divides_what_was_run_in_turn(speed):
    def laps(**names):
        return [lap["cpu_s"] for lap in speed["laps"] if names.items() <= lap.items()]

    for row in speed["rows"]:
        ours = laps(size=row["size"], method=row["method"], batch=row["batch"])
        assert len(ours) == 2
        assert row["CPU ms"] == pytest.approx(1000 * statistics.median(ours))
        if row["method"] not in (HOMOALIGN, BARE):
            assert row["/ ECC"] == row["/ SIFT"] == ""
            continue
        for column, peer in (("/ ECC", ECC), ("/ SIFT", SIFT)):
            theirs = laps(size=row["size"], method=peer)
            assert row[column] == pytest.approx(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)))
    cpu_ms = {(row["size"], row["method"], row["batch"]): row["CPU ms"] for row in speed["rows"]}
    grown = {(row["size"], row["method"], row["batch"]): row["/ 256x256"] for row in speed["rows"]}
    assert grown["256x256", HOMOALIGN, 1] == 1
    shrunk = cpu_ms["96x64", HOMOALIGN, 1] / cpu_ms["256x256", HOMOALIGN, 1]
    assert grown["96x64", HOMOALIGN, 1] == pytest.approx(shrunk)
    assert grown["96x64", HOMOALIGN, 2] == ""  # its batch was left out at 256x256


def test_the_solver_alone_is_cheaper_and_all_of_its_time_is_in_the_whole(speed):
    cpu_ms = {(row["size"], row["method"]): row["CPU ms"] for row in speed["rows"] if row["batch"] == 1}
    assert all(cpu_ms[size, BARE] < cpu_ms[size, HOMOALIGN] for size in ("96x64", "256x256"))


def test_a_wrong_answer_is_seen_beside_the_speed(tmp_path):
    # a translation does not follow four corners that each move their own way
    crippled = ["--set", "model=translation", "--set", "use_search=false"]
    arguments = ["--sizes", "128x128", "--batches", "2", "--pairs", "2", "--runs", "1", "--no-peers"]
    found = bench(tmp_path, "speed", *arguments, "--set", "use_features=false", *crippled, "--photographs", "astronaut")
    assert [row["method"] for row in found["rows"]] == [HOMOALIGN, BARE]
    for row in found["rows"]:
        assert row["median px"] is None or row["median px"] > 1
        assert row["<1 px %"] < 100
    assert found["targets"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed", "--sizes", "64"], "--sizes 64: it should be WIDTHxHEIGHT"),
        (["speed", "--sizes", "64x64,640x8"], "of sides from 16"),
        (["speed", "--batches", "1,2.5"], "whole numbers from 1"),
        (["speed", "--batches", "0"], "whole numbers from 1"),
        (["speed", "--max-batch-mb", "0.001", "--no-peers"], "leaves nothing to measure"),
        (["speed", "--set", "stepp=1"], "did you mean"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as raised:
        CliRunner().invoke(bench_command, arguments, catch_exceptions=False)
    assert raised.value.exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_a_usage_error():
    with pytest.raises(UsageError, match="torch finds no CUDA device"):
        CliRunner().invoke(bench_command, ["speed", "--device", "cuda"], catch_exceptions=False)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_speed_on_a_gpu_counts_its_memory(tmp_path):
    arguments = ["--sizes", "96x64", "--batches", "2", "--pairs", "2", "--runs", "1", "--device", "cuda"]
    (ours, *_) = bench(tmp_path, "speed", *arguments, "--photographs", "astronaut")["rows"]
    assert ours["median px"] < 0.5
    assert 0 < ours["grew MB"] <= ours["peak MB"] < 1000


def measured(method, batch, cpu_s, **fields):
    laps = [Lap(cpu_s=each, wall_s=3 * each, matrices=[], peak_mb=1.0, grown_mb=0.5) for each in cpu_s]
    return Measured(candidate=Candidate(method=method, batch=batch, **fields), laps=laps, errors_px=[0.1])


def test_a_ratio_is_of_laps_beside_each_other_and_on_a_gpu_of_wall_time():
    peer = measured(ECC, 1, [1.0, 2.0, 100.0])
    # the machine slowed down for both: medians of each alone would say 2 / 2
    assert measured(HOMOALIGN, 1, [0.5, 2.0, 25.0]).ratio_to(peer) == 0.5
    assert measured(HOMOALIGN, 1, [0.5, 1.0, 50.0], device="cuda").ratio_to(peer) == 1.5


def test_a_target_is_held_against_its_batch_or_the_largest():
    def row(size, batch, ecc, growth=""):
        names = {"size": size, "method": HOMOALIGN, "batch": batch}
        return {**names, "/ ECC": ecc, "/ SIFT": "", "/ 256x256": growth}

    rows = [row("256x256", batch, ratio) for batch, ratio in ((8, 0.1), (64, 0.3), (128, 0.1))]
    rows += [row("640x480", 1, 0.2), row("640x480", 8, 0.1)]
    checked = check_targets([*rows, row("1920x1080", 8, "", 11.0)])
    assert [(each["size"], each["batch"], each["ratio"], each["is_met"]) for each in checked] == [
        ("256x256", 64, 0.3, False),
        ("640x480", 8, 0.1, True),
        ("1920x1080", 8, 11.0, True),
    ]
    assert "256x256 x 64 / ECC 0.3 (not at most 0.25); 640x480 x 8 / ECC 0.1 (at most 0.125)" in describe_targets(
        checked
    )
    assert describe_targets([]) == "No target is set for these sizes and batches."


def test_pairs_of_a_size_move_by_their_share_of_it():
    assert offset_of((256, 256)) == 10
    assert offset_of((480, 640)) == 18.75
    render = RenderOptions(pairs=1, seed=0, photographs=("astronaut",))
    drawn = draw_pair(render, 0, size=(48, 64), offset_px=offset_of((48, 64)))
    assert drawn.views.src.shape == drawn.views.dst.shape == (48, 64)


def test_a_fresh_process_has_its_own_peak():
    held = np.ones(2**27)  # 1 GB, and its peak stays after it is gone
    del held
    assert memory_mb("VmHWM") > 1024
    with fresh_processes() as home:
        assert 0 < home.submit(memory_mb, "VmHWM").result() < 1000
    assert memory_mb("VmHWM", 2**22 + 1) == 0  # no such process


def test_the_meter_counts_a_tree_and_what_of_it_has_ended():
    burn = "held = b'x' * (60 << 20)\nimport time\nwhile time.process_time() < 0.8: pass"
    between = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])"
    root_code = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {between!r}])\ntime.sleep(0.5)"
    started = time.time()
    with subprocess.Popen([sys.executable, "-c", root_code]) as root, TreeMeter(root.pid) as meter:
        root.wait()
    assert 60 < meter.worker_peak_mb < 200
    assert 0.4 < meter.cpu_s_between(started, time.time()) < 1.6  # to within a look or two
    assert meter.cpu_s_between(started, started) == 0
