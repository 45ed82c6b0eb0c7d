"""Whether a score means what it says: reliability, ranking, risk against coverage, and precision that was predicted.

N pairs; scores are probabilities of being right, or what is read as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_BINS = 10
COVERAGES = (80, 90, 95, 99)
"""Percent of the pairs, the most confident first, of which the share right is told."""

STD_FACTORS = (1.39, 1.96)
"""Multiples of `corner_std_px` that bracket 95 %: a sum of squared normal errors stays below 1.39^2 times its mean in
at most 95 % of cases (just so where its eight components are alike), and below 1.96^2 times in at least 95 % (just so
in one direction only; Szekely and Bakirov 2003, "Extremal probabilities for Gaussian quadratic forms")."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def calibration_bins(score: Floats, is_right: Flags) -> list[dict[str, Any]]:
    """Return the reliability table: the pairs in `NUM_BINS` bins of equal width, without the empty ones."""
    number = np.clip((score * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
    return [
        {
            "from": i / NUM_BINS,
            "to": (i + 1) / NUM_BINS,
            "pairs": int((number == i).sum()),
            "mean_confidence": float(score[number == i].mean()),
            "right": float(is_right[number == i].mean()),
        }
        for i in range(NUM_BINS)
        if (number == i).any()
    ]


def expected_calibration_error(bins: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean distance of confidence and share right over the bins, each weighed by its pairs."""
    total = sum(each["pairs"] for each in bins)
    gaps = sum(each["pairs"] * abs(each["mean_confidence"] - each["right"]) for each in bins)
    return gaps / total if total else None


def area_under_roc(score: Floats, is_positive: Flags) -> float | None:
    """Return the chance that a positive outscores a negative, ties counting half; None without both kinds."""
    num_positive = int(is_positive.sum())
    num_negative = len(score) - num_positive
    if not num_positive or not num_negative:
        return None
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # from 1
    rank_sum = mean_rank[inverse][is_positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def risk_coverage(score: Floats, is_right: Flags) -> dict[str, float | None]:
    """Return, by the percents of `COVERAGES`, the share right among as many of the pairs, those of highest score first.

    Of pairs that tie at the limit the share is what drawing among them gives on average. None where no pair is taken.
    """
    found: dict[str, float | None] = {}
    for percent in COVERAGES:
        taken = len(score) * percent // 100
        if not taken:
            found[str(percent)] = None
            continue
        limit = np.sort(score)[len(score) - taken]
        above, level = score > limit, score == limit
        right = is_right[above].sum() + (taken - above.sum()) * is_right[level].mean()
        found[str(percent)] = float(right / taken)
    return found


def least_rms(mean: Floats, largest: Floats) -> Floats:
    """Return the least root mean square of four lengths whose mean and largest are known, (N,).

    That is where the other three are alike; four corners' errors exceed it by some percent.
    """
    rest = np.maximum(4 * mean - largest, 0)
    return np.asarray(np.sqrt((largest**2 + rest**2 / 3) / 4))


def std_coverage(rms_px: Floats, std_px: Floats) -> dict[str, Any]:
    """Compare errors of right pairs with what was predicted, over the pairs that have both.

    Args:
        rms_px: (N,) root mean square length of the corners' errors; NaN where there is none.
        std_px: (N,) predicted of it.

    Returns:
        How many pairs there are, the median of error over prediction, and the shares within `STD_FACTORS` times the
        prediction, None without pairs.
    """
    known = np.isfinite(rms_px) & (std_px > 0)
    ratio = rms_px[known] / std_px[known]
    within = {str(factor): float((ratio <= factor).mean()) if len(ratio) else None for factor in STD_FACTORS}
    return {"pairs": len(ratio), "median_ratio": float(np.median(ratio)) if len(ratio) else None, "within": within}
