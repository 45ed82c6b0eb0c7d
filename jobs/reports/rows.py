"""What the report shows of a run's result rows, found in one pass that holds no more than a part at a time.

OUT/data/part-*.parquet -> counts, histograms, a cloud of points, and the few rows worth looking at
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from homoalign.status import Status
from jobs.errors import PartDamaged
from jobs.manifests.cells import values_of
from jobs.reports.evaluate import RIGHT_PX
from jobs.results.output import Output
from jobs.results.tally import Tally
from jobs.schema import RESULT_COLUMNS

SURE = 0.9
"""An `ok` row with less confidence than this is worth a look."""
MAX_POINTS = 1500
BATCH_ROWS = 16_384
COLUMNS = tuple(column.name for column in RESULT_COLUMNS if column.name != "levels")
"""What every part has."""

Values = npt.NDArray[np.float64]
Point = tuple[float, float, bool]
"""Confidence, error at 480, whether `ok`."""
Flags = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Histogram:
    """Counts in fixed bins, of `ok` rows and of the others; what is outside falls into the outermost bins."""

    edges: Values
    is_log: bool = False
    ok: npt.NDArray[np.int64] = field(init=False)
    other: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.ok, self.other = np.zeros((2, len(self.edges) - 1), dtype=np.int64)

    def add(self, values: Values, is_ok: Flags) -> None:
        """Count finite values."""
        inside = np.clip(values, self.edges[0], self.edges[-1])
        self.ok += np.histogram(inside[is_ok & np.isfinite(values)], self.edges)[0]
        self.other += np.histogram(inside[~is_ok & np.isfinite(values)], self.edges)[0]

    @property
    def total(self) -> int:
        """Return how many values were counted."""
        return int(self.ok.sum() + self.other.sum())


@dataclass(frozen=True, slots=True)
class Pick:
    """A result row chosen for the gallery."""

    key: float
    shard: int
    offset: int
    """Of the row in its shard."""
    row: dict[str, Any] = field(compare=False)


@dataclass(slots=True)
class Smallest:
    """Keeps the rows with the smallest keys."""

    size: int
    picks: list[Pick] = field(default_factory=list)

    def offer(self, keys: Values, batch: pa.RecordBatch, shard: int, first: int) -> None:
        """Take the batch's rows whose keys are finite and among the smallest yet."""
        order = np.argsort(keys, kind="stable")[: self.size]
        order = order[np.isfinite(keys[order])]
        new = [
            # by slices: Arrow takes no rows of some types, such as views of strings
            Pick(float(keys[index]), shard, first + index, values_of(batch.slice(index, 1)))
            for index in order.tolist()
        ]
        self.picks = sorted([*self.picks, *new], key=lambda pick: (pick.key, pick.shard, pick.offset))[: self.size]


@dataclass(slots=True)
class Survey:
    """All that the report says about the result rows."""

    wrong: Smallest
    """`ok` although the truth says otherwise, worst first."""
    doubtful: Smallest
    """With a matrix: not `ok`, or `ok` with a confidence below `SURE`; nearest to the threshold first."""
    failed: Smallest
    """Without a matrix, drawn by lot."""
    fair: Smallest
    """`ok`, drawn by lot."""
    tally: Tally = field(default_factory=Tally)
    num_parts: int = 0
    num_damaged: int = 0
    """Parts that cannot be read; `homoalign run` makes them again."""
    num_truths: int = 0
    histograms: dict[str, Histogram] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    """At most `MAX_POINTS`, drawn by lot."""

    @property
    def rows(self) -> int:
        """Return how many result rows there are."""
        return self.tally.rows


