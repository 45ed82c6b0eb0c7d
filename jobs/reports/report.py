"""`homoalign report OUT`: one self-contained HTML file that a person reads.

    parts -> survey (rows) -> charts and cards -> templates/report.html.j2

Works from OUT's files and the manifest that plan.json names; on a run that is empty, still going, or without truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from homoalign.config import AlignConfig
from homoalign.errors import HomoalignError
from homoalign.status import Status
from jobs import options
from jobs.errors import ManifestInvalid, OutputNotWritable
from jobs.manifests.manifest import Manifest, open_manifest
from jobs.manifests.plan import Plan
from jobs.prepare import RunConfig, access_rules
from jobs.reports.calibration import COVERAGES
from jobs.reports.cards import Card, build_cards, short_number
from jobs.reports.charts import Chart, draw_histogram, draw_scatter
from jobs.reports.evaluate import RIGHT_PX, THRESHOLDS_PX, all_and_groups, evaluate_run
from jobs.reports.rows import SURE, Survey, survey_results
from jobs.results.output import REPORT, Output
from jobs.storage.errors import StorageError
from jobs.storage.store import Store
from jobs.worker.fetch import MAX_BYTES, Reader

NUM_CARDS, MAX_CARDS = 48, 400
FETCH_TIMEOUT_S = 20.0
"""Shorter than a run's: these images have been read before, and a person waits."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the gallery."""

    title: str
    text: str
    cards: list[Card]


def write_report(  # noqa: PLR0913, one parameter for each option
    out: str,
    *,
    target: str | None = None,
    store: Store | None = None,
    allow: tuple[str, ...] = (),
    by: str | None = None,
    num_cards: int = NUM_CARDS,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    fetch_timeout_s: float = FETCH_TIMEOUT_S,
) -> str:
    """Write the report of a run.

    Args:
        out: the run's folder.
        target: where the report goes; OUT/report.html without it.
        store: where everything is.
        allow: URIs that images may be read from, as for the run.
        by: a carried column that accuracy is grouped by.
        num_cards: most pairs the gallery shows.
        seed: of the samples.
        max_bytes: of an encoded image, as for the run.
        fetch_timeout_s: for a pair's images to be fetched, then decoded; else its card has none.

    Returns:
        The report's URL.

    Raises:
        ManifestInvalid: OUT holds no run.
        UsageError: the results have no column `by`.
        OutputNotWritable: the report cannot be written.
    """
    store = store or Store()
    output = Output(store, store.url_of(out))
    plan = output.read_plan()
    if plan is None:
        raise ManifestInvalid(f"{out} holds no run: there is no plan.json")
    threshold = plan.settings.config.get("confidence_threshold")
    if not isinstance(threshold, float):  # a plan of another version may have other keys
        threshold = AlignConfig().confidence_threshold
    survey = survey_results(output, num_cards=num_cards, seed=seed, threshold=threshold)
    measured = evaluate_run(output, by) if survey.num_truths and not survey.num_damaged else None
    run = RunConfig(
        manifest=plan.manifest, out="", store=store, allow=allow, max_bytes=max_bytes, fetch_timeout_s=fetch_timeout_s
    )
    html = render(
        title=_short(plan.manifest),
        facts=_facts(plan, survey, measured, output.read_summary() or {}),
        is_done=output.is_success() and survey.num_parts == plan.num_shards,
        survey=survey,
        plan=plan,
        statuses=_statuses(survey),
        errors=survey.tally.frequent_errors(12),
        charts=_charts(survey, threshold),
        accuracy=None if measured is None else _accuracy_table(measured, by),
        trust=None if measured is None else _trust_table(measured, by),
        sections=_sections(survey, plan, run, num_cards),
    )
    url = store.url_of(target) if target else f"{output.url}/{REPORT}"
    try:
        store.publish(url, html.encode())
    except StorageError as error:
        raise OutputNotWritable(f"report: {error}") from error
    return url


