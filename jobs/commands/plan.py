"""`homoalign plan`: what a run would do. Writes nothing."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import click
from rich.table import Table

from jobs.commands.run import run_config, work_options
from jobs.console import stdout_console
from jobs.interrupt import handled_by, leave_at_once
from jobs.manifests.manifest import Manifest
from jobs.prepare import RunConfig, open_checked_manifest, shard_task
from jobs.progress import duration_text
from jobs.results.summary import RunState
from jobs.results.tally import tally_rows
from jobs.storage.errors import redact
from jobs.worker.shard import align_rows, first_rows


@click.command(
    "plan",
    short_help="Check a manifest and say what a run would do.",
    epilog="\b\nExample: homoalign plan pairs.parquet out --shard-rows 256 --sample 16",
)
@work_options
@click.option(
    "--sample", type=click.IntRange(min=0), default=4, show_default=True, help="Pairs to align for the estimate."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def plan_command(*, sample: int, as_json: bool, **options: Any) -> None:
    """Check MANIFEST and OUT as `run` would, count, and estimate the time from a few pairs. Writes nothing."""
    run = run_config(**options)
    manifest = open_checked_manifest(run)
    state = _survey(run, manifest)
    plan = state.plan
    estimate = _estimate(run, manifest, state, sample)
    facts = {
        "manifest": redact(manifest.url),
        "files": len(manifest.files),
        "rows": plan.rows,
        "shards": plan.num_shards,
        "shard_rows": plan.settings.shard_rows,
        "shards_done": len(state.done),
        "rows_done": state.tally.rows,
        "fingerprint": plan.fingerprint,
        "config": dict(plan.settings.config),
        "columns": [{"name": field.name, "type": str(field.type)} for field in manifest.schema],
        "columns_read": manifest.columns_read(run.carry),
        "estimate": estimate,
    }
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        _print(facts)


def _survey(run: RunConfig, manifest: Manifest) -> RunState:
    """Return what `run` would find in OUT, or raise what it would end with."""
    with handled_by(leave_at_once):
        from jobs.run import survey  # brings Ray

    output = run.output
    output.check_writable()
    return survey(run, manifest, output)


def _estimate(run: RunConfig, manifest: Manifest, state: RunState, sample: int) -> dict[str, Any] | None:
    """Time a few pairs through the shard's own path, in this process."""
    plan = state.plan
    left = plan.rows - state.tally.rows
    if not sample or not left:
        return None
    import torch

    from homoalign import align

    device = "cuda" if run.device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(max(1, int(run.num_cpus)))
    first = next(shard for shard in range(plan.num_shards) if shard not in state.done)
    task = shard_task(run, manifest, plan, first, device=device)
    align_rows(first_rows(task, 1), align)  # the first pair pays for loading and warming up
    started = time.perf_counter()
    table, _ = align_rows(first_rows(task, sample), align)
    seconds = (time.perf_counter() - started) / max(table.num_rows, 1)
    workers = run.max_workers or max(1, int((os.cpu_count() or 1) / run.num_cpus))
    return {
        "pairs_timed": table.num_rows,
        "counts": dict(tally_rows(table, {}).counts),
        "seconds_per_pair": round(seconds, 4),
        "device": device,
        "workers": workers,
        "rows_left": left,
        "seconds": round(seconds * left / workers, 3),
    }


def _print(facts: dict[str, Any]) -> None:
    console = stdout_console()
    table = Table(show_header=False, box=None)
    for name in ("manifest", "files", "rows", "shards", "shard_rows", "shards_done", "fingerprint"):
        table.add_row(name, str(facts[name]))
    console.print(table)
    columns = Table("column", "type", "read")
    for column in facts["columns"]:
        columns.add_row(column["name"], column["type"], "yes" if column["name"] in facts["columns_read"] else "")
    console.print(columns)
    estimate = facts["estimate"]
    if estimate is None:
        console.print("no estimate: nothing is left to do, or --sample is 0")
        return
    console.print(
        f"about {duration_text(estimate['seconds'])} for {estimate['rows_left']} rows with {estimate['workers']} "
        f"workers on {estimate['device']}: {estimate['pairs_timed']} took {estimate['seconds_per_pair']:.3g} s each"
    )
