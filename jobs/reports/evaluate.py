"""Accuracy against the truth: how many pairs are how right, and whether `confidence` means what it says.

Errors are mean corner errors at 480: `gt_corner_error_px` scaled to a dst whose shorter side is 480 px. A pair with a
truth and no estimate, or one that sends a corner of src beyond the horizon, has an infinite error. Pairs without a
truth are counted and left out, and so are those whose truth itself sends a corner there: nothing is left to measure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from homoalign.status import Status
from jobs.errors import ManifestInvalid, PartDamaged, UsageError
from jobs.manifests.cells import value_of
from jobs.reports.calibration import (
    area_under_roc,
    calibration_bins,
    expected_calibration_error,
    least_rms,
    risk_coverage,
    std_coverage,
)
from jobs.results.output import Output
from jobs.results.rows import has_truth

THRESHOLDS_PX = (1, 3, 5, 10)
RIGHT_PX = 5.0
COLUMNS = (
    "status",
    "confidence",
    "corner_std_px",
    "gt_corner_error_px",
    "gt_corner_error_max_px",
    "dst_height",
    "dst_width",
)
"""What a part must have to be measured."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The columns that accuracy is measured on; N rows that have a truth."""

    error: Floats
    """(N,) mean corner error at 480, px; infinite where there is no estimate, or one beyond the horizon."""
    confidence: Floats
    """(N,), NaN where there is none."""
    rms_px: Floats
    """(N,) root mean square length of the corners' errors, dst pixels, as `calibration.least_rms`; NaN likewise."""
    std_px: Floats
    """(N,) `corner_std_px`, NaN likewise."""
    status: npt.NDArray[np.str_]
    """(N,)."""
    group: npt.NDArray[np.str_]
    """(N,) value of the `--by` column as text, as `_group_name`; empty strings without one."""

    @property
    def is_right(self) -> Flags:
        """Return which pairs are right."""
        return self.error < RIGHT_PX

    def select(self, index: Flags) -> Pairs:
        """Return the pairs that `index` names."""
        return Pairs(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def evaluate_run(output: Output, by: str | None = None) -> dict[str, Any]:
    """Measure a run's results.

    Args:
        output: the run's folder.
        by: a carried column to group by.

    Raises:
        ManifestInvalid: OUT holds no results.
        UsageError: the results have no column `by`.
        PartDamaged: parts cannot be read; the message lists them.
    """
    counts: Counter[str] = Counter()
    found, damaged, num_truths = [], [], 0
    shards = output.part_numbers()
    for shard in shards:
        try:
            part = output.read_part(shard, COLUMNS)
        except PartDamaged as error:
            damaged.append(str(error))
            continue
        if by is not None and by not in part.column_names:
            raise UsageError(f"--by names {by!r}; the results have {', '.join(part.column_names)}")
        counts.update(part["status"].to_pylist())
        given = has_truth(part)
        num_truths += int(given.sum())
        found.append(_pairs_of(part, given & ~_is_truth_beyond_horizon(part, given), by))
    if damaged:
        more = f"; and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise PartDamaged(
            f"{len(damaged)} of {len(shards)} parts cannot be read: {'; '.join(damaged[:5])}{more}; "
            "`homoalign run` makes again what is removed"
        )
    if not found:
        raise ManifestInvalid(f"{output.url} holds no results")
    pairs = Pairs(
        **{field.name: np.concatenate([getattr(part, field.name) for part in found]) for field in fields(Pairs)}
    )
    return {
        "rows": counts.total(),
        "without_truth": counts.total() - num_truths,
        "not_measurable": num_truths - len(pairs.error),
        "counts": dict(counts.most_common()),
        "overall": measure(pairs),
        "by_status": _grouped(measure, pairs, pairs.status),
        "by": None if by is None else _by_column(by, pairs),
        "calibration": calibration(pairs),
    }


