"""How every level of a pair ended, where the caller wants to know.

B pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from homoalign.homography import image_size
from homoalign.levels import metrics
from homoalign.levels.pyramid import Level


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


def merged(first: list[LevelTrace], then: list[LevelTrace]) -> list[LevelTrace]:
    """Return one trace of both solvers, a level once: where it ended, after as many iterations as both took."""
    merged = {trace.level: trace for trace in first}
    for trace in then:
        before = merged[trace.level].num_iterations if trace.level in merged else 0
        merged[trace.level] = replace(trace, num_iterations=before + trace.num_iterations)
    return [merged[level] for level in sorted(merged, reverse=True)]


def append_level(
    levels: list[list[LevelTrace]],
    level: int,
    src: Level,
    dst: Level,
    dst_homo_src: Tensor,
    dst_homo_src_gt: Tensor | None,
    num_iterations: Tensor,
) -> None:
    """Add a finished level to every pair's trace; the matrices are in that level's pixels."""
    size = image_size(dst.image)
    if dst_homo_src_gt is None:
        reprojection = [math.nan] * len(levels)
    else:
        reprojection = metrics.reprojection_l1(src.image, dst_homo_src, dst_homo_src_gt, size).tolist()
    photometric = metrics.photometric_l1(src, dst, dst_homo_src).tolist()
    height, width = image_size(src.image)
    for i, pair in enumerate(levels):
        pair.append(
            LevelTrace(
                level=level,
                height=height,
                width=width,
                num_iterations=int(num_iterations[i]),
                photometric_l1=photometric[i],
                gt_reprojection_l1=reprojection[i],
            )
        )
