"""`homoalign evaluate`: accuracy against the truth."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from jobs.console import stdout_console
from jobs.options import read_storage_options, storage_options
from jobs.reports.calibration import COVERAGES, STD_FACTORS
from jobs.reports.evaluate import THRESHOLDS_PX, all_and_groups, evaluate_run
from jobs.results.output import Output
from jobs.storage.store import Store


@click.command(
    "evaluate",
    short_help="Measure a run's accuracy.",
    epilog="\b\nExample: homoalign evaluate out --by dataset --json",
)
@click.argument("out")
@click.option("--by", metavar="COLUMN", help="Accuracy and trust for each value of a carried column too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@storage_options
def evaluate_command(out: str, *, by: str | None, as_json: bool, storage_options: str) -> None:
    """Compare OUT's matrices with the truth: mean corner error at 480 (dst's shorter side scaled to 480 px).

    A pair is right below 5 px. A pair with a truth and no matrix, or one that sends a corner of src beyond the
    horizon, counts as an infinite error; rows without a truth, or with one that sends a corner there itself, are
    counted and left out. AUC is the normalised area under the share of pairs below each error.

    Whether confidence, status and corner_std_px tell the truth: AUROC (chance that a right pair has more confidence
    than a wrong one), ECE (expected calibration error, with the reliability table in --json by group too), the share
    right among the most confident, false and missed ok, and how many right pairs lie within what was predicted.

    With --by, null cells are the group null, and the word null stands in quotes. Parts that cannot be read are named,
    with exit code 7.
    """
    store = Store(read_storage_options(storage_options, [out]))
    figures = evaluate_run(Output(store, store.url_of(out)), by)
    if as_json:
        click.echo(json.dumps(figures, indent=1))
    else:
        print_figures(figures, stdout_console())


def print_figures(figures: dict[str, Any], console: Console) -> None:
    """Print what `evaluate_run` found."""
    counts = ", ".join(f"{status} {count}" for status, count in figures["counts"].items())
    num_beyond = figures["not_measurable"]
    beyond = f", {num_beyond} whose truth sends a corner beyond the horizon" if num_beyond else ""
    console.print(f"{figures['rows']} rows, {figures['without_truth']} of them without a truth{beyond}: {counts}")
    console.print(_accuracy_table("", {"all": figures["overall"]}))
    console.print(_accuracy_table("by status", figures["by_status"]))
    if figures["by"] is not None:
        console.print(_accuracy_table(f"by {figures['by']['column']}", figures["by"]["groups"]))
    calibration = figures["calibration"]
    console.print(_trust_table(figures))
    console.print(_reliability_table(calibration))
    console.print(
        "ECE: expected calibration error. top n: % right among the n % of highest confidence, over "
        f"{calibration['pairs']} pairs with one. false ok: ok, but wrong; missed ok: right, but not ok. in n std: % of "
        f"{calibration['corner_std']['pairs']} right pairs whose corners' error (root mean square) is at most n "
        f"corner_std_px; where these are true, at most 95 % are in {STD_FACTORS[0]}, at least 95 % in {STD_FACTORS[1]}."
    )


def _reliability_table(calibration: dict[str, Any]) -> Table:
    bins = Table("confidence", "pairs", "mean", "right %", title="reliability of confidence")
    for found in calibration["bins"]:
        bounds = f"{found['from']:.1f} to {found['to']:.1f}"
        bins.add_row(bounds, str(found["pairs"]), f"{found['mean_confidence']:.3f}", _percent(found["right"]))
    return bins


def _trust_table(figures: dict[str, Any]) -> Table:
    """Return what confidence and status are worth: all pairs, below a line the groups."""
    table = Table(
        "trust",
        "AUROC",
        "ECE",
        *(f"top {percent}" for percent in COVERAGES),
        "false ok",
        "of ok %",
        "missed ok",
        "of right %",
        *(f"in {factor} std %" for factor in STD_FACTORS),
    )
    table.columns[0].no_wrap = True
    for number, (name, group, found) in enumerate(all_and_groups(figures)):
        std = found["corner_std"]
        table.add_row(
            name,
            _number(found["auroc"]),
            _number(found["expected_calibration_error"]),
            *(_percent(found["risk_coverage"][str(percent)]) for percent in COVERAGES),
            str(group["false_ok"]),
            _percent(group["wrong_among_ok"]),
            str(group["missed_ok"]),
            _percent(group["not_ok_among_right"]),
            *(_percent(std["within"][str(factor)]) for factor in STD_FACTORS),
            end_section=number == 0,
        )
    return table


def _accuracy_table(title: str, groups: dict[str, Any]) -> Table:
    limits = [str(limit) for limit in THRESHOLDS_PX]
    table = Table(
        title or "accuracy",
        "pairs",
        *(f"<{limit} px %" for limit in limits),
        *(f"AUC@{limit} %" for limit in limits),
        "median px",
        "ok",
        "wrong among ok %",
    )
    for name, found in groups.items():
        table.add_row(
            name,
            str(found["pairs"]),
            *(_percent(found["below_px"][limit]) for limit in limits),
            *(_percent(found["auc_px"][limit]) for limit in limits),
            _number(found["median_px"]),
            str(found["ok"]),
            _percent(found["wrong_among_ok"]),
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
