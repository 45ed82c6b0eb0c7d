"""Mutated image files of every format through the decoders and the job: `make fuzz`.

    python tests/fuzz.py --inputs 20000 --seed 0

Batches run in processes of their own, so that a crash or a hang costs one batch and is told with what made it. Exit
code 0: every row had its result row, nothing crashed, nothing took longer than the limit.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from image_files import FILES, with_true_checksums
from job_pairs import ENVIRONMENT, encoded, pair
from shard_tasks import FakeAlign, task_for

from homoalign.decoding.images import decode_image
from homoalign.errors import PairError
from homoalign.status import Status
from jobs.worker.shard import run_shard

BATCH = 500
ROWS_ALIGNED = 3
"""Of a batch, by the real aligner; the others by a stand-in, because decoding is what is tried here."""
DECODE_LIMIT_S, BATCH_LIMIT_S = 10.0, 300.0
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
GOOD = encoded(pair(0)[0])


def mutated(rng: random.Random) -> tuple[str, bytes]:
    """Return a file's kind and its bytes after one to six edits, most of them near its start, where headers are."""
    name = rng.choice(list(FILES))
    data = bytearray(FILES[name])
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        reach = rng.choice((32, 128, len(data), len(data)))
        at = rng.randrange(max(1, min(reach, len(data))))
        rng.choice(EDITS)(data, at, rng)
    if name.startswith("png") and rng.random() < 0.8:
        return name, with_true_checksums(bytes(data))
    return name, bytes(data)


def flip(data: bytearray, at: int, rng: random.Random) -> None:
    """Flip a bit."""
    data[at : at + 1] = bytes(value ^ 1 << rng.randrange(8) for value in data[at : at + 1])


def put_number(data: bytearray, at: int, rng: random.Random) -> None:
    """Write a number that limits are made of, in one to eight bytes of either order."""
    size = rng.choice((1, 2, 2, 4, 4, 8))
    data[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, rng.choice(("little", "big")))


def put_noise(data: bytearray, at: int, rng: random.Random) -> None:
    """Overwrite some bytes."""
    data[at : at + 16] = rng.randbytes(len(data[at : at + 16]))


def cut_out(data: bytearray, at: int, rng: random.Random) -> None:
    """Leave some bytes out."""
    del data[at : at + rng.choice((1, 2, 4, 64))]


def cut_off(data: bytearray, at: int, rng: random.Random) -> None:
    """End the file here, sometimes."""
    if rng.random() < 0.3:
        del data[at:]


def repeat(data: bytearray, at: int, rng: random.Random) -> None:
    """Put in some bytes again."""
    data[at:at] = data[at : at + rng.choice((1, 4, 12, 64))] * rng.choice((1, 2, 50))


def splice(data: bytearray, at: int, rng: random.Random) -> None:
    """Go on as another file."""
    other = FILES[rng.choice(list(FILES))]
    data[at:] = other[rng.randrange(len(other)) :]


EDITS: tuple[Callable[[bytearray, int, random.Random], None], ...] = (
    *(flip, flip, put_number, put_number, put_number, put_noise, cut_out, cut_off, repeat, splice),
)


def run_batch(seed: int, num_inputs: int, folder: Path) -> dict[str, Any]:
    """Decode and run one batch in this process; return what came of it."""
    rng = random.Random(seed)
    files = [mutated(rng) for _ in range(num_inputs)]
    slowest: tuple[float, int] = (0.0, 0)
    for index, (_, data) in enumerate(files):
        (folder / "input").write_text(f"{seed} {index}")
        started = time.perf_counter()
        with suppress(PairError):
            decode_image(data)
        slowest = max(slowest, (time.perf_counter() - started, index))
    (folder / "input").write_text(f"{seed} as a job")
    rows = []
    while files:
        row: dict[str, Any] = {"pair_id": f"{seed}-{len(rows)}", "src": files.pop()[1], "dst": GOOD}
        for name in rng.choice(((), (), (), ("dst",), ("src_mask",), ("dst", "dst_mask"))):
            if files:
                row[name] = files.pop()[1]
        rows.append(row)
    counts: Counter[str] = Counter()
    for some, align in ((rows, FakeAlign()), (rows[:ROWS_ALIGNED], None)):
        table = pa.table({name: [row.get(name) for row in some] for name in ("pair_id", "src", "dst")})
        for name in ("src_mask", "dst_mask"):
            table = table.append_column(name, pa.array([row.get(name) for row in some], pa.binary()))
        pq.write_table(table, folder / "m.parquet")
        run_shard(task_for(folder, folder / "m.parquet"), align)
        found = pq.read_table(folder / "out" / "part-000000.parquet")
        if found["pair_id"].to_pylist() != [row["pair_id"] for row in some]:
            raise AssertionError(f"batch {seed}: {found.num_rows} of {len(some)} rows, or out of order")
        statuses = found["status"].to_pylist()
        if not {*statuses} <= {*Status}:
            raise AssertionError(f"batch {seed}: { ({*statuses} - {*Status}) }")
        counts.update(statuses)
    return {"seed": seed, "rows": len(rows), "counts": counts, "slowest_s": slowest, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Return the most memory this process has held."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def run_child(seed: int, num_inputs: int, folder: Path) -> dict[str, Any]:
    """Run one batch in a process of its own; `failed` says what went wrong."""
    command = [sys.executable, "-X", "faulthandler", __file__, "--child", str(folder)]
    command += ["--seed", str(seed), "--inputs", str(num_inputs)]
    try:
        done = subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, text=True, timeout=BATCH_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"hangs at {(folder / 'input').read_text()}"}
    if done.returncode:
        return {"failed": f"exit {done.returncode} at {(folder / 'input').read_text()}: {done.stderr[-2000:]}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if result["slowest_s"][0] > DECODE_LIMIT_S:
        result["failed"] = f"input {seed} {result['slowest_s'][1]} took {result['slowest_s'][0]:.1f} s"
    return result


def fuzz(num_inputs: int, seed: int) -> list[str]:
    """Run batches until `num_inputs` files were tried; print the figures and return what failed."""
    started, failures, counts = time.monotonic(), [], Counter[str]()
    tried, rows, slowest, peak = 0, 0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as name:
        while tried < num_inputs:
            size = min(BATCH, num_inputs - tried)
            result = run_child(seed, size, Path(name))
            if "failed" in result:
                failures.append(result["failed"])
                print(result["failed"], flush=True)
            tried, seed = tried + size, seed + 1
            rows += result.get("rows", 0)
            counts.update(result.get("counts", {}))
            slowest = max(slowest, result.get("slowest_s", (0.0, 0))[0])
            peak = max(peak, result.get("peak_mb", 0.0))
    print(f"{tried} mutated files of {len(FILES)} kinds in {rows} rows, {time.monotonic() - started:.0f} s: {counts}")
    print(f"slowest decode {slowest:.2f} s, peak memory {peak:.0f} MB, failures {len(failures)}")
    return failures


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child is None:
        return 1 if fuzz(options.inputs, options.seed) else 0
    print(json.dumps(run_batch(options.seed, options.inputs, options.child)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
