"""`homoalign run` and the options it shares with `plan`."""

from __future__ import annotations

from typing import Any

import click

from homoalign.status import Status
from jobs.interrupt import handled_by, leave_at_once
from jobs.options import (
    Number,
    Resource,
    Seconds,
    align_config,
    column_names,
    read_config,
    read_storage_options,
    storage_options,
    together,
)
from jobs.prepare import RETRYABLE, RunConfig
from jobs.progress import counts_text, duration_text, error_lines
from jobs.storage.errors import redact
from jobs.storage.store import Store
from jobs.worker.fetch import FETCH_TIMEOUT_S, MAX_BYTES, MAX_PIXELS
from jobs.worker.shard import ROW_TIMEOUT_S

ROWS = click.IntRange(min=1)

work_options = together(
    click.argument("manifest"),
    click.argument("out"),
    align_config,
    click.option("--shard-rows", type=ROWS, help="Rows of a part. [default: 16 to 1024, by the manifest's size]"),
    click.option("--batch-size", type=ROWS, help="Most pairs aligned together. [default: 32, 128 on CUDA]"),
    click.option("--carry", metavar="COLS", multiple=True, help="Manifest columns to copy to the results, by commas."),
    click.option("--trace", is_flag=True, help="Fill the column `levels`."),
    click.option("--limit", type=ROWS, help="Only the first rows of the manifest."),
    click.option("--check-ids", is_flag=True, help="Check pair_id for repeats also above 5 million rows."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option(
        "--num-cpus",
        type=Resource(may_be_none=False, is_whole_above_1=False),
        default=1.0,
        help="Per task. [default: 1]",
    ),
    click.option(
        "--num-gpus",
        type=Resource(may_be_none=True, is_whole_above_1=True),
        help="Per task. [default: 1 with CUDA, else 0]",
    ),
    click.option("--max-workers", type=ROWS, help="Tasks at a time. [default: what the cluster holds]"),
    click.option("--incremental", is_flag=True, help="The manifest grew: align only the files that are new."),
    click.option("--overwrite", is_flag=True, help="Remove what an earlier run left in OUT first."),
    click.option(
        "--allow",
        metavar="SCHEME_OR_PREFIX",
        multiple=True,
        help="Also read images of this scheme or below this prefix; a prefix of the manifest's own scheme narrows it. "
        "Repeatable. [default: the manifest's scheme]",
    ),
    click.option("--max-pixels", type=ROWS, default=MAX_PIXELS, show_default=True, help="Of an image, by its header."),
    click.option("--max-bytes", type=ROWS, default=MAX_BYTES, show_default=True, help="Of an encoded image."),
    click.option(
        "--fetch-timeout",
        "fetch_timeout_s",
        metavar="SECONDS",
        type=Seconds(min=0, min_open=True),
        default=FETCH_TIMEOUT_S,
        help=f"For a row's images to be fetched, then decoded; else it is timed_out. [default: {FETCH_TIMEOUT_S:g}]",
    ),
    click.option(
        "--row-timeout",
        "row_timeout_s",
        metavar="SECONDS",
        type=Seconds(min=0, min_open=True),
        default=ROW_TIMEOUT_S,
        help="A worker without progress for so long, by the rows of a batch, is ended and its rows are tried alone. "
        f"[default: {ROW_TIMEOUT_S:g}]",
    ),
    storage_options,
)


def run_config(
    *,
    config_file: str | None,
    settings: tuple[str, ...],
    carry: tuple[str, ...],
    storage_options: str,
    **options: Any,
) -> RunConfig:
    """Return the run that a command's parameters ask for."""
    store = Store(read_storage_options(storage_options, [options["manifest"], options["out"]]))
    return RunConfig(align=read_config(store, config_file, settings), carry=column_names(carry), store=store, **options)


@click.command(
    "run",
    short_help="Align every pair of a manifest.",
    epilog="\b\nExample: homoalign run pairs.parquet out --carry dataset,kind --set min_overlap=0.2",
)
@work_options
@click.option("--address", help="Ray cluster, or `local`. [default: the cluster this machine is in, else a local Ray]")
@click.option(
    "--retry-failed", is_flag=True, help=f"Try finished rows again whose status is one of {', '.join(RETRYABLE)}."
)
@click.option(
    "--retry-status",
    type=click.Choice([status.value for status in Status]),
    multiple=True,
    help="Try finished rows of this status again. Repeatable.",
)
@click.option(
    "--wait-lock",
    "wait_lock_s",
    metavar="SECONDS",
    type=Seconds(min=0),
    default=0.0,
    help="How long to wait for another run's lock. [default: 0]",
)
@click.option(
    "--max-error-rate",
    type=Number(0, 1),
    default=1.0,
    help="Stop when more than this share of the rows could not be read. [default: 1]",
)
@click.option("--progress", type=click.Choice(["auto", "plain", "none"]), default="auto", show_default=True)
def run_command(*, retry_failed: bool, retry_status: tuple[str, ...], **options: Any) -> None:
    """Align every pair of MANIFEST (Parquet: a file, a folder or a glob, at any fsspec URL) and write OUT.

    The same command again continues an interrupted run, and does nothing where all is done.
    """
    with handled_by(leave_at_once):
        from jobs.run import run_job

    retry = frozenset(status.value for status in RETRYABLE) if retry_failed else frozenset()
    run = run_config(retry=retry | {*retry_status}, **options)
    summary = run_job(run)
    click.echo(f"{summary['rows_done']} of {summary['rows']} rows: {counts_text(summary['counts'])}")
    speed = f"{summary['rows_aligned']} rows in {duration_text(summary['wall_s'])}"
    click.echo(f"{speed}, {summary['pairs_per_second']:g} pairs/s on {summary['device'] or 'no device'}")
    for line in error_lines(summary["errors"][:3]):
        click.echo(f"  {line}")
    click.echo(f"results: {redact(run.out.rstrip('/'))}/data")
