"""Outcomes to rows of a table: shares in percent, errors in pixels, cost in CPU milliseconds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from homoalign.status import Status
from jobs.bench.methods import HOMOALIGN, Outcome
from jobs.reports.evaluate import RIGHT_PX

Row = dict[str, Any]
OneOutcome = TypeVar("OneOutcome", bound=Outcome)

FAILURE_PX = 10.0
"""A pair that ends at this mean corner error or above failed; means are over the others."""
NOT_APPLICABLE = ""


def rows_by_case(
    outcomes: Sequence[OneOutcome], case_column: str, figures: Callable[[list[OneOutcome]], Row]
) -> list[Row]:
    """Return a row of figures for every case and method, in the order in which they first appear.

    Args:
        outcomes: of all methods and pairs.
        case_column: what the cases are called; no column where it is empty.
        figures: of one method's outcomes in one case.
    """
    groups: dict[tuple[str, str], list[OneOutcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.case, outcome.method), []).append(outcome)
    order = list(dict.fromkeys(case for case, _ in groups))
    return [
        {**({case_column: case} if case_column else {}), "method": method, "pairs": len(found), **figures(found)}
        for case, method, found in sorted(
            ((case, method, found) for (case, method), found in groups.items()), key=lambda item: order.index(item[0])
        )
    ]


def precision_figures(outcomes: list[Outcome]) -> Row:
    """Return share below 1 px, median error, bound, and how many times the bound the error is; no bound that is NaN."""
    bounds = [outcome.bound_px for outcome in outcomes]
    ratios = [outcome.error_px / bound for outcome, bound in zip(outcomes, bounds, strict=True)]
    of_bound = {} if math.isnan(bounds[0]) else {"bound px": median(bounds), "/ bound": median(ratios)}
    return {
        "<1 px %": below(outcomes, 1.0),
        "median px": median([outcome.error_px for outcome in outcomes]),
        **of_bound,
        "ok %": ok_share(outcomes),
        "CPU ms": cpu_ms(outcomes),
    }


def found_figures(outcomes: list[Outcome]) -> Row:
    """Return how many are found how precisely, and whether the status tells which."""
    right = [outcome for outcome in outcomes if is_right(outcome)]
    wrong = [outcome for outcome in outcomes if not is_right(outcome)]
    trusted = ok_share(wrong)
    return {
        "right %": percent(len(right), len(outcomes)),
        "<1 px %": below(outcomes, 1.0),
        "median px": median([outcome.error_px for outcome in outcomes]),
        "ok | right %": ok_share(right),
        "wrong but ok %": trusted if isinstance(trusted, str) else trusted * len(wrong) / len(outcomes),
        "CPU ms": cpu_ms(outcomes),
    }


def ratio_to_case(outcomes: Sequence[Outcome], case: str) -> Callable[[Sequence[Outcome]], float | None]:
    """Return a function that divides each error by that of the same method and pair in `case`; their median.

    Pairs that failed in `case` are left out; None where nothing is left, or most have failed.
    """
    reference = {(each.method, each.number): each.error_px for each in outcomes if each.case == case}

    def ratio(found: Sequence[Outcome]) -> float | None:
        divided = [(each.error_px, reference[each.method, each.number]) for each in found]
        return median([error / before for error, before in divided if 0 < before < FAILURE_PX])

    return ratio


def range_figures(outcomes: list[Outcome]) -> Row:
    """Return how many arrive how precisely, and whether the status tells the failures from the others."""
    failures = [outcome for outcome in outcomes if not outcome.error_px < FAILURE_PX]
    arrived = [outcome for outcome in outcomes if outcome.error_px < FAILURE_PX]
    return {
        "<1 px %": below(outcomes, 1.0),
        "<0.1 px %": below(outcomes, 0.1),
        "median px": median([outcome.error_px for outcome in outcomes]),
        "mean px": float(np.mean([outcome.error_px for outcome in arrived])) if arrived else None,
        "failed %": percent(len(failures), len(outcomes)),
        "failed but ok %": ok_share(failures),
        "right not ok %": not_ok_share([outcome for outcome in outcomes if is_right(outcome)]),
        "CPU ms": cpu_ms(outcomes),
    }


def starts(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Return, for each way to start of homoalign's, its share of the pairs and how many of these end right, in %."""
    ours = [outcome for outcome in outcomes if outcome.method == HOMOALIGN]
    counts = Counter(outcome.initialisation or "none" for outcome in ours)
    right = Counter(outcome.initialisation or "none" for outcome in ours if is_right(outcome))
    return {
        name: {"pairs %": percent(count, len(ours)), "right %": percent(right[name], count)}
        for name, count in counts.most_common()
    }


def describe_starts(outcomes: Sequence[Outcome]) -> str:
    """Return `starts` as a sentence."""
    found = starts(outcomes).items()
    parts = [f"{name} {each['pairs %']:.1f} % ({each['right %']:.1f} % of them right)" for name, each in found]
    return f"homoalign started from: {', '.join(parts)}."


def is_right(outcome: Outcome) -> bool:
    """Return whether the mean corner error at 480 is below 5 px."""
    return outcome.error_px * outcome.at_480 < RIGHT_PX


def percent(count: int, total: int) -> float:
    """Return a share in percent; NaN of nothing."""
    return 100 * count / total if total else math.nan


def below(outcomes: Sequence[Outcome], limit_px: float) -> float:
    """Return the share whose mean corner error is below a limit, in percent."""
    return percent(sum(outcome.error_px < limit_px for outcome in outcomes), len(outcomes))


def ok_share(outcomes: Sequence[Outcome]) -> float | str:
    """Return the share whose status is ok, in percent; of methods without a status and of no pairs, nothing."""
    if not outcomes or outcomes[0].status is None:
        return NOT_APPLICABLE
    return percent(sum(outcome.status == Status.OK.value for outcome in outcomes), len(outcomes))


def not_ok_share(outcomes: Sequence[Outcome]) -> float | str:
    """Return the rest of `ok_share`."""
    share = ok_share(outcomes)
    return share if isinstance(share, str) else 100 - share


def median(values: Sequence[float]) -> float | None:
    """Return the median; None where it is infinite: most have failed."""
    found = float(np.median(values)) if len(values) else math.nan
    return found if math.isfinite(found) else None


def cpu_ms(outcomes: Sequence[Outcome]) -> float | None:
    """Return the median CPU milliseconds of a pair."""
    value = median([outcome.cpu_s for outcome in outcomes])
    return None if value is None else 1000 * value


def as_json(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return every outcome as a JSON object."""
    return [outcome.to_json() for outcome in outcomes]
