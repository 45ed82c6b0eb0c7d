"""`AlignResult`: what `align` returns, one entry a pair, named as the result columns.

B pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from homoalign.optimisation.trace import LevelTrace
from homoalign.status import Initialisation, Status, StopReason
from homoalign.trust.evidence import EVIDENCE


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignResult:
    """Per-pair answers. Float tensors are float64 on the CPU; NaN stands for "not computed"."""

    status: list[Status]
    status_detail: list[str | None]
    """What went wrong, with values; None when `ok`."""
    dst_homo_src: Tensor
    """(B, 3, 3), source to destination pixels, [2, 2] = 1; NaN where nothing could be estimated."""
    confidence: Tensor
    """(B,), probability that the result is right, in [0, 1]."""
    corner_std_px: Tensor
    """(B,), predicted root-mean-square length of the corners' error vectors, destination pixels."""
    corner_covariance: Tensor
    """(B, 4, 2, 2), destination pixels squared; corners top-left, top-right, bottom-right, bottom-left."""
    photometric_l1: Tensor
    """(B,), over the overlap, intensities in [0, 1]."""
    zncc: Tensor
    """(B,), in [-1, 1]."""
    overlap: Tensor
    """(B,), share of dst covered by the warped source."""
    inlier_ratio: Tensor
    """(B,), share of the overlap's pixels that the robust loss trusts."""
    forward_backward_px: Tensor
    """(B,), corner disagreement of the two directions."""
    gain: Tensor
    """(B,), dst ~ gain * src + bias."""
    bias: Tensor
    """(B,), intensities in [0, 1]."""
    initialisation: list[Initialisation | None]
    stop_reason: list[StopReason]
    num_iterations: Tensor
    """(B,) int32, over all levels."""
    levels: list[list[LevelTrace]]
    """Coarse to fine; empty unless `trace` was asked for."""
    gt_corner_error_px: Tensor
    """(B,), mean over the four corners, destination pixels; NaN without the truth."""
    gt_corner_error_max_px: Tensor
    """(B,), largest of the four corners."""
    gt_reprojection_l1: Tensor
    """(B,), mean absolute difference of src warped by the estimate and by the truth."""
    evidence: Tensor
    """(B, 11), what `confidence` is drawn from; columns as `evidence.EVIDENCE` names them."""
    second_opinion: Tensor
    """(B, 3, 3), where the blocks of the overlap would have src lie; NaN where they were not asked."""

    @classmethod
    def blank(cls, status: Sequence[Status], status_detail: Sequence[str | None]) -> AlignResult:
        """Return results of pairs that nothing was estimated for."""
        batch = len(status)

        def nan(*shape: int) -> Tensor:
            return torch.full((batch, *shape), math.nan, dtype=torch.float64)

        return cls(
            status=list(status),
            status_detail=list(status_detail),
            dst_homo_src=nan(3, 3),
            confidence=torch.zeros(batch, dtype=torch.float64),
            corner_std_px=nan(),
            corner_covariance=nan(4, 2, 2),
            photometric_l1=nan(),
            zncc=nan(),
            overlap=nan(),
            inlier_ratio=nan(),
            forward_backward_px=nan(),
            gain=nan(),
            bias=nan(),
            initialisation=[None] * batch,
            stop_reason=[StopReason.NOT_STARTED] * batch,
            num_iterations=torch.zeros(batch, dtype=torch.int32),
            levels=[[] for _ in range(batch)],
            gt_corner_error_px=nan(),
            gt_corner_error_max_px=nan(),
            gt_reprojection_l1=nan(),
            evidence=nan(len(EVIDENCE)),
            second_opinion=nan(3, 3),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[AlignResult]) -> AlignResult:
        """Return the results of several batches as one, in order."""
        joined: dict[str, object] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            is_tensor = isinstance(values[0], Tensor)
            joined[field.name] = torch.cat(values) if is_tensor else [entry for value in values for entry in value]
        return cls(**joined)  # type: ignore[arg-type]

    def select(self, index: Tensor) -> AlignResult:
        """Return the pairs that `index` (int64) names."""
        chosen: dict[str, object] = {}
        for field in fields(self):
            mine = getattr(self, field.name)
            chosen[field.name] = mine[index] if isinstance(mine, Tensor) else [mine[i] for i in index.tolist()]
        return AlignResult(**chosen)  # type: ignore[arg-type]

    def put(self, index: Tensor, part: AlignResult) -> AlignResult:
        """Return these results with the pairs that `index` (int64) names replaced by `part`."""
        changed: dict[str, object] = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(part, field.name)
            if isinstance(mine, Tensor):
                changed[field.name] = mine.index_copy(0, index, theirs)
                continue
            entries = list(mine)
            for i, entry in zip(index.tolist(), theirs, strict=True):
                entries[i] = entry
            changed[field.name] = entries
        return AlignResult(**changed)  # type: ignore[arg-type]