def survey_results(output: Output, *, num_cards: int, seed: int, threshold: float) -> Survey:
    """Read every part of a run once.

    Args:
        output: the run's folder.
        num_cards: rows to choose for the gallery.
        seed: of everything drawn by lot.
        threshold: confidence from which a result is `ok`.
    """
    num_wrong, num_doubtful, num_failed = num_cards // 6, num_cards // 3, num_cards // 6
    survey = Survey(
        wrong=Smallest(num_wrong),
        doubtful=Smallest(num_doubtful),
        failed=Smallest(num_failed),
        fair=Smallest(num_cards),
        histograms={
            "error": Histogram(np.logspace(-3, 3, 25), is_log=True),
            "predicted": Histogram(np.logspace(-3, 3, 25), is_log=True),
            "confidence": Histogram(np.linspace(0, 1, 21)),
            "overlap": Histogram(np.linspace(0, 1, 21)),
            "zncc": Histogram(np.linspace(-1, 1, 21)),
        },
    )
    drawn: list[tuple[float, Point]] = []
    for shard in output.part_numbers():
        rng, first = np.random.default_rng([seed, shard]), 0
        for batch in _read_part(output, shard, survey):
            drawn = sorted([*drawn, *_add_batch(survey, batch, shard, first, rng, threshold)])[:MAX_POINTS]
            first += batch.num_rows
    survey.points = [point for _, point in drawn]
    return survey


def _read_part(output: Output, shard: int, survey: Survey) -> Iterator[pa.RecordBatch]:
    """Yield a part's rows without their traces, after adding its footer to the tally; a damaged part has none."""
    try:
        part = output.read_part(shard, COLUMNS)
        tally = Tally.from_metadata(part.schema.metadata or {})
    except (PartDamaged, KeyError, TypeError, ValueError):
        survey.num_damaged += 1
        return
    survey.tally.merge(tally)
    survey.num_parts += 1
    names = [name for name in part.column_names if name != "levels"]
    yield from part.select(names).to_batches(BATCH_ROWS)


def _add_batch(
    survey: Survey, batch: pa.RecordBatch, shard: int, first: int, rng: np.random.Generator, threshold: float
) -> list[tuple[float, Point]]:
    """Count a batch, offer its rows, and return its points, each with its lot."""
    is_ok = np.array(pc.equal(batch["status"].cast(pa.string()), str(Status.OK)).to_pylist(), dtype=bool)
    has_matrix = np.array(batch["dst_homo_src"].is_valid().to_pylist(), dtype=bool)
    confidence, lot = _numbers(batch, "confidence"), rng.uniform(size=batch.num_rows)
    error = error_at_480(
        _numbers(batch, "gt_corner_error_px"), _numbers(batch, "dst_height"), _numbers(batch, "dst_width")
    )
    for name, values in (
        ("error", error),
        ("predicted", _numbers(batch, "corner_std_px")),
        ("confidence", np.where(has_matrix, confidence, np.nan)),
        ("overlap", np.where(has_matrix, _numbers(batch, "overlap"), np.nan)),
        ("zncc", np.where(has_matrix, _numbers(batch, "zncc"), np.nan)),
    ):
        survey.histograms[name].add(values, is_ok)
    survey.num_truths += int(np.isfinite(error).sum())
    is_wrong = is_ok & (error >= RIGHT_PX)
    doubt = np.abs(np.where(np.isfinite(confidence), confidence, 0.0) - threshold)
    survey.wrong.offer(np.where(is_wrong, -error, np.nan), batch, shard, first)
    is_doubtful = has_matrix & ~is_wrong & ~(is_ok & (confidence >= SURE))
    survey.doubtful.offer(np.where(is_doubtful, doubt, np.nan), batch, shard, first)
    survey.failed.offer(np.where(has_matrix, np.nan, lot), batch, shard, first)
    survey.fair.offer(np.where(is_ok, lot, np.nan), batch, shard, first)
    has_point = np.flatnonzero(np.isfinite(error) & np.isfinite(confidence))
    return [(float(lot[i]), (float(confidence[i]), float(error[i]), bool(is_ok[i]))) for i in has_point]


def error_at_480(error_px: Values, height: Values, width: Values) -> Values:
    """Return mean corner errors as if the shorter side of dst had 480 pixels."""
    return np.asarray(error_px * 480 / np.minimum(height, width))


def _numbers(batch: pa.RecordBatch, name: str) -> Values:
    return np.asarray(batch[name].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
