"""From measurements to `confidence`, `status` and `status_detail`.

The confidence is a logistic function of the local correlation (`metrics.local_correlation`), of the whole overlap or
of its weaker blocks, whichever is lower, and lowered where little of the frame supports it; of pairs that this leaves
in doubt also of how well their structure agrees, and the higher of the two counts. The coefficients separate right from
wrong on the pairs of `homoalign demo` and on most real ones; they are not calibrated yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign.config import AlignConfig
from homoalign.evidence import Evidence
from homoalign.status import Status, StopReason

CORRELATION_AT_EVEN_ODDS = 0.45
CORRELATION_SLOPE = 25.0
STRUCTURE_AT_EVEN_ODDS = 0.36  # wrong answers reach 0.3, right ones of unlike sensors start at 0.1
STRUCTURE_SLOPE = 30.0
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


def confidence(evidence: Evidence) -> Tensor:
    """Return (B,) in [0, 1]; 0 where there is no matrix."""
    correlation = torch.minimum(evidence.local_correlation, evidence.weak_correlation).nan_to_num(-1.0)
    # A small overlap has fewer independent windows to agree by chance.
    overlap = torch.fmax(evidence.overlap, evidence.src_overlap).nan_to_num(0.0)
    even = CORRELATION_AT_EVEN_ODDS + 0.2 * (0.5 - overlap).clamp(0, 0.5)
    odds = CORRELATION_SLOPE * (correlation - even)
    odds = torch.fmax(odds, STRUCTURE_SLOPE * (evidence.structure - STRUCTURE_AT_EVEN_ODDS))
    return torch.where(evidence.is_finite, torch.sigmoid(odds), 0.0)


def judge(
    evidence: Evidence, confidence: Tensor, stop_reason: list[StopReason], config: AlignConfig
) -> tuple[list[Status], list[str | None]]:
    """Return the status of every pair and what went wrong, None where `ok`."""
    verdicts = [_judge_pair(i, evidence, float(confidence[i]), stop_reason[i], config) for i in range(len(stop_reason))]
    return [status for status, _ in verdicts], [detail for _, detail in verdicts]


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
    if not correlation >= -1 or not weak_correlation >= -1:  # NaN: there was nothing to compare
        return Status.LOW_TEXTURE, f"the overlap, {overlap:.3f} of dst, has no structure to compare"
    if confidence >= config.confidence_threshold:
        return Status.OK, None
    doubt = (
        f"confidence={confidence:.3f} is below {config.confidence_threshold}: "
        f"local correlation {correlation:.3f}, {weak_correlation:.3f} in its weaker blocks"
    )
    structure = float(evidence.structure[i])
    if structure >= -1:  # NaN: it was not asked for
        doubt += f", structure {structure:.3f}"
    unsettled = (StopReason.MAX_ITERATIONS, StopReason.NO_DESCENT, StopReason.OVERLAP_LOST)
    if stop_reason in unsettled and config.solver != "adam":
        return Status.NOT_CONVERGED, f"stop_reason={stop_reason}; {doubt}"
    return Status.LOW_CONFIDENCE, f"{doubt}, overlap {overlap:.3f}"
