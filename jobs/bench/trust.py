"""`homoalign bench trust`: whether confidence, precision and status tell the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import click
import numpy as np

from homoalign.status import Status
from jobs.bench.measure import show
from jobs.bench.methods import HOMOALIGN
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, render_options
from jobs.bench.photographs import Split, select_split
from jobs.bench.score import NOT_APPLICABLE, Row, cpu_ms, is_right, median, not_ok_share, percent, rows_by_case
from jobs.bench.trust_pairs import RELATED, SIZES, UNRELATED, TrustPairs, trust_numbers
from jobs.bench.trust_run import TrustOutcome, run_trust
from jobs.reports.calibration import area_under_roc, calibration_bins, expected_calibration_error, risk_coverage

CHI2_95 = 5.991464547107979
"""95 % of a chi-squared variable of two degrees of freedom lie below: -2 log 0.05."""


@click.command("trust", epilog="Example: homoalign bench trust --split held-out --num-workers 2 --json trust.json")
@click.option(
    "--unrelated", type=click.IntRange(min=0), default=2000, show_default=True, help="Pairs of unrelated images."
)
@click.option(
    "--near-duplicates",
    type=click.IntRange(min=0),
    default=400,
    show_default=True,
    help="Pairs that share a place, a form, an overlay or a pattern, and no more.",
)
@click.option(
    "--misled",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Related pairs that start beside the truth and are not searched: many wrong answers that look right.",
)
@click.option(
    "--split",
    type=click.Choice(get_args(Split)),
    default="held-out",
    show_default=True,
    help="Photographs to use: those that the confidence is fitted on, the others, or all.",
)
@click.option(
    "--size",
    type=click.IntRange(min=SIZES[0][1]),
    default=SIZES[-1][1],
    show_default=True,
    help="Widest images, px; widths are 160, 240 and 320 up to this, and up to 240 of pairs that are not related.",
)
@click.option("--num-workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@render_options(pairs=2000)
@bench_options
def trust_command(
    *,
    unrelated: int,
    near_duplicates: int,
    misled: int,
    split: Split,
    size: int,
    num_workers: int,
    render: RenderOptions,
    options: BenchOptions,
) -> None:
    """Compare what methods say of their answers with what these are worth.

    \b
    related         --pairs, in turn: noise, lighting, blur, JPEG, occlusion, overlap of 5 to 100 %, texture from rich
                    to none, repeated patterns, any rotation and scale, another sensor, relief, everything at once; each
                    under noise of 0, 2.5, 5, 10 or 20 of 255
    unrelated       two photographs, two places of one, a photograph and noise of another's spectrum, two textures,
                    patterns; no answer is right
    near-duplicate  another object in the same place and a form filled in otherwise (the place and the form have a
                    truth), two frames under one overlay and two scenes of one pattern (no answer is right)
    misled          related but not repeated, every second not flat, started with the corners 4 to 50 px off at 480,
                    by turns on structure alone, and neither searched nor matched; not given to the others

    The score is homoalign's confidence, ECC's correlation, and the share of SIFT's matches that are inliers. Splits are
    by photograph: fit and held-out are fixed lists of scikit-image's; a file belongs to one by a checksum of its name.
    """
    photographs = select_split(render.photographs, split)
    pairs = TrustPairs(seed=render.seed, photographs=photographs, max_width=size)
    numbers = list(trust_numbers(render.pairs, unrelated, near_duplicates, misled))
    outcomes = run_trust(pairs, numbers, options, num_workers=num_workers)
    strangers = unrelated_ok(outcomes)
    strangers_text = f"{strangers['ok']} of {strangers['pairs']} unrelated pairs are ok"
    if strangers["pairs"]:
        strangers_text += f", {strangers['per_thousand']:.3g} in a thousand"
    ellipses, bins = ellipse_rows(outcomes), reliability_rows(outcomes)
    show(
        f"bench trust: {render.pairs} related, {unrelated} unrelated, {near_duplicates} near-duplicate and {misled} "
        "misled pairs, "
        f"photographs: {split}",
        rows_by_case(_labelled(outcomes), "pairs of", trust_figures),
        caption="right: below 5 px at 480. AUROC: chance that a right answer outscores a wrong one. ECE: expected "
        "calibration error, the score read as a probability. top n: share right, in [0, 1], among the n % of highest "
        f"score. wrong ok: of ok. missed ok: of right. {strangers_text}.",
        json_path=options.json_path,
        more={
            "seed": render.seed,
            "split": split,
            "size": size,
            "photographs": photographs,
            "unrelated": strangers,
            "reliability": bins,
            "ellipses": ellipses,
            "outcomes": [{**outcome.to_json(), "is_right": is_right(outcome)} for outcome in outcomes],
        },
    )
    show("Reliability of the scores, over all pairs", bins, caption="Share right, by score.", json_path=None)
    if ellipses:
        show(
            "Corners inside their predicted 95 % ellipse, over related pairs that are right",
            ellipses,
            caption="median squared: of the corners' distances in units of their covariances, 1.39 where these are "
            "right. error / predicted: root mean square length of the corners' errors over corner_std_px, its median.",
            json_path=None,
        )


def trust_figures(outcomes: Sequence[TrustOutcome]) -> Row:
    """Return how well the score and the status of one method tell right from wrong."""
    score = np.array([outcome.score for outcome in outcomes])
    right = np.array([is_right(outcome) for outcome in outcomes])
    has_status = outcomes[0].status is not None
    ok = [outcome for outcome in outcomes if outcome.status == Status.OK.value]
    wrong = sum(not is_right(outcome) for outcome in ok)
    return {
        "right %": percent(int(right.sum()), len(right)),
        "AUROC": _rounded(area_under_roc(score, right)),
        "ECE": _rounded(expected_calibration_error(calibration_bins(score, right))),
        **{f"top {share} %": _rounded(value) for share, value in risk_coverage(score, right).items()},
        "ok": len(ok) if has_status else NOT_APPLICABLE,
        "wrong ok": wrong if has_status else NOT_APPLICABLE,
        "wrong ok %": percent(wrong, len(ok)) if ok else NOT_APPLICABLE,
        "missed ok %": not_ok_share([outcome for outcome in outcomes if is_right(outcome)]),
        "CPU ms": cpu_ms(outcomes),
    }


def unrelated_ok(outcomes: Sequence[TrustOutcome]) -> Row:
    """Return how many unrelated pairs homoalign calls ok."""
    strangers = [outcome for outcome in outcomes if outcome.method == HOMOALIGN and outcome.group == UNRELATED]
    count = sum(outcome.status == Status.OK.value for outcome in strangers)
    return {"pairs": len(strangers), "ok": count, "per_thousand": 1000 * count / len(strangers) if strangers else None}


def reliability_rows(outcomes: Sequence[TrustOutcome]) -> list[Row]:
    """Return the reliability table of every method's score."""
    rows = []
    for method in dict.fromkeys(outcome.method for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.method == method]
        bins = calibration_bins(
            np.array([outcome.score for outcome in mine]), np.array([is_right(outcome) for outcome in mine])
        )
        rows += [
            {
                "method": method,
                "score": f"{each['from']:.1f} to {each['to']:.1f}",
                "pairs": each["pairs"],
                "mean": each["mean_confidence"],
                "right": each["right"],
            }
            for each in bins
        ]
    return rows


