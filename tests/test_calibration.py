"""Calibration figures, against values worked out by hand."""

import numpy as np
import pytest

from jobs.reports.calibration import (
    STD_FACTORS,
    area_under_roc,
    calibration_bins,
    expected_calibration_error,
    least_rms,
    risk_coverage,
    std_coverage,
)


def scored(score, is_right):
    return np.array(score, float), np.array(is_right, bool)


@pytest.mark.parametrize(
    ("score", "is_positive", "expected"),
    [([1, 2, 3, 4], [0, 0, 1, 1], 1.0), ([1, 1], [0, 1], 0.5), ([1, 2, 3], [0, 1, 0], 0.5), ([1, 2], [1, 1], None)],
)
def test_area_under_roc(score, is_positive, expected):
    assert area_under_roc(*scored(score, is_positive)) == expected


def test_the_reliability_table_holds_every_pair_once_also_scores_at_and_beyond_the_ends():
    bins = calibration_bins(*scored([-0.2, 0.0, 0.1, 0.95, 1.0], [0, 0, 1, 1, 0]))
    assert [(each["from"], each["pairs"], each["right"]) for each in bins] == [
        (0.0, 2, 0.0),
        (0.1, 1, 1.0),
        (0.9, 2, 0.5),
    ]
    assert bins[2]["mean_confidence"] == pytest.approx(0.975)
    # gaps of the bins: 0.1, 0.9 and 0.475, of 2, 1 and 2 pairs
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.1 + 0.9 + 2 * 0.475) / 5)
    assert expected_calibration_error([]) is None


def test_risk_coverage_is_the_share_right_among_the_most_confident():
    # the two least confident of twenty are wrong, and the 15th
    is_right = np.arange(20) >= 2
    is_right[5] = False
    found = risk_coverage(np.arange(20) / 20, is_right)
    assert found == {"80": 15 / 16, "90": 17 / 18, "95": 17 / 19, "99": 17 / 19}


def test_ties_at_the_limit_of_coverage_count_by_their_average():
    # of ten, eight are taken: six above, and two of the four that tie, half of which are right
    found = risk_coverage(*scored([0.9] * 6 + [0.5] * 4, [1] * 6 + [1, 0, 0, 1]))
    assert found["80"] == pytest.approx(7 / 8)
    assert risk_coverage(*scored([1], [1]))["80"] is None


@pytest.mark.parametrize(
    ("lengths", "expected"), [([2, 2, 2, 2], 2.0), ([4, 1, 1, 1], 19**0.5 / 2), ([3, 2, 1, 0], 12**0.5 / 2)]
)
def test_the_least_rms_is_of_three_alike_beside_the_largest(lengths, expected):
    mean, largest = np.array([np.mean(lengths)]), np.array([np.max(lengths)])
    assert least_rms(mean, largest) == pytest.approx(expected)
    assert expected <= np.sqrt(np.mean(np.square(lengths))) + 1e-12
    assert np.isnan(least_rms(np.array([np.nan]), np.array([np.nan]))).all()


def test_coverage_of_the_predicted_precision_leaves_out_pairs_without_one():
    rms, std = np.array([1.0, 1.5, 3.0, 1.0, np.nan, 1.0]), np.array([1.0, 1.0, 1.0, np.nan, 1.0, 0.0])
    assert std_coverage(rms, std) == {"pairs": 3, "median_ratio": 1.5, "within": {"1.39": 1 / 3, "1.96": 2 / 3}}
    nothing = std_coverage(rms[:0], std[:0])
    assert nothing == {"pairs": 0, "median_ratio": None, "within": {"1.39": None, "1.96": None}}


def test_the_factors_bracket_95_percent_whatever_the_shape_of_the_error(numpy_rng):
    low, high = STD_FACTORS
    shapes = [np.eye(8)[0], np.ones(8) / 8, *numpy_rng.dirichlet(np.full(8, 0.3), size=10)]
    for weight in shapes:
        length = np.sqrt((weight * numpy_rng.normal(size=(200_000, 8)) ** 2).sum(axis=1))
        # binomial error of 200,000 draws at 95 % is 0.0005; the factors are rounded in the third place
        assert (length <= low).mean() < 0.952
        assert (length <= high).mean() > 0.948
