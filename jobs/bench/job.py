"""`homoalign bench job`: the whole job against what it is made of, and against the same work without Ray."""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from jobs.bench import job_run
from jobs.bench.job_pairs import JobPairs, write_job_pairs
from jobs.bench.job_run import Variant, Watched, median_error_px, watch
from jobs.bench.measure import show
from jobs.bench.options import BenchOptions, RenderOptions, parse_sizes, render_options, without_peers
from jobs.bench.processes import check_proc
from jobs.bench.score import NOT_APPLICABLE, Row
from jobs.errors import UsageError
from jobs.manifests.plan import default_shard_rows
from jobs.prepare import RunConfig
from jobs.rendering.synthetic import Size

JOB, POOL, LIBRARY, DECODE = "job", "process pool", "library alone", "decode alone"
VARIANTS: dict[str, Variant] = {
    JOB: job_run.job,
    POOL: job_run.pool,
    LIBRARY: job_run.library,
    DECODE: job_run.decode,
}

Key = tuple[str, int]
"""Variant and number of workers."""


@click.command("job", epilog="Example: homoalign bench job --pairs 256 --rounds 1 --json job.json")
@click.option("--size", metavar="WIDTHxHEIGHT", default="640x480", show_default=True, help="Of all images, px.")
@click.option(
    "--rendered", type=click.IntRange(min=1), default=32, show_default=True, help="Distinct pairs; rows repeat them."
)
@click.option("--gray", is_flag=True, help="JPEG of one channel instead of three.")
@click.option(
    "--num-workers",
    type=click.IntRange(min=1),
    default=os.cpu_count(),
    show_default="one a core",
    help="Of the job, and processes of the others; the job runs with one as well.",
)
@click.option("--shard-rows", type=click.IntRange(min=1), help="Rows of a shard; as the job chooses where not given.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Each runs everything once.")
@render_options(pairs=512, tone="in colour")
@without_peers
def job_command(
    *,
    size: str,
    rendered: int,
    gray: bool,
    num_workers: int,
    shard_rows: int | None,
    rounds: int,
    render: RenderOptions,
    options: BenchOptions,
) -> None:
    """Compare the job, from JPEG files to Parquet parts, with the parts of its work and with the same work without Ray.

    \b
    job            the whole of it on a local Ray, with --num-workers, and with one
    process pool   fetch, decode, align and write parts in a pool of processes: no Ray, lock or isolation
    library alone  align, on decoded pairs
    decode alone   the job's decoder, on files in memory

    All run in the job's shards and batches, one thread a process, each in fresh processes, in another order every
    round. Corners move by up to 10 px at 256, by the shorter side. Files lie in a temporary folder.
    """
    frame, *more_sizes = parse_sizes("--size", size, least=options.config.min_side_px)
    if more_sizes:
        raise UsageError(f"--size {size}: it should be one size")
    num_shards = -(-render.pairs // (shard_rows or default_shard_rows(render.pairs)))
    if num_workers > (os.cpu_count() or 1):
        raise UsageError(f"--num-workers {num_workers}: this machine has {os.cpu_count()}")
    if num_shards < 2 * num_workers:
        raise UsageError(
            f"--pairs {render.pairs} are {num_shards} shards; a steady rate of {num_workers} workers needs at least "
            f"{2 * num_workers} (--shard-rows)"
        )
    check_proc()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = write_job_pairs(folder, render, size=frame, num_rendered=rendered, gray=gray, num_threads=num_workers)
        run = RunConfig(
            manifest=str(pairs.manifest),
            out=str(folder / "out"),
            align=options.config,
            shard_rows=shard_rows,
            address="local",
            device="cpu",
            progress="none",
        )
        found = run_rounds(run, pairs, num_workers=num_workers, rounds=rounds)
        rows = job_rows(found, pairs, frame)
    show(
        f"bench job: {render.pairs} pairs of {size} in {num_shards} shards, median of {rounds} rounds, cpu",
        rows,
        caption="pairs/s: with all start-up, of Python, libraries and Ray. steady: from when as many shards are "
        "finished as there are workers to the last one, which is what a long job comes to. Ratios are of these rates, "
        "round by round: / decode, / pool: of the job to the others with as many workers; / one: to the job with one "
        "worker. first s: until the first shard is finished. CPU ms: of a pair, steady, all processes of the variant, "
        "Ray's among them. worker MB: most memory of its largest process, but for the one that hands out the work. "
        f"median px: mean corner error. Rows repeat {len(pairs.files)} distinct pairs; files are in the page cache.",
        json_path=options.json_path,
        more={
            "seed": render.seed,
            "photographs": render.photographs,
            "num_cpus": os.cpu_count(),
            "num_shards": num_shards,
            "rendered": len(pairs.files),
            "runs": _as_json(found),
        },
    )


def run_rounds(run: RunConfig, pairs: JobPairs, *, num_workers: int, rounds: int) -> dict[Key, list[Watched]]:
    """Run every variant once a round, beginning with another one each time; each leaves its OUT to itself."""
    keys: list[Key] = [(JOB, num_workers), *([(JOB, 1)] if num_workers > 1 else [])]
    keys += [(name, num_workers) for name in VARIANTS if name != JOB]
    found: dict[Key, list[Watched]] = {key: [] for key in keys}
    for number in range(rounds):
        first = number % len(keys)
        for name, workers in (*keys[first:], *keys[:first]):
            out = f"{run.out}-{number}-{name.replace(' ', '-')}-{workers}"
            watched = watch(VARIANTS[name], dataclasses.replace(run, out=out), pairs, workers)
            found[name, workers].append(watched)
    return found


def job_rows(found: Mapping[Key, Sequence[Watched]], pairs: JobPairs, size: Size) -> list[Row]:
    """Return a row for every variant."""
    return [
        {
            "variant": name,
            "workers": workers,
            "pairs/s": statistics.median(each.pairs_per_s for each in watched),
            "steady pairs/s": statistics.median(each.steady_pairs_per_s for each in watched),
            **{
                column: ratio
                for label, other in (("decode", (DECODE, workers)), ("pool", (POOL, workers)), ("one", (JOB, 1)))
                for column, ratio in _ratios(label, watched, found.get(other) if name == JOB else None).items()
            },
            "first s": statistics.median(each.first_s for each in watched),
            "CPU ms": statistics.median(1000 * each.steady_cpu_s for each in watched),
            "worker MB": max(each.worker_peak_mb for each in watched),
            "median px": NOT_APPLICABLE if name == DECODE else median_error_px(watched[-1].shards, pairs, size),
        }
        for (name, workers), watched in found.items()
    ]


def _ratios(label: str, ours: Sequence[Watched], others: Sequence[Watched] | None) -> Row:
    """Return the medians over rounds of our rates over the others', with start-up and steady."""
    if others is None or others is ours:
        return {f"/ {label}": NOT_APPLICABLE, f"steady / {label}": NOT_APPLICABLE}
    rounds = list(zip(ours, others, strict=True))
    return {
        f"/ {label}": statistics.median(a.pairs_per_s / b.pairs_per_s for a, b in rounds),
        f"steady / {label}": statistics.median(a.steady_pairs_per_s / b.steady_pairs_per_s for a, b in rounds),
    }


def _as_json(found: Mapping[Key, Sequence[Watched]]) -> list[dict[str, Any]]:
    return [
        {
            "variant": name,
            "workers": workers,
            "round": number,
            **{field.name: getattr(each, field.name) for field in dataclasses.fields(each) if field.name != "shards"},
        }
        for (name, workers), watched in found.items()
        for number, each in enumerate(watched)
    ]
