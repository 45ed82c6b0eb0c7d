"""`homoalign demo [DIR]`: real photographs, the real job, its figures and its report, in about a minute."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.errors import OutputNotWritable
from jobs.prepare import RunConfig
from jobs.rendering.demo_pairs import build_demo
from jobs.reports.cards import short_number
from jobs.reports.evaluate import evaluate_run
from jobs.reports.report import write_report

if TYPE_CHECKING:
    from rich.table import Table

CARRY = ("change", "photograph")


def run_demo(folder: Path) -> dict[str, Any]:
    """Make the pairs, run the job, evaluate, and write the report; what an earlier demo left is replaced.

    Returns:
        What `evaluate_run` returns, by `change`.

    Raises:
        UsageError: scikit-image is not installed.
        OutputNotWritable: `folder` cannot be written.
        JobError: as `run_job`.
    """
    from jobs.run import run_job

    click.echo("making pairs from the photographs of scikit-image ...")
    try:
        manifest = build_demo(folder)
    except OSError as error:
        raise OutputNotWritable(f"{folder} cannot be written: {error.strerror or error}") from error
    run = RunConfig(
        manifest=str(manifest), out=str(folder / "out"), carry=CARRY, trace=True, overwrite=True, address="local"
    )
    click.echo(
        f"homoalign run {_shell(manifest)} {_shell(folder / 'out')} --carry {','.join(CARRY)} --trace --overwrite "
        "--address local"
    )
    summary = run_job(run)
    measured = evaluate_run(run.output, by="change")
    write_report(run.out, by="change")
    print_tables(measured, summary)
    click.echo(f"manifest  {manifest}\nresults   {folder / 'out' / 'data'}\nreport    {folder / 'out' / 'report.html'}")
    return measured


def print_tables(measured: dict[str, Any], summary: dict[str, Any]) -> None:
    """Print how many rows ended how, and the accuracy for each change."""
    from rich.console import Console

    console = Console()
    console.print(accuracy_table(measured))
    counts = ", ".join(f"{count} {status}" for status, count in measured["counts"].items())
    console.print(f"{measured['rows']} rows: {counts}", highlight=False, soft_wrap=True)
    console.print(f"{summary['wall_s']:.1f} s, {summary['pairs_per_second']:.1f} pairs/s", highlight=False)


def accuracy_table(measured: dict[str, Any]) -> Table:
    """Return the table of accuracy by change."""
    from rich.table import Table

    table = Table(title="Mean corner error at 480 against the truth", title_justify="left")
    table.add_column("change")
    for name in ("pairs", "ok", "right", "median px", "wrong among ok"):
        table.add_column(name, justify="right")
    groups = measured["by"]["groups"]
    for name, found in [*groups.items(), ("all", measured["overall"])]:
        if name == "all":
            table.add_section()
        median, wrong = found["median_px"], found["wrong_among_ok"]
        table.add_row(
            name,
            str(found["pairs"]),
            str(found["ok"]),
            str(found["right"]),
            "-" if median is None else short_number(median),
            "-" if wrong is None else f"{wrong:.1%}",
        )
    return table


def _shell(path: Path) -> str:
    return shlex.quote(os.fspath(path))


@click.command("demo", short_help="Align real photographs and show the results.")
@click.argument("folder", metavar="[DIR]", default="demo", type=click.Path(file_okay=False, path_type=Path))
def demo_command(folder: Path) -> None:
    """Make a small manifest of real photographs in DIR, run the job, evaluate it and write the report.

    Some rows are broken on purpose, to show what becomes of them. DIR is `demo` unless given; running it again
    replaces what it made. Needs the extra `demo`.

    Example: homoalign demo
    """
    run_demo(folder)