def ellipse_rows(outcomes: Sequence[TrustOutcome]) -> list[Row]:
    """Return how often homoalign's corners lie inside their predicted 95 % ellipses: by noise, then by case."""
    right = [
        outcome
        for outcome in outcomes
        if outcome.method == HOMOALIGN and outcome.group == RELATED and is_right(outcome)
    ]
    groups: dict[str, list[TrustOutcome]] = {}
    for outcome in sorted(right, key=lambda outcome: outcome.sigma_8bit):
        groups.setdefault(f"sigma {outcome.sigma_8bit:g}", []).append(outcome)
    for outcome in right:
        groups.setdefault(outcome.case, []).append(outcome)
    return [{"over": label, **ellipse_figures(found)} for label, found in groups.items()]


def ellipse_figures(outcomes: Sequence[TrustOutcome]) -> Row:
    """Return the share of corners inside their ellipses; one without a covariance is outside."""
    squared = [each for outcome in outcomes for each in outcome.corner_mahalanobis or (None,) * 4]
    known = [each for each in squared if each is not None]
    return {
        "right pairs": len(outcomes),
        "inside": sum(each <= CHI2_95 for each in known) / len(squared),
        "median squared": median(known),
        "error / predicted": median(
            [
                outcome.corner_rms_px / outcome.corner_std_px
                for outcome in outcomes
                if outcome.corner_rms_px is not None and outcome.corner_std_px
            ]
        ),
        "no covariance %": percent(len(squared) - len(known), len(squared)),
    }


def _labelled(outcomes: Sequence[TrustOutcome]) -> list[TrustOutcome]:
    """Return every outcome as one of all and of its group, homoalign's as one of its case too."""
    return [
        replace(outcome, case=label)
        for outcome in outcomes
        for label in ("all", outcome.group, f"{outcome.group}: {outcome.case}")
        if outcome.method == HOMOALIGN or label in ("all", outcome.group)
    ]


def _rounded(value: float | None) -> float | str:
    return NOT_APPLICABLE if value is None else round(value, 4)
