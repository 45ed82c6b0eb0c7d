"""`homoalign status`: how far a run is."""

from __future__ import annotations

import json

import click
from rich.table import Table

from jobs.console import stdout_console
from jobs.options import read_storage_options, storage_options
from jobs.progress import error_lines
from jobs.results.output import Output
from jobs.results.summary import read_status
from jobs.storage.store import Store


@click.command("status", short_help="Say how far a run is.", epilog="\b\nExample: homoalign status out --json")
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@storage_options
def status_command(out: str, *, as_json: bool, storage_options: str) -> None:
    """Say how far the run in OUT is and what became of its rows, from its files alone; also while it runs."""
    store = Store(read_storage_options(storage_options, [out]))
    status = read_status(Output(store, store.url_of(out)))
    if as_json:
        click.echo(json.dumps(status, indent=1))
        return
    console = stdout_console()
    console.print(
        f"{status['state']}: {status['rows_done']} of {status['rows']} rows, "
        f"{status['shards_done']} of {status['shards']} shards"
    )
    for name in ("lock", "last_end", "pairs_per_second"):
        if status[name] is not None:
            console.print(f"{name}: {status[name]}")
    if status["unfinished_shards"]:
        console.print(f"unfinished shards: {', '.join(map(str, status['unfinished_shards']))}")
    counts = Table("status", "rows")
    for name, count in status["counts"].items():
        counts.add_row(name, str(count))
    console.print(counts)
    if status["percentiles"]:
        percentiles = Table("metric", *next(iter(status["percentiles"].values())))
        for name, values in status["percentiles"].items():
            percentiles.add_row(name, *(f"{value:g}" for value in values.values()))
        console.print(percentiles)
    for line in error_lines(status["errors"][:5]):
        console.print(line)