def render(**context: Any) -> str:
    """Return the page; every value is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jobs.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(**context)


def _sections(survey: Survey, plan: Plan, run: RunConfig, num_cards: int) -> list[Section]:
    manifest: Manifest | HomoalignError
    try:
        manifest = open_manifest(run.store, plan.manifest)
        root = manifest.root
    except HomoalignError as error:
        manifest, root = error, plan.manifest
    reader = Reader(
        store=run.store,
        rules=access_rules(run, root),
        max_bytes=run.max_bytes,
        fetch_timeout_s=run.fetch_timeout_s,
    )
    seen: set[tuple[int, int]] = set()
    sections = []
    for title, text, kept in (
        (
            "Wrong, yet ok",
            f"The truth says {RIGHT_PX:g} px or more at 480, the verdict says ok. Worst first.",
            survey.wrong,
        ),
        (
            "Doubtful",
            f"A matrix that is not ok, or ok with a confidence below {SURE:g}. Nearest to the threshold first.",
            survey.doubtful,
        ),
        ("Not aligned", "No matrix. Drawn by lot.", survey.failed),
        ("Aligned", "A fair sample of what is ok, drawn by lot.", survey.fair),
    ):
        picks = [pick for pick in kept.picks if (pick.shard, pick.offset) not in seen][: num_cards - len(seen)]
        seen |= {(pick.shard, pick.offset) for pick in picks}
        if picks:
            sections.append(Section(title, text, build_cards(plan, manifest, reader, picks)))
    return sections


def _accuracy_table(measured: dict[str, Any], by: str | None) -> dict[str, Any]:
    """Return the accuracy table: all pairs, then the groups."""
    return {
        "header": [
            by or "",
            "pairs",
            "ok",
            "median px",
            *(f"< {limit} px" for limit in THRESHOLDS_PX),
            *(f"AUC@{limit}" for limit in THRESHOLDS_PX),
            "wrong ok",
        ],
        "rows": [
            [
                name,
                f"{found['pairs']:,}",
                f"{found['ok']:,}",
                "–" if found["median_px"] is None else short_number(found["median_px"]),
                *(_percent(found["below_px"][str(limit)]) for limit in THRESHOLDS_PX),
                *(_percent(found["auc_px"][str(limit)]) for limit in THRESHOLDS_PX),
                _percent(found["wrong_among_ok"]),
            ]
            for name, found, _ in all_and_groups(measured)
        ],
    }


def _trust_table(measured: dict[str, Any], by: str | None) -> dict[str, Any]:
    """Return what confidence and status are worth: all pairs, then the groups."""
    return {
        "header": [by or "", "AUROC", "ECE", *(f"top {percent} %" for percent in COVERAGES), "false ok", "missed ok"],
        "rows": [
            [
                name,
                *(
                    "–" if value is None else f"{value:.3f}"
                    for value in (found["auroc"], found["expected_calibration_error"])
                ),
                *(_percent(found["risk_coverage"][str(percent)]) for percent in COVERAGES),
                f"{group['false_ok']:,}",
                f"{group['missed_ok']:,}",
            ]
            for name, group, found in all_and_groups(measured)
        ],
    }


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _charts(survey: Survey, threshold: float) -> list[Chart]:
    found = survey.histograms
    charts = []
    if found["error"].total:
        charts.append(
            draw_histogram(
                "Corner error", "Mean over the corners, px at 480; dashed: right", found["error"], line=RIGHT_PX
            )
        )
    if found["confidence"].total:
        charts.append(draw_histogram("Confidence", "Dashed: the threshold of ok", found["confidence"], line=threshold))
    if survey.points:
        caption = "Confidence across, error in px at 480 up; right and sure is bottom right"
        charts.append(draw_scatter("Confidence against error", caption, survey.points, threshold=threshold))
    if found["predicted"].total:
        caption = "corner_std_px: expected if right, px of dst"
        charts.append(draw_histogram("Predicted error", caption, found["predicted"]))
    if found["zncc"].total:
        charts.append(draw_histogram("Correlation", "ZNCC over the overlap", found["zncc"]))
    if found["overlap"].total:
        charts.append(draw_histogram("Overlap", "Share of dst that src covers", found["overlap"]))
    return charts


def _statuses(survey: Survey) -> list[dict[str, Any]]:
    return [
        {"name": str(status), "count": count, "share": count / survey.rows, "text": status.explanation}
        for status in Status
        if (count := survey.tally.counts[status])
    ]


def _facts(
    plan: Plan, survey: Survey, measured: dict[str, Any] | None, summary: dict[str, Any]
) -> list[tuple[str, str]]:
    facts = [("pairs", f"{survey.rows:,} of {plan.rows:,}")]
    if survey.rows:
        facts.append(("ok", f"{survey.tally.counts[Status.OK] / survey.rows:.1%}"))
    if measured is not None and (median := measured["overall"]["median_px"]) is not None:
        facts.append(("median error at 480", f"{short_number(median)} px"))
    speed = summary.get("pairs_per_second")
    if isinstance(speed, (int, float)):
        facts.append(("throughput", f"{speed:,.1f} pairs/s"))
    align_s = survey.tally.timings.get("align_s")
    if align_s and survey.rows:
        facts.append(("alignment", f"{1000 * align_s / survey.rows:,.0f} ms a pair"))
    facts.append(("parts", f"{survey.num_parts:,} of {plan.num_shards:,}"))
    return facts


def _short(url: str) -> str:
    return "/".join(url.removeprefix("file://").rstrip("/").split("/")[-2:])


@click.command("report", short_help="Write one HTML page a person reads.")
@click.argument("out")
@click.option("--output", metavar="FILE", help="Where the page goes. [default: OUT/report.html]")
@click.option(
    "--cards", type=click.IntRange(0, MAX_CARDS), default=NUM_CARDS, show_default=True, help="Most pairs shown."
)
@click.option("--by", metavar="COLUMN", help="Carried column that accuracy is grouped by.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the samples.")
@click.option("--allow", multiple=True, metavar="SCHEME_OR_PREFIX", help="As for the run. Repeatable.")
@click.option(
    "--max-bytes", type=click.IntRange(min=1), default=MAX_BYTES, show_default=True, help="Of an encoded image."
)
@click.option(
    "--fetch-timeout",
    "fetch_timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=FETCH_TIMEOUT_S,
    help=f"For a pair's images to be fetched, then decoded. [default: {FETCH_TIMEOUT_S:g}]",
)
@options.storage_options
def report_command(  # noqa: PLR0913, one parameter for each option
    out: str,
    *,
    output: str | None,
    by: str | None,
    cards: int,
    seed: int,
    allow: tuple[str, ...],
    max_bytes: int,
    fetch_timeout_s: float,
    storage_options: str,
) -> None:
    """Write one self-contained HTML page: figures, plots, and overlays of pairs, worst and doubtful first.

    Pictures are of what the run has read, up to the size it read: rows that it could not read, or that ended or held
    up their worker, are shown as text.

    Example: homoalign report demo/out
    """
    store = Store(options.read_storage_options(storage_options, [out]))
    url = write_report(
        out,
        target=output,
        store=store,
        allow=allow,
        by=by,
        num_cards=cards,
        seed=seed,
        max_bytes=max_bytes,
        fetch_timeout_s=fetch_timeout_s,
    )
    click.echo(f"report: {url.removeprefix('file://')}")
