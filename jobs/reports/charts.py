"""The report's charts as numbers: boxes, dots and ticks in the units of an SVG; the template draws them.

A chart's drawing area is `WIDTH` x `HEIGHT`; y grows down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.reports.evaluate import RIGHT_PX
from jobs.reports.rows import Histogram, Point

WIDTH, HEIGHT = 320.0, 150.0
LOWEST_PX, HIGHEST_PX = 1e-3, 1e3
"""Range of the error axis; what is outside is drawn at its end."""
PX_TICKS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mark:
    """A bar, or with equal width and height a dot."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    """`ok` or `other`."""
    text: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """All that is drawn of one chart."""

    title: str
    caption: str
    marks: list[Mark]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_line: float | None = None
    """Where a dashed vertical line stands."""
    y_line: float | None = None
    is_scatter: bool = False


def draw_histogram(title: str, caption: str, histogram: Histogram, *, line: float | None = None) -> Chart:
    """Return a histogram, `ok` below and the others on top.

    Args:
        title: above the chart.
        caption: below it.
        histogram: what to draw.
        line: value that a dashed line marks.
    """
    tallest = max(1, int((histogram.ok + histogram.other).max()))
    edges = _positions(histogram.edges, histogram)
    marks = []
    for index, (ok, other) in enumerate(zip(histogram.ok.tolist(), histogram.other.tolist(), strict=True)):
        low, high = histogram.edges[index], histogram.edges[index + 1]
        x, width = edges[index] + 0.5, edges[index + 1] - edges[index] - 1
        top = HEIGHT
        for count, kind in ((ok, "ok"), (other, "other")):
            if count:
                height = count / tallest * HEIGHT
                top -= height
                named = "ok" if kind == "ok" else "not ok"
                marks.append(Mark(x, top, width, height, kind, f"{low:.3g} to {high:.3g}: {count} {named}"))
    places = PX_TICKS if histogram.is_log else np.linspace(histogram.edges[0], histogram.edges[-1], 5)
    return Chart(
        title=title,
        caption=caption,
        marks=marks,
        x_ticks=[Tick(_position(value, histogram), f"{value:g}") for value in places],
        y_ticks=[Tick(HEIGHT, "0"), Tick(0, f"{tallest:,}")],
        x_line=None if line is None else _position(line, histogram),
    )


def draw_scatter(title: str, caption: str, points: Sequence[Point], *, threshold: float) -> Chart:
    """Return confidence against error, a dot a pair; lines mark the threshold and what counts as right."""
    return Chart(
        title=title,
        caption=caption,
        marks=[
            Mark(
                confidence * WIDTH,
                _error_height(error),
                0,
                0,
                "ok" if is_ok else "other",
                f"confidence {confidence:.3f}, error {error:.3g} px",
            )
            for confidence, error, is_ok in points
        ],
        x_ticks=[Tick(value * WIDTH, f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)],
        y_ticks=[Tick(_error_height(value), f"{value:g}") for value in PX_TICKS],
        x_line=threshold * WIDTH,
        y_line=_error_height(RIGHT_PX),
        is_scatter=True,
    )


def _error_height(error_px: float) -> float:
    share = np.log(np.clip(error_px, LOWEST_PX, HIGHEST_PX) / LOWEST_PX) / np.log(HIGHEST_PX / LOWEST_PX)
    return HEIGHT * (1 - float(share))


def _position(value: float, histogram: Histogram) -> float:
    return float(_positions(np.array([value]), histogram)[0])


def _positions(values: Values, histogram: Histogram) -> Values:
    ends = histogram.edges[[0, -1]]
    if histogram.is_log:
        values, ends = np.log(values), np.log(ends)
    return np.asarray(WIDTH * (values - ends[0]) / (ends[1] - ends[0]), dtype=np.float64)
