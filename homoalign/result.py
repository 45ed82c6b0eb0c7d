"""`AlignResult`: what `align` returns, one entry a pair, named as the result columns.

B pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from homoalign.status import Initialisation, Status, StopReason


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelTrace:
    """How one pyramid level of one pair ended."""

    level: int
    """0 is the full-size image."""
    height: int
    """Of src at this level, pixels."""
    width: int
    num_iterations: int
    photometric_l1: float
    """Mean absolute difference of the warped source and dst at this level, intensities in [0, 1]."""
    gt_reprojection_l1: float
    """Mean absolute difference of src warped by this level's estimate and by the truth; NaN without it."""


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
