"""From evidence to `confidence`, `status` and `status_detail`."""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign.config import AlignConfig
from homoalign.status import Status, StopReason
from homoalign.trust.confidence import confidence as predict_confidence
from homoalign.trust.evidence import Evidence

REPEATED = 0.9
"""When another place correlates this well, as a share of the answer's own correlation, the detail says so..."""

LEAST_REPEATED = 0.3
"""... if that correlation is more than chance."""

LOCAL_LEVEL_SIDE_PX = 160
"""The local correlation is measured on the level whose shorter side is nearest below this: noise averages out there,
and 5 px at 480 are still more than one."""


def evidence_level(sizes: list[tuple[int, int]], count: int) -> int:
    """Return which of `count` levels to measure the local correlation on, for images of these (height, width)."""
    side = min(min(size) for size in sizes)
    level = 0
    while level < count - 1 and side >> level > LOCAL_LEVEL_SIDE_PX:
        level += 1
    return level


def can_judge(evidence: Evidence, config: AlignConfig) -> Tensor:
    """Return (B,) bool, whether enough of both images is shared, and has the structure, to compare them at all."""
    overlap = torch.fmax(evidence.overlap, evidence.src_overlap)
    return (evidence.overlap > 0) & (overlap >= config.min_overlap) & (evidence.local_correlation >= -1)


def judge(
    evidence: Evidence, stop_reason: list[StopReason], config: AlignConfig
) -> tuple[Tensor, list[Status], list[str | None]]:
    """Return (B,) float64 confidence, the status of every pair and what went wrong, None where `ok`.

    Pairs of which too little is shared, or has structure, to be compared have a confidence of 0: nothing speaks for
    them.
    """
    confidence = torch.where(can_judge(evidence, config), predict_confidence(evidence), 0.0)
    verdicts = [_judge_pair(i, evidence, float(confidence[i]), stop_reason[i], config) for i in range(len(stop_reason))]
    return confidence, [status for status, _ in verdicts], [detail for _, detail in verdicts]


def _judge_pair(
    i: int, evidence: Evidence, confidence: float, stop_reason: StopReason, config: AlignConfig
) -> tuple[Status, str | None]:
    correlation, weak_correlation = float(evidence.local_correlation[i]), float(evidence.weak_correlation[i])
    overlap, src_overlap = float(evidence.overlap[i]), float(evidence.src_overlap[i])
    if not evidence.is_finite[i]:
        return Status.NOT_CONVERGED, f"no finite matrix was found; stop_reason={stop_reason}"
    if not overlap > 0 or not max(overlap, src_overlap) >= config.min_overlap:
        return Status.NO_OVERLAP, (
            f"the warped source covers {overlap:.3f} of dst and {src_overlap:.3f} of src is seen, "
            f"min_overlap={config.min_overlap}"
        )
    is_sure = confidence >= config.confidence_threshold
    if not correlation >= -1 or (not weak_correlation >= -1 and not is_sure):  # NaN: there was nothing to compare
        found = "hardly any" if correlation >= -1 else "no"
        return Status.LOW_TEXTURE, f"the overlap, {overlap:.3f} of dst, has {found} structure to compare"
    if is_sure:
        return Status.OK, None
    here, drift, drift_std, rival = (
        float(getattr(evidence, name)[i]) for name in ("parts_here", "drift_480", "drift_std_480", "rival")
    )
    doubt = (
        f"confidence={confidence:.3f} is below {config.confidence_threshold}: "
        f"local correlation {correlation:.3f}, {weak_correlation:.3f} in its weaker blocks"
    )
    if here >= 0:  # not NaN: the blocks were asked
        doubt += (
            f"; {100 * here:.0f} % of the blocks lie best where they are, and all would move the corners by "
            f"{drift:.2g} px at 480, give or take {drift_std:.2g}"
        )
    if rival > REPEATED and abs(correlation) > LEAST_REPEATED:  # a chessboard lies as well in the negative
        doubt += f"; repeated texture: elsewhere src lies {100 * rival:.0f} % as well"
    unsettled = (StopReason.MAX_ITERATIONS, StopReason.NO_DESCENT, StopReason.OVERLAP_LOST)
    if stop_reason in unsettled and config.solver != "adam":
        return Status.NOT_CONVERGED, f"stop_reason={stop_reason}; {doubt}"
    return Status.LOW_CONFIDENCE, f"{doubt}, overlap {overlap:.3f}"
