"""`homoalign bench real`: a manifest's pairs with a truth, by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click
import numpy as np

from jobs.bench.measure import show
from jobs.bench.methods import Outcome, run_methods
from jobs.bench.options import BenchOptions, bench_options
from jobs.bench.real_pairs import GROUPS, SUB_PIXEL, groups_of, read_manifest, read_pairs, select_rows
from jobs.bench.score import NOT_APPLICABLE, is_right, median, ok_share, percent, rows_by_case
from jobs.reports.evaluate import THRESHOLDS_PX, area_under_recall
from jobs.storage.store import Store


@click.command("real", epilog="Example: homoalign bench real --manifest pairs.parquet --group photo --json real.json")
@click.option(
    "--manifest",
    default="../shared/data/manifest.parquet",
    show_default=True,
    help="As of `homoalign run`; rows without a dst_homo_src_gt are left out.",
)
@click.option("--group", "groups", type=click.Choice(GROUPS), multiple=True, help="Only this one. Repeatable.")
@click.option("--pair-id", "patterns", metavar="PATTERN", multiple=True, help="Only these, * for any. Repeatable.")
@bench_options
def real_command(*, manifest: str, groups: tuple[str, ...], patterns: tuple[str, ...], options: BenchOptions) -> None:
    """Compare accuracy on real pairs: mean corner error at 480 (dst's shorter side scaled to 480 px).

    \b
    photo        column kind is mono, and tier, where it is there, A or B
    cross-modal  kind is cross-modal or cross-time (season, day and night), tier likewise
    sub-pixel    of both, where gt_is_sub_pixel
    all          another kind, or a manifest without that column

    Pairs that show the same pixels as an earlier one count once. Priors are not used.
    """
    store = Store({})
    root, rows = read_manifest(store, store.url_of(manifest))
    chosen = select_rows(rows, groups, patterns)
    outcomes = run_methods(read_pairs(store, root, chosen), options, batch_size=1, with_identity=True)
    memberships = {pair_id: groups_of(row) for pair_id, row in chosen.items()}
    counted = [
        replace(outcome, case=group)
        for group in groups or GROUPS
        for outcome in outcomes
        if group in memberships[outcome.name]
    ]
    show(
        f"bench real: {len({outcome.number for outcome in outcomes})} pairs",
        rows_by_case(counted, "group", real_figures),
        caption="Shares and areas in %, of the mean corner error at 480; right: below 5 px. A method that gives up has "
        "an infinite error. Median and max at native size; max where the truth is good below 1 px. ok | right: of the "
        "right ones, those whose status is ok.",
        json_path=options.json_path,
        more={"outcomes": [{**each.to_json(), **_in_person(each, memberships)} for each in outcomes]},
    )


def real_figures(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return accuracy at 480, errors at native size, and what the status says of right and wrong."""
    error = np.array([outcome.error_px * outcome.at_480 for outcome in outcomes])
    right = [outcome for outcome in outcomes if is_right(outcome)]
    wrong = [outcome for outcome in outcomes if not is_right(outcome)]
    areas = {limit: area_under_recall(error, limit) or 0.0 for limit in THRESHOLDS_PX}
    return {
        **{f"AUC@{limit}": round(100 * area, 1) for limit, area in areas.items()},
        **{f"<{limit} px": round(percent(int((error < limit).sum()), len(error)), 1) for limit in THRESHOLDS_PX},
        "median": median([outcome.error_px for outcome in outcomes]),
        "max": _largest(outcomes) if outcomes[0].case == SUB_PIXEL else NOT_APPLICABLE,
        "ok | right": ok_share(right),
        "ok | wrong": ok_share(wrong),
        "CPU s": round(float(np.median([outcome.cpu_s for outcome in outcomes])), 3),
    }


def _largest(outcomes: Sequence[Outcome]) -> float | None:
    largest = max(outcome.error_px for outcome in outcomes)
    return largest if np.isfinite(largest) else None


def _in_person(outcome: Outcome, memberships: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return what a reader of one outcome wants besides: its groups, its error at 480, whether that is right."""
    at_480 = outcome.error_px * outcome.at_480
    return {
        "groups": memberships[outcome.name],
        "error_at_480_px": at_480 if np.isfinite(at_480) else None,
        "is_right": is_right(outcome),
    }