def all_and_groups(figures: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Return the lines of a table: name, accuracy and calibration of all pairs, then of each group.

    Args:
        figures: what `evaluate_run` returned.
    """
    by = figures["by"] or {"groups": {}, "calibration": {}}
    groups = ((name, found, by["calibration"][name]) for name, found in by["groups"].items())
    return [("all", figures["overall"], figures["calibration"]), *groups]


def measure(pairs: Pairs) -> dict[str, Any]:
    """Return accuracy figures; shares and areas in [0, 1], None where there is nothing to divide by."""
    is_ok = pairs.status == Status.OK.value
    num, num_ok, num_right = len(pairs.error), int(is_ok.sum()), int(pairs.is_right.sum())
    num_false, num_missed = int((is_ok & ~pairs.is_right).sum()), int((~is_ok & pairs.is_right).sum())
    median = float(np.median(pairs.error)) if num else None
    return {
        "pairs": num,
        "below_px": {str(limit): _share(pairs.error < limit) for limit in THRESHOLDS_PX},
        "auc_px": {str(limit): area_under_recall(pairs.error, limit) for limit in THRESHOLDS_PX},
        "median_px": None if median is None or not np.isfinite(median) else median,
        "right": num_right,
        "ok": num_ok,
        "false_ok": num_false,
        "missed_ok": num_missed,
        "wrong_among_ok": num_false / num_ok if num_ok else None,
        "not_ok_among_right": num_missed / num_right if num_right else None,
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
    """Compare `confidence` with how often it is right, over the pairs that have one, and precision with prediction."""
    pairs = pairs.select(np.isfinite(pairs.confidence))
    bins = calibration_bins(pairs.confidence, pairs.is_right)
    return {
        "pairs": len(pairs.error),
        "bins": bins,
        "expected_calibration_error": expected_calibration_error(bins),
        "auroc": area_under_roc(pairs.confidence, pairs.is_right),
        "risk_coverage": risk_coverage(pairs.confidence, pairs.is_right),
        "corner_std": std_coverage(pairs.rms_px[pairs.is_right], pairs.std_px[pairs.is_right]),
    }


def _is_truth_beyond_horizon(part: pa.Table, given: Flags) -> Flags:
    """Return which pairs, (N,), have no error although the estimate keeps every corner in front of the horizon."""
    found = np.zeros(part.num_rows, dtype=bool)
    if not {"dst_homo_src", "src_height", "src_width"} <= {*part.column_names}:  # rewritten by another program
        return found
    has_estimate = np.asarray(part["dst_homo_src"].is_valid())
    has_error = np.asarray(part["gt_corner_error_px"].is_valid())
    for row in np.flatnonzero(given & has_estimate & ~has_error).tolist():
        matrix = np.reshape(part["dst_homo_src"][row].as_py(), (3, 3))
        bottom, right = (part[name][row].as_py() - 1 for name in ("src_height", "src_width"))
        corners = np.array([[0, 0, 1], [right, 0, 1], [right, bottom, 1], [0, bottom, 1]])
        found[row] = bool((corners @ matrix[2] > 0).all())
    return found


def _pairs_of(part: pa.Table, index: Flags, by: str | None) -> Pairs:
    error = _floats(part["gt_corner_error_px"])
    rms_px = least_rms(error, _floats(part["gt_corner_error_max_px"]))
    shorter = np.fmin(_floats(part["dst_height"]), _floats(part["dst_width"]))
    error = np.where(np.isfinite(error), error * 480 / shorter, np.inf)
    group = np.full(part.num_rows, "", dtype=object)
    if by is not None:
        group = np.array([_group_name(cell) for cell in part[by]], dtype=object)
    return Pairs(
        error=error[index],
        confidence=_floats(part["confidence"])[index],
        rms_px=rms_px[index],
        std_px=_floats(part["corner_std_px"])[index],
        status=np.array(part["status"].to_pylist(), dtype=object)[index],
        group=group[index],
    )


def _group_name(cell: pa.Scalar) -> str:
    """Return what the pairs with this cell are called: `null` where it is null; the word null stands in quotes."""
    value = value_of(cell)
    if value is None:
        return "null"
    name = str(value)
    return f'"{name}"' if name.strip('"') == "null" else name


def _by_column(column: str, pairs: Pairs) -> dict[str, Any]:
    return {
        "column": column,
        "groups": _grouped(measure, pairs, pairs.group),
        "calibration": _grouped(calibration, pairs, pairs.group),
    }


def _grouped(
    figures: Callable[[Pairs], dict[str, Any]], pairs: Pairs, group: npt.NDArray[Any]
) -> dict[str, dict[str, Any]]:
    return {name: figures(pairs.select(np.asarray(group == name))) for name in sorted(set(group.tolist()))}


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.cast(pa.float64()).fill_null(float("nan")), dtype=np.float64)


def _share(flags: Flags) -> float | None:
    return float(flags.mean()) if len(flags) else None
