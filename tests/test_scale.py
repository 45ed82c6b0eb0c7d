"""Memory that does not grow: with the rows of a manifest, its files, the parts of a run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from job_pairs import ENVIRONMENT, ROOT, write_pairs

from jobs.storage.parallel import AHEAD, map_in_order

PLAN = """
import sys, time
from fuzz import peak_mb
from jobs.cli import main
started = time.monotonic()
main(["plan", *sys.argv[1:]], standalone_mode=False)
print(time.monotonic() - started, peak_mb())
"""


def plan(manifest: Path, *options: str) -> tuple[float, float, str]:
    """Run `homoalign plan` in a process of its own: seconds, megabytes at most, and what it printed."""
    command = [sys.executable, "-c", PLAN, str(manifest), str(manifest / "out"), *options]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=True)
    seconds, megabytes = map(float, done.stdout.splitlines()[-1].split())
    return seconds, megabytes, done.stdout


def write_manifest_of(folder: Path, *, files: int, rows: int) -> Path:
    """Write a manifest of many files of as many rows each, all of them one file on the disk."""
    folder.mkdir()
    write_pairs(folder, 1)
    cells = {
        name: pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [f"{name}0.png"]) for name in ("src", "dst")
    }
    ids = pc.utf8_lpad(pa.array(np.arange(rows)).cast(pa.string()), 36, "0")
    pq.write_table(pa.table({"pair_id": ids, **cells}), folder / "0.parquet", row_group_size=100_000)
    for number in range(1, files):
        os.link(folder / "0.parquet", folder / f"{number}.parquet")
    return folder


@pytest.mark.slow
def test_a_hundred_million_rows_are_planned_in_a_minute_and_in_the_memory_of_a_million(tmp_path):
    _, small, _ = plan(write_manifest_of(tmp_path / "small", files=1, rows=1_000_000), "--sample", "1")
    large = write_manifest_of(tmp_path / "large", files=100, rows=1_000_000)
    seconds, megabytes, printed = plan(large, "--sample", "1")
    assert "100000000" in printed
    assert seconds < 60
    assert megabytes < 1000
    assert megabytes < small + 60


@pytest.mark.slow
def test_ids_are_checked_in_memory_that_does_not_grow_with_their_number(tmp_path):
    manifest = write_manifest_of(tmp_path / "m", files=1, rows=4_000_000)
    _, with_ids, _ = plan(manifest, "--sample", "0")
    os.link(manifest / "0.parquet", manifest / "1.parquet")  # beyond what is checked unasked
    _, without, _ = plan(manifest, "--sample", "0")
    assert with_ids < without + 120  # 8 bytes an id, and as much to sort them


def test_few_results_wait_however_many_items_there_are():
    made, lock = 0, threading.Lock()

    def count(item: int) -> int:
        nonlocal made
        with lock:
            made += 1
        return item * item

    results = map_in_order(count, range(10_000))
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert made <= 3 + AHEAD
    assert sum(1 for _ in results) == 10_000 - 3
    assert list(map_in_order(count, [])) == []


def test_what_an_item_raises_comes_out_in_its_turn():
    results = map_in_order(lambda item: 1 // item, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
