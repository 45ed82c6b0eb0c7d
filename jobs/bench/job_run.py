"""What `bench job` measures: the job and its parts, each in fresh processes, watched from outside.

    job          run_job on a local Ray                       fetch, decode, align, write
    pool         run_shard in a pool of processes             the same, without Ray, lock and isolation
    library      align on decoded pairs, in the same pool            align
    decode       decode_image on files in memory, likewise           decode

All of them work shard by shard, in the job's own shards and batches, one thread a process. When a shard was finished is
known from its part, or from the process that did it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import homoalign
from homoalign.decoding.images import decode_image
from jobs.bench.job_pairs import JobPairs
from jobs.bench.methods import corner_distance_px
from jobs.bench.processes import TreeMeter, fresh_processes
from jobs.bench.score import median
from jobs.errors import UsageError
from jobs.manifests.plan import build_plan
from jobs.prepare import RunConfig, open_checked_manifest, settings_of, shard_task
from jobs.rendering.synthetic import Size
from jobs.run import run_job
from jobs.worker.child import keep_freed_memory, set_threads
from jobs.worker.fetch import PairImages
from jobs.worker.shard import Batcher, ShardTask, align_pairs, run_shard

RAY_NICENESS = 15
"""Of Ray's workers, by default."""

Files = tuple[tuple[Path, Path], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A shard that is done.

    Attributes:
        ended: Unix time.
        rows: how many it has.
        matrices: by pair_id, 9 doubles or None; empty where nothing was aligned.
    """

    ended: float
    rows: int
    matrices: dict[int, list[float] | None]


Variant = Callable[[RunConfig, Files, int], list[Shard]]
"""Takes a run, the distinct pairs' files and the number of workers; returns all shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """One variant, from the start of its process to its end.

    Attributes:
        wall_s: with all start-up.
        first_s: until the first shard was finished.
        pairs_per_s: all rows over `wall_s`.
        steady_pairs_per_s: from when as many shards are finished as there are workers to the last: no start-up.
        steady_cpu_s: CPU seconds a pair of all its processes in that time.
        worker_peak_mb: most memory of its largest process, the first one apart.
        shards: in the order in which they were finished.
    """

    wall_s: float
    first_s: float
    pairs_per_s: float
    steady_pairs_per_s: float
    steady_cpu_s: float
    worker_peak_mb: float
    shards: list[Shard]


def watch(variant: Variant, run: RunConfig, pairs: JobPairs, num_workers: int) -> Watched:
    """Run one variant in a fresh process and measure that and all processes it starts."""
    started = time.time()
    with fresh_processes() as home, TreeMeter(home.submit(os.getpid).result()) as meter:
        shards = home.submit(variant, run, pairs.files, num_workers).result()
    return weigh(shards, meter, started=started, ended=time.time(), num_workers=num_workers)


def weigh(shards: Sequence[Shard], meter: TreeMeter, *, started: float, ended: float, num_workers: int) -> Watched:
    """Return the figures of a variant that ran between two Unix times."""
    wall_s = ended - started
    shards = sorted(shards, key=lambda shard: shard.ended)
    done = list(accumulate(shard.rows for shard in shards))
    begin, end = shards[num_workers - 1].ended, shards[-1].ended
    steady_rows, steady_s = done[-1] - done[num_workers - 1], max(end - begin, 1e-9)
    return Watched(
        wall_s=wall_s,
        first_s=shards[0].ended - started,
        pairs_per_s=done[-1] / wall_s,
        steady_pairs_per_s=steady_rows / steady_s,
        steady_cpu_s=meter.cpu_s_between(begin, end) / steady_rows,
        worker_peak_mb=meter.worker_peak_mb,
        shards=shards,
    )


def job(run: RunConfig, files: Files, num_workers: int) -> list[Shard]:  # noqa: ARG001, a Variant
    """Run the job as `homoalign run` does."""
    num_cpus = os.cpu_count() or 1
    # as many as there are is what a run without --max-workers does, which then keeps more shards at hand
    limited = replace(run, max_workers=None if num_workers == num_cpus else num_workers)
    summary = run_job(limited)
    if summary["num_workers"] != num_workers:
        raise UsageError(f"--num-workers {num_workers}: Ray runs {summary['num_workers']} at a time here")
    return read_parts(run)


def pool(run: RunConfig, files: Files, num_workers: int) -> list[Shard]:  # noqa: ARG001, a Variant
    """Make the job's parts in a pool of processes."""
    _map_shards(run_shard, run, num_workers)
    return read_parts(run)


def library(run: RunConfig, files: Files, num_workers: int) -> list[Shard]:
    """Align decoded pairs."""
    return _map_shards(partial(align_shard, files), run, num_workers)


def decode(run: RunConfig, files: Files, num_workers: int) -> list[Shard]:
    """Decode files that are in memory."""
    return _map_shards(partial(decode_shard, files), run, num_workers)


def _map_shards(work: Callable[[ShardTask], Any], run: RunConfig, num_workers: int) -> list[Any]:
    with fresh_processes(num_workers, start_worker) as workers:
        return list(workers.map(work, shard_tasks(run)))


def start_worker() -> None:
    """Make this process one like Ray's workers: one thread, and as ready to make way for others on a busy machine."""
    os.nice(RAY_NICENESS)
    set_threads(1)
    keep_freed_memory()


def shard_tasks(run: RunConfig) -> list[ShardTask]:
    """Return the tasks of all shards as the job would hand them out."""
    manifest = open_checked_manifest(run)
    plan = build_plan(manifest, settings_of(run, manifest, None))
    return [shard_task(run, manifest, plan, index) for index in range(plan.num_shards)]


def read_parts(run: RunConfig) -> list[Shard]:
    """Return the shards by the parts in OUT."""
    shards = []
    for path in sorted(Path(run.out, "data").glob("part-*.parquet")):
        part = pq.read_table(path, columns=["pair_id", "dst_homo_src"])
        matrices = dict(zip(part["pair_id"].to_pylist(), part["dst_homo_src"].to_pylist(), strict=True))
        shards.append(Shard(ended=path.stat().st_mtime, rows=part.num_rows, matrices=matrices))
    return shards


def align_shard(files: Files, task: ShardTask) -> Shard:
    """Align a shard's pairs, which are in memory, in its batches."""
    images, numbers = _decoded(files), _numbers(task)
    batcher = Batcher(task.batching)
    batches = [batch for number in numbers for batch in batcher.add(number, images[number % len(images)])]
    batches += batcher.drain()
    matrices: dict[int, list[float] | None] = {}
    for batch in batches:
        rows = align_pairs(batch.pairs, homoalign.align, config=task.config, device=task.device, trace=task.trace)
        matrices.update(zip(batch.numbers, (row["dst_homo_src"] for row in rows), strict=True))
    return Shard(ended=time.time(), rows=len(numbers), matrices=matrices)


def decode_shard(files: Files, task: ShardTask) -> Shard:
    """Decode a shard's files, which are in memory, by the job's decoder."""
    encoded, numbers = _encoded(files), _numbers(task)
    for number in numbers:
        for data in encoded[number % len(encoded)]:
            decode_image(data)
    return Shard(ended=time.time(), rows=len(numbers), matrices={})


def _numbers(task: ShardTask) -> range:
    (segment,) = task.segments  # the benchmark's manifest is one file
    return range(segment.start, segment.stop)


# Read once a process, in its first shard, which no steady figure counts.


@cache
def _encoded(files: Files) -> list[tuple[bytes, bytes]]:
    return [(src.read_bytes(), dst.read_bytes()) for src, dst in files]


@cache
def _decoded(files: Files) -> list[PairImages]:
    pairs = [[decode_image(data).pixels for data in pair] for pair in _encoded(files)]
    return [PairImages(src=src, dst=dst, src_mask=None, dst_mask=None, init=None, gt=None) for src, dst in pairs]


def median_error_px(shards: Sequence[Shard], pairs: JobPairs, size: Size) -> float | None:
    """Return the median over rows of the mean corner error, dst pixels; None where most rows have no matrix."""
    return median(
        [
            math.inf
            if values is None
            else corner_distance_px(np.array(values).reshape(3, 3), pairs.truths[number % len(pairs.truths)], size)
            for shard in shards
            for number, values in shard.matrices.items()
        ]
    )
