"""What is counted about result rows: statuses, timings, frequent errors, and metrics' distributions.

A tally of a shard stands in its part's footer, so that those of any number of parts add up without reading rows.
Distributions are counts in bins of 4 % width (DDSketch, Masson et al. 2019): a percentile is within 2 % of the truth.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from homoalign.status import Status

METRICS = (
    "confidence",
    "corner_std_px",
    "photometric_l1",
    "zncc",
    "overlap",
    "inlier_ratio",
    "forward_backward_px",
    "num_iterations",
    "gt_corner_error_px",
    "gt_reprojection_l1",
)
PERCENTILES = (5, 25, 50, 75, 95)
ERROR_STATUSES = (
    Status.UNREADABLE,
    Status.TOO_LARGE,
    Status.INVALID_ROW,
    Status.NOT_ALLOWED,
    Status.TIMED_OUT,
    Status.CRASHED,
)
"""Rows that failed before alignment; what --max-error-rate counts."""
_ERROR_KINDS = tuple(f"{status.value}: " for status in ERROR_STATUSES)
MAX_ERROR_KINDS = 20
METADATA_PREFIX = b"homoalign."

_LOG_BIN = np.log(1.04)
_SMALLEST = 1e-9


@dataclass(slots=True)
class Distribution:
    """How often a metric fell into which bin."""

    bins: Counter[int] = field(default_factory=Counter)
    """By the bin's number: 0 holds zero, positive and negative numbers the values of that sign."""
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Count finite values."""
        values = values[np.isfinite(values)]
        if not len(values):
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        # 1e-9 is bin 1, so that every magnitude above it has a positive number
        number = np.ceil(np.log(np.maximum(np.abs(values), _SMALLEST) / _SMALLEST) / _LOG_BIN) + 1
        number = np.where(np.abs(values) < _SMALLEST, 0, np.sign(values) * number).astype(np.int64)
        for key, count in zip(*np.unique(number, return_counts=True), strict=True):
            self.bins[int(key)] += int(count)

    def merge(self, other: Distribution) -> None:
        """Add another's counts."""
        self.bins.update(other.bins)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def percentile(self, percent: float) -> float | None:
        """Return the value below which `percent` of the values lie; None where there are none."""
        total = self.bins.total()
        if not total:
            return None
        rank, seen = percent / 100 * (total - 1), 0
        for number, count in sorted(self.bins.items()):
            seen += count
            if seen > rank:
                return min(max(_centre(number), self.low), self.high)
        raise AssertionError("the last bin reaches every rank")


@dataclass(slots=True)
class Tally:
    """Counts over result rows; `merge` adds another's."""

    counts: Counter[str] = field(default_factory=Counter)
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds summed over shards: `fetch_s`, `decode_s`, `align_s`, `wall_s`; and `bytes_read`, `storage_retries`."""
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By kind (status and detail without its values): how many, and one detail as it is."""
    distributions: dict[str, Distribution] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Return how many rows were counted."""
        return self.counts.total()

    @property
    def error_rate(self) -> float:
        """Return the share of rows that failed before alignment, in [0, 1]."""
        return sum(self.counts[status] for status in ERROR_STATUSES) / self.rows if self.rows else 0.0

    def merge(self, other: Tally) -> None:
        """Add another tally's counts."""
        self.counts.update(other.counts)
        for name, amount in other.timings.items():
            self.timings[name] = self.timings.get(name, 0.0) + amount
        for kind, (count, example) in other.errors.items():
            mine = self.errors.get(kind, (0, example))
            self.errors[kind] = (mine[0] + count, mine[1])
        if len(self.errors) > 10 * MAX_ERROR_KINDS:
            self.errors = dict(self.frequent_errors(5 * MAX_ERROR_KINDS))
        for name, distribution in other.distributions.items():
            self.distributions.setdefault(name, Distribution()).merge(distribution)

    def subtract(self, other: Tally) -> None:
        """Take back what `merge` added: the rows were made anew. Timings stay, they were spent."""
        self.counts = self.counts - other.counts
        for kind, (count, example) in other.errors.items():
            left = self.errors.pop(kind, (0, example))[0] - count
            if left > 0:
                self.errors[kind] = (left, example)
        for name, distribution in other.distributions.items():
            mine = self.distributions.setdefault(name, Distribution())
            mine.bins = mine.bins - distribution.bins

    def failures(self) -> list[tuple[str, tuple[int, str]]]:
        """Return the most frequent kinds of rows that failed before alignment."""
        return [item for item in self.frequent_errors(len(self.errors)) if item[0].startswith(_ERROR_KINDS)]

    def frequent_errors(self, num: int = MAX_ERROR_KINDS) -> list[tuple[str, tuple[int, str]]]:
        """Return the most frequent kinds of errors, each with its count and an example."""
        return sorted(self.errors.items(), key=lambda item: (-item[1][0], item[0]))[:num]

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Return, for each metric that has values, some percentiles."""
        return {
            name: {f"p{percent}": value for percent in PERCENTILES if (value := found.percentile(percent)) is not None}
            for name, found in self.distributions.items()
            if found.bins
        }

    def to_metadata(self, prefix: bytes = METADATA_PREFIX) -> dict[bytes, bytes]:
        """Return the footer's key-value pairs."""
        values = {
            "counts": dict(sorted(self.counts.items())),
            "timings": {name: round(value, 6) for name, value in sorted(self.timings.items())},
            "errors": dict(self.frequent_errors()),
            "distributions": {
                name: {"low": found.low, "high": found.high, "bins": sorted(found.bins.items())}
                for name, found in self.distributions.items()
            },
        }
        return {prefix + name.encode(): json.dumps(value).encode() for name, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes], prefix: bytes = METADATA_PREFIX) -> Self:
        """Read what `to_metadata` wrote.

        Raises:
            KeyError, ValueError: it is not there, or is something else.
        """
        found: dict[str, Any] = {
            name: json.loads(metadata[prefix + name.encode()])
            for name in ("counts", "timings", "errors", "distributions")
        }
        return cls(
            counts=Counter(found["counts"]),
            timings=dict(found["timings"]),
            errors={kind: (int(count), str(example)) for kind, (count, example) in found["errors"].items()},
            distributions={
                name: Distribution(bins=Counter(dict(kept["bins"])), low=kept["low"], high=kept["high"])
                for name, kept in found["distributions"].items()
            },
        )


def tally_rows(table: pa.Table, timings: Mapping[str, float]) -> Tally:
    """Count a table of result rows."""
    tally = Tally(timings=dict(timings))
    tally.counts.update(table["status"].to_pylist())
    wrong = table.select(["status", "status_detail"]).filter(pc.is_valid(table["status_detail"]))
    for row in wrong.to_pylist():
        kind = f"{row['status']}: {kind_of(row['status_detail'])}"
        count, example = tally.errors.get(kind, (0, row["status_detail"]))
        tally.errors[kind] = (count + 1, example)
    for name in METRICS:
        values = table[name].drop_null().cast(pa.float64()).to_numpy()
        if len(values):
            tally.distributions.setdefault(name, Distribution()).add(values)
    return tally


def kind_of(detail: str) -> str:
    """Return a detail without paths and numbers, so that like errors have one name."""
    words = [
        "…" if "/" in word.strip("(),;:'\"") and len(word) > 1 else re.sub(r"[-+]?\d[\d.,e+-]*", "#", word)
        for word in detail.split()
    ]
    return " ".join(words)[:120]


def _centre(number: int) -> float:
    if number == 0:
        return 0.0
    size = _SMALLEST * float(np.exp((abs(number) - 1.5) * _LOG_BIN))
    return size if number > 0 else -size
