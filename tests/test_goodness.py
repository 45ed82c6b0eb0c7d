"""When an answer is good enough to look for no other: set by hand, whatever the confidence was fitted on."""

import numpy as np
import pytest
from good_evidence import LOOKS_GOOD, of_pair

from homoalign.trust.evidence import EVIDENCE, UNDETERMINED_480
from homoalign.trust.goodness import GOOD_ENOUGH, goodness, needs_structure


def told(**values):
    return goodness(of_pair(**values)).item()


def test_a_good_fit_ends_the_search():
    assert told(**LOOKS_GOOD) > 0.95
    assert told(**(LOOKS_GOOD | {"structure": np.nan})) > 0.9
    inverted = {"local_correlation": -0.5, "weak_correlation": -0.9, "rival": np.nan, "structure": 0.6}
    assert told(**(LOOKS_GOOD | inverted)) > 0.8


@pytest.mark.parametrize(
    "change",
    [
        {"rival": 1.1},
        {"corner_std_480": 20.0},
        {"corner_std_480": 4.0, "unexplained": 20.0},
        {"local_correlation": 0.2, "structure": 0.1},
        {"weak_correlation": 0.1, "structure": 0.1},
        {"parts_here": 0.7, "drift_480": 15.0, "drift_std_480": 5.0},
        {"parts_here": 0.35, "drift_480": 4.0, "drift_std_480": 6.0},
    ],
    ids=[
        "repeats",
        "imprecise",
        "imprecise and not flat",
        "unlike",
        "unlike in most blocks",
        "blocks point elsewhere",
        "blocks scatter",
    ],
)
def test_each_doubt_alone_goes_on(change):
    assert told(**(LOOKS_GOOD | change)) < GOOD_ENOUGH


def test_without_a_predicted_precision_looks_have_to_do():
    assert told(**(LOOKS_GOOD | {"corner_std_480": np.nan})) > 0.95
    assert told(**(LOOKS_GOOD | {"corner_std_480": UNDETERMINED_480})) < 0.05


def test_blocks_that_know_little_contradict_little():
    assert told(**(LOOKS_GOOD | {"parts_here": 0.7, "drift_480": 15.0, "drift_std_480": 14.0})) > 0.8


@pytest.mark.parametrize(
    ("parts", "is_enough"),
    [((0.85, 1.0, 1.5), True), ((0.5, 1.0, 1.5), False), ((0.85, 1.0, 30.0), False), ((0.85, 6.0, 1.5), False)],
    ids=["agree", "few agree", "leave the corners open", "agree on another place"],
)
def test_blocks_settle_what_looks_unlike(parts, is_enough):
    unlike = {"local_correlation": 0.1, "weak_correlation": 0.1, "structure": 0.25}
    of_parts = dict(zip(("parts_here", "drift_480", "drift_std_480"), parts, strict=True))
    assert (told(**(LOOKS_GOOD | unlike | of_parts)) > GOOD_ENOUGH) == is_enough


def test_no_matrix_is_never_good_enough():
    assert told(**dict.fromkeys(EVIDENCE, np.nan)) == 0


def test_structure_is_asked_for_where_intensities_do_not_tell():
    assert not needs_structure(of_pair(**LOOKS_GOOD))
    assert needs_structure(of_pair(**(LOOKS_GOOD | {"weak_correlation": 0.4})))
    assert not needs_structure(of_pair(**dict.fromkeys(EVIDENCE, np.nan)))
