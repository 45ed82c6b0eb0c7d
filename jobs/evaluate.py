"""Accuracy against the truth: how many pairs are how right, and whether `confidence` means what it says.

Errors are mean corner errors at 480: `gt_corner_error_px` scaled to a dst whose shorter side is 480 px. A pair with a
truth and no estimate has an infinite error. Pairs without a truth are counted and left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from homoalign.status import Status
from jobs.errors import ManifestInvalid, UsageError
from jobs.output import Output
from jobs.rows import has_truth, read_part

THRESHOLDS_PX = (1, 3, 5, 10)
RIGHT_PX = 5.0
NUM_BINS = 10
COVERAGES = (80, 90, 95, 99)
"""Percent of the pairs, the most confident first, of which the share right is told."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The columns that accuracy is measured on; N rows that have a truth."""

    error: Floats
    """(N,) mean corner error at 480, px; infinite where there is no estimate."""
    confidence: Floats
    """(N,), NaN where there is none."""
    status: npt.NDArray[np.str_]
    """(N,)."""
    group: npt.NDArray[np.str_]
    """(N,) value of the `--by` column; empty strings without one."""

    @property
    def is_right(self) -> Flags:
        """Return which pairs are right."""
        return self.error < RIGHT_PX

    def select(self, index: Flags) -> Pairs:
        """Return the pairs that `index` names."""
        return Pairs(
            error=self.error[index],
            confidence=self.confidence[index],
            status=self.status[index],
            group=self.group[index],
        )


def evaluate_run(output: Output, by: str | None = None) -> dict[str, Any]:
    """Measure a run's results.

    Args:
        output: the run's folder.
        by: a carried column to group by.

    Raises:
        ManifestInvalid: OUT holds no results.
        UsageError: the results have no column `by`.
    """
    counts: Counter[str] = Counter()
    found = []
    for shard in output.part_numbers():
        part = read_part(output.store, output.part(shard))
        if by is not None and by not in part.column_names:
            raise UsageError(f"--by names {by!r}; the results have {', '.join(part.column_names)}")
        counts.update(part["status"].to_pylist())
        found.append(_pairs_with_truth(part, by))
    if not found:
        raise ManifestInvalid(f"{output.url} holds no results")
    pairs = Pairs(
        error=np.concatenate([part.error for part in found]),
        confidence=np.concatenate([part.confidence for part in found]),
        status=np.concatenate([part.status for part in found]),
        group=np.concatenate([part.group for part in found]),
    )
    return {
        "rows": counts.total(),
        "without_truth": counts.total() - len(pairs.error),
        "counts": dict(counts.most_common()),
        "overall": measure(pairs),
        "by_status": _grouped(pairs, pairs.status),
        "by": None if by is None else {"column": by, "groups": _grouped(pairs, pairs.group)},
        "calibration": calibration(pairs),
    }


def measure(pairs: Pairs) -> dict[str, Any]:
    """Return accuracy figures; shares and areas in [0, 1], None where there is nothing to divide by."""
    is_ok = pairs.status == Status.OK.value
    num, num_ok, num_right = len(pairs.error), int(is_ok.sum()), int(pairs.is_right.sum())
    median = float(np.median(pairs.error)) if num else None
    return {
        "pairs": num,
        "below_px": {str(limit): _share(pairs.error < limit) for limit in THRESHOLDS_PX},
        "auc_px": {str(limit): area_under_recall(pairs.error, limit) for limit in THRESHOLDS_PX},
        "median_px": None if median is None or not np.isfinite(median) else median,
        "right": num_right,
        "ok": num_ok,
        "wrong_among_ok": int((is_ok & ~pairs.is_right).sum()) / num_ok if num_ok else None,
        "not_ok_among_right": int((~is_ok & pairs.is_right).sum()) / num_right if num_right else None,
    }


def area_under_recall(error: Floats, limit: float) -> float | None:
    """Return the area under the share of pairs below each error up to `limit`, divided by `limit`."""
    if not len(error):
        return None
    below = np.sort(error[error < limit])
    recall = np.arange(len(below) + 1) / len(error)
    # trapezoids between the points (0, 0), (error_i, recall_i) and (limit, the last recall), as SuperGlue does
    x, y = np.concatenate([[0.0], below, [limit]]), np.concatenate([recall, recall[-1:]])
    return float(np.trapezoid(y, x) / limit)


def calibration(pairs: Pairs) -> dict[str, Any]:
    """Compare `confidence` with how often it is right, over the pairs that have one."""
    pairs = pairs.select(np.isfinite(pairs.confidence))
    bins = calibration_bins(pairs.confidence, pairs.is_right)
    return {
        "pairs": len(pairs.error),
        "bins": bins,
        "expected_calibration_error": expected_calibration_error(bins),
        "auroc": area_under_roc(pairs.confidence, pairs.is_right),
        "risk_coverage": risk_coverage(pairs.confidence, pairs.is_right),
    }


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


def _pairs_with_truth(part: pa.Table, by: str | None) -> Pairs:
    index = has_truth(part)
    error = _floats(part["gt_corner_error_px"])
    shorter = np.fmin(_floats(part["dst_height"]), _floats(part["dst_width"]))
    error = np.where(np.isfinite(error), error * 480 / shorter, np.inf)
    group = np.full(part.num_rows, "", dtype=object)
    if by is not None:
        group = np.array(["null" if value is None else str(value) for value in part[by].to_pylist()], dtype=object)
    return Pairs(
        error=error[index],
        confidence=_floats(part["confidence"])[index],
        status=np.array(part["status"].to_pylist(), dtype=object)[index],
        group=group[index],
    )


def _grouped(pairs: Pairs, group: npt.NDArray[Any]) -> dict[str, Any]:
    return {name: measure(pairs.select(np.asarray(group == name))) for name in sorted(set(group.tolist()))}


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.cast(pa.float64()).fill_null(float("nan")), dtype=np.float64)


def _share(flags: Flags) -> float | None:
    return float(flags.mean()) if len(flags) else None
