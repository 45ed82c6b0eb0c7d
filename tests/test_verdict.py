"""From evidence to status: what is told apart, and what the detail says."""

import math

import pytest
from good_evidence import GOOD, of_pair

from homoalign import AlignConfig, Status
from homoalign.status import StopReason
from homoalign.trust.verdict import judge

POOR = {"local_correlation": 0.1, "weak_correlation": 0.0, "parts_here": 0.1, "drift_480": 90.0, "drift_std_480": 40.0}
FAINT = {"weak_correlation": math.nan}
NOTHING = {"local_correlation": math.nan, "weak_correlation": math.nan}


@pytest.mark.parametrize(
    ("change", "stop", "status", "said"),
    [
        ({}, StopReason.CONVERGED, Status.OK, None),
        ({}, StopReason.MAX_ITERATIONS, Status.OK, None),
        (FAINT, StopReason.CONVERGED, Status.OK, None),
        (NOTHING, StopReason.CONVERGED, Status.LOW_TEXTURE, "has no structure to compare"),
        (POOR | FAINT, StopReason.CONVERGED, Status.LOW_TEXTURE, "has hardly any structure to compare"),
        (POOR, StopReason.CONVERGED, Status.LOW_CONFIDENCE, "10 % of the blocks lie best where they are, and all "),
        (POOR, StopReason.CONVERGED, Status.LOW_CONFIDENCE, "would move the corners by 90 px at 480, give or take 40"),
        (POOR, StopReason.NO_DESCENT, Status.NOT_CONVERGED, "stop_reason=no_descent; confidence="),
        ({"overlap": 0.0}, StopReason.CONVERGED, Status.NO_OVERLAP, "covers 0.000 of dst and 0.700 of src is seen"),
        ({"overlap": 0.02, "src_overlap": 0.01}, StopReason.CONVERGED, Status.NO_OVERLAP, "min_overlap=0.05"),
        (POOR | {"local_correlation": 0.4, "rival": 0.95}, StopReason.CONVERGED, Status.LOW_CONFIDENCE, "lies 95 % as"),
    ],
)
def test_statuses_tell_apart_what_the_evidence_does(change, stop, status, said):
    _, statuses, details = judge(of_pair(**GOOD | change), [stop], AlignConfig())
    assert statuses == [status]
    assert details[0] is None if said is None else said in details[0]


@pytest.mark.parametrize("change", [NOTHING, {"overlap": 0.0}, {"overlap": 0.02, "src_overlap": 0.01}])
def test_there_is_no_confidence_in_what_cannot_be_compared(change):
    confidence, _, _ = judge(of_pair(**GOOD | change), [StopReason.CONVERGED], AlignConfig())
    assert confidence.tolist() == [0.0]
    confidence, _, _ = judge(of_pair(**GOOD), [StopReason.CONVERGED], AlignConfig())
    assert confidence.item() > 0.9


def test_repeats_that_correlate_by_chance_are_not_told():
    _, _, (detail,) = judge(of_pair(**GOOD | POOR | {"rival": 0.95}), [StopReason.CONVERGED], AlignConfig())
    assert "repeated" not in detail


def test_the_threshold_is_the_configs():
    evidence = of_pair(**GOOD)
    confidence, _, _ = judge(evidence, [StopReason.CONVERGED], AlignConfig())
    for threshold, status in ((0.99 * confidence.item(), Status.OK), (1.0, Status.LOW_CONFIDENCE)):
        config = AlignConfig(confidence_threshold=threshold)
        assert judge(evidence, [StopReason.CONVERGED], config)[1] == [status]
