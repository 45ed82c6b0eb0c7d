"""Accuracy and calibration figures, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.evaluate import Pairs, area_under_recall, area_under_roc, calibration, measure
from jobs.tally import Distribution, Tally, kind_of

INFINITE = float("inf")


def pairs(error: list[float], confidence: list[float], status: list[str]) -> Pairs:
    return Pairs(
        error=np.array(error),
        confidence=np.array(confidence),
        status=np.array(status, dtype=object),
        group=np.array([""] * len(error), dtype=object),
    )


def test_shares_and_wrong_among_ok_count_a_missing_estimate_as_infinite_error():
    found = measure(
        pairs([0.5, 2.0, 7.0, INFINITE], [1.0, 0.9, 0.8, np.nan], ["ok", "low_confidence", "ok", "unreadable"])
    )
    assert found["below_px"] == {"1": 0.25, "3": 0.5, "5": 0.5, "10": 0.75}
    assert (found["right"], found["ok"]) == (2, 2)
    assert found["wrong_among_ok"] == 0.5
    assert found["not_ok_among_right"] == 0.5


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        # trapezoids: (0, 0) (1, .5) (2, 1) (5, 1): .25 + .75 + 3 = 4 of 5
        ([1.0, 2.0], 0.8),
        ([0.0, 0.0], 1.0),
        ([INFINITE, 9.0], 0.0),
        ([INFINITE, 0.0], 0.5),
    ],
)
def test_area_under_recall(error, expected):
    assert area_under_recall(np.array(error), 5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("score", "is_positive", "expected"),
    [([1, 2, 3, 4], [0, 0, 1, 1], 1.0), ([1, 1], [0, 1], 0.5), ([1, 2, 3], [0, 1, 0], 0.5), ([1, 2], [1, 1], None)],
)
def test_area_under_roc(score, is_positive, expected):
    assert area_under_roc(np.array(score, float), np.array(is_positive, bool)) == expected


def test_expected_calibration_error_weighs_bins_by_their_pairs():
    found = calibration(pairs([0.0, 0.0, 9.0, 9.0], [0.9, 0.9, 0.95, 0.25], ["ok"] * 4))
    # bin 0.9: three pairs, mean 0.9167, two right; bin 0.2: one pair, mean 0.25, none right
    assert found["expected_calibration_error"] == pytest.approx(0.75 * (2.75 / 3 - 2 / 3) + 0.25 * 0.25)
    assert [entry["pairs"] for entry in found["bins"]] == [1, 3]


def test_nothing_to_measure_is_none_not_a_number():
    found = measure(pairs([], [], []))
    assert found["below_px"]["1"] is None
    assert found["auc_px"]["1"] is None
    assert found["wrong_among_ok"] is None
    assert calibration(pairs([], [], []))["auroc"] is None


def test_percentiles_are_within_two_percent_and_merge():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.lognormal(0, 2, 5000), -rng.lognormal(0, 2, 3000), np.zeros(100)])
    whole, parts = Distribution(), Distribution()
    whole.add(values)
    for chunk in np.array_split(values, 7):
        part = Distribution()
        part.add(chunk)
        parts.merge(part)
    assert parts.bins == whole.bins
    for percent in (0, 1, 25, 50, 90, 100):
        exact = float(np.percentile(values, percent, method="lower"))
        assert whole.percentile(percent) == pytest.approx(exact, rel=0.021)


def test_a_tally_survives_its_footer_and_subtraction_undoes_a_merge():
    def tally(statuses: list[str], values: list[float]) -> Tally:
        found = Tally(timings={"align_s": 1.0})
        found.counts.update(statuses)
        found.errors = {"unreadable: src …": (statuses.count("unreadable"), "src a/b.png")}
        found.distributions["zncc"] = Distribution()
        found.distributions["zncc"].add(np.array(values))
        return found

    first, second = tally(["ok", "unreadable"], [0.5]), tally(["unreadable"], [0.7, -0.1])
    assert Tally.from_metadata(first.to_metadata()) == first
    total = tally(["ok", "unreadable"], [0.5])
    total.merge(second)
    assert total.counts == {"ok": 1, "unreadable": 2}
    assert total.error_rate == pytest.approx(2 / 3)
    total.subtract(second)
    assert (total.counts, total.errors) == (first.counts, first.errors)
    assert total.distributions["zncc"].bins == first.distributions["zncc"].bins


def test_like_errors_have_one_kind():
    first = kind_of("src images/a1.png: PNG of 10 x 20 pixels, limit 5")
    assert first == kind_of("src images/b/c.png: PNG of 999 x 1 pixels, limit 5")
    assert first != kind_of("dst images/a1.png: PNG of 10 x 20 pixels, limit 5")
