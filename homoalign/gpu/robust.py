"""How large residuals are: the robust scale, the share in the tail."""

from __future__ import annotations

import triton.language as tl

from homoalign.gpu.compiler import compiled
from homoalign.gpu.reading import UNSEEN
from homoalign.kernels.robust import SCALE_OF_MEDIAN

_SCALE_OF_MEDIAN = tl.constexpr(SCALE_OF_MEDIAN)


@compiled
def robust_scale_of(residual: tl.tensor, num_points: tl.tensor, stride: tl.tensor, SLOTS: tl.constexpr) -> tl.tensor:
    """Return 1.4826 times the median absolute residual, float64; 0 where nothing is seen.

    Args:
        residual: (N,) float32.
        num_points: N.
        stride: every so many-th residual is looked at.
        SLOTS: a power of two, no fewer than are looked at.
    """
    k = tl.arange(0, SLOTS) * stride
    sample = tl.load(residual + k, mask=k < num_points, other=UNSEEN)
    count = tl.sum((sample != UNSEEN).to(tl.int32))
    bits = tl.where(sample != UNSEEN, sample.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7FFFFFFF)
    median = _of_rank(bits, (count - 1) // 2).to(tl.float32, bitcast=True).to(tl.float64)
    return tl.where((count > 0) & (median == median), median * _SCALE_OF_MEDIAN, 0.0)  # noqa: PLR0124


@compiled
def _of_rank(bits: tl.tensor, rank: tl.tensor) -> tl.tensor:
    """Return the value of a rank, the least having 0, of int32 none of which is negative: bit after bit."""
    found = tl.full((), 0, tl.int32)
    for i in range(31):
        longer = found | (1 << (30 - i))
        found = tl.where(tl.sum((bits < longer).to(tl.int32)) <= rank, longer, found)
    return found


@compiled
def tail_share_of(residual: tl.tensor, num_points: tl.tensor, limit: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Return the share of the residuals (N,) seen that are beyond a limit, float32; NaN where nothing is seen."""
    beyond, count = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    for first in range(0, num_points, BLOCK):
        k = first + tl.arange(0, BLOCK)
        values = tl.load(residual + k, mask=k < num_points, other=UNSEEN)
        seen = values != UNSEEN
        beyond += (seen & (tl.abs(values) > limit)).to(tl.int32)
        count += seen.to(tl.int32)
    return tl.sum(beyond).to(tl.float64) / tl.sum(count).to(tl.float64)
