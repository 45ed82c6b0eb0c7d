"""A state is tried: where it puts the points, what residuals it leaves, and whether its cost is lower."""

from __future__ import annotations

import triton.language as tl

from homoalign.gpu.compiler import compiled, element
from homoalign.gpu.reading import UNSEEN, residuals_at
from homoalign.gpu.steps import times_table
from homoalign.optimisation.residual import LEAST_DEPTH_RATIO

_LEAST_DEPTH_RATIO, _INFINITY = tl.constexpr(LEAST_DEPTH_RATIO), tl.constexpr(float("inf"))


@compiled
def placement(
    state: tl.tensor, dst_homo_centred: tl.tensor, src_corners: tl.tensor, num_points: tl.tensor
) -> tuple[tl.tuple, tl.tensor]:
    """Return the matrix from centred coordinates to dst's pixels, nine float32, and how many points to read.

    None where src, seen in dst, does not stay well in front of the horizon.
    """
    i, corner = tl.arange(0, 16)[:, None], tl.arange(0, 4)[None, :]
    corners = tl.load(src_corners + 4 * (i - 6) + corner, mask=(i >= 6) & (i < 9), other=0.0)
    w = tl.sum(tl.where((i >= 6) & (i < 9), state[:, None], 0.0) * corners, axis=0)
    w = tl.where(tl.abs(w) < _INFINITY, w, -1.0)
    nearest, furthest = tl.min(w), tl.max(w)
    plausible = (nearest > 0) & (nearest > furthest * _LEAST_DEPTH_RATIO)
    placed = times_table(state, dst_homo_centred, 9).to(tl.float32)
    matrix: tl.tuple = ()
    for j in tl.static_range(9):
        matrix = matrix + (element(placed, j),)  # noqa: RUF005
    return matrix, tl.where(plausible, num_points, 0)


@compiled
def try_state(
    image: tl.tensor,
    mask: tl.tensor,
    usable: tl.tensor,
    value: tl.tensor,
    u: tl.tensor,
    v: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    matrix: tl.tuple,
    gain: tl.tensor,
    bias: tl.tensor,
    old_residual: tl.tensor,
    new_residual: tl.tensor,
    num_points: tl.tensor,
    over_width: tl.tensor,
    IS_SPLINE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tuple:
    """Write the residuals of a state that is tried.

    Returns:
        count: how many points it sees, float64.
        old_cost: Cauchy loss of the state before, summed over what both see, float64.
        rise: by how much the loss is more now, float64.
    """
    count, old_cost, rise = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for first in range(0, num_points, BLOCK):
        k = first + tl.arange(0, BLOCK)
        new = residuals_at(
            image, mask, usable, value, u, v, height, width, matrix, gain, bias, k, num_points, IS_SPLINE, HAS_MASK
        )
        old = tl.load(old_residual + k, mask=k < num_points, other=UNSEEN)
        tl.store(new_residual + k, new, mask=k < num_points)
        both = (new != UNSEEN) & (old != UNSEEN)
        old_in_widths, new_in_widths = tl.where(both, old, 0.0) * over_width, tl.where(both, new, 0.0) * over_width
        old_loss = tl.log(1.0 + old_in_widths * old_in_widths)
        # Differences first: what they lose to rounding is a share of them, not of the whole.
        more = tl.log(1.0 + new_in_widths * new_in_widths) - old_loss
        count += (new != UNSEEN).to(tl.int32)
        old_cost += old_loss.to(tl.float64)
        rise += more.to(tl.float64)
    return tl.sum(count).to(tl.float64), tl.sum(old_cost), tl.sum(rise)
