"""From normal equations to a step, and from a step to the next state: ten parameters in sixteen places, float64.

A state is a vector (16,): nine numbers of the matrix, row by row, gain, bias, and zeros.
"""

from __future__ import annotations

import triton.language as tl

from homoalign.gpu.compiler import compiled, element
from homoalign.optimisation.solver import LONGEST_EXTRAPOLATION

_LONGEST = tl.constexpr(LONGEST_EXTRAPOLATION)
_INFINITY = tl.constexpr(float("inf"))
_NAN = tl.constexpr(float("nan"))


@compiled
def scale_to_residual(JtJ: tl.tensor, Jtr: tl.tensor, free: tl.tensor, gain: tl.tensor) -> tl.tuple:
    """Turn the template's sums into those of the residual; rows that are not free become the identity's.

    Args:
        JtJ: (16, 16).
        Jtr: (16,).
        free: (16,), 1 for parameters that are solved for, else 0.
        gain: the residual's slopes along the motion over the template's.
    """
    size = free * tl.where(tl.arange(0, 16) < 8, gain, 1.0)
    is_diagonal = tl.arange(0, 16)[:, None] == tl.arange(0, 16)[None, :]
    scaled = JtJ * size[:, None] * size[None, :]
    return tl.where(is_diagonal & (free[:, None] == 0), 1.0, scaled), -Jtr * size


@compiled
def damped_step(JtJ: tl.tensor, Jtr: tl.tensor, damping: tl.tensor) -> tl.tuple:
    """Solve (JtJ + damping * diag(JtJ)) step = -Jtr, as `solver.damped_step` does.

    Returns:
        step: (16,), zero where `solved` is False.
        solved: False where a pivot is not positive: the matrix is not positive definite, or NaN.
    """
    index = tl.arange(0, 16)
    row, column = index[:, None], index[None, :]
    diagonal = tl.sum(tl.where(row == column, JtJ, 0.0), axis=1)
    inverse_size = tl.where(diagonal > 0, 1.0 / tl.sqrt(diagonal), _NAN)
    matrix = JtJ * inverse_size[:, None] * inverse_size[None, :] + tl.where(row == column, damping, 0.0)
    wanted = -Jtr * inverse_size
    # Nothing else is in the last column: Gauss and Jordan's elimination takes the right side along.
    matrix = tl.where(column == 15, wanted[:, None], matrix)
    solved = damping == damping  # noqa: PLR0124
    for k in range(10):
        pivot_row = tl.sum(tl.where(row == k, matrix, 0.0), axis=0)
        pivot = tl.sum(tl.where(index == k, pivot_row, 0.0))
        solved &= pivot > 0
        share = tl.sum(tl.where(column == k, matrix, 0.0), axis=1) / pivot
        matrix -= tl.where(index == k, 0.0, share)[:, None] * pivot_row[None, :]
    pivots = tl.sum(tl.where(row == column, matrix, 0.0), axis=1)
    step = tl.where(index < 10, tl.sum(tl.where(column == 15, matrix, 0.0), axis=1) / pivots * inverse_size, 0.0)
    solved &= tl.max(tl.where(tl.abs(step) < _INFINITY, 0, 1)) == 0
    return tl.where(solved, step, 0.0), solved


@compiled
def mixing_of(JtJ: tl.tensor, plain_step: tl.tensor, last_plain: tl.tensor) -> tl.tensor:
    """Return how far `solver.Memory` extrapolates."""
    change = plain_step - last_plain
    metric_change = tl.sum(JtJ * change[None, :], axis=1)
    mixing = tl.sum(plain_step * metric_change) / tl.sum(change * metric_change)
    clamped = tl.where(mixing > _LONGEST, _LONGEST, tl.where(mixing < -_LONGEST, -_LONGEST, mixing))
    return tl.where(tl.abs(mixing) < _INFINITY, clamped, 0.0)


@compiled
def length_px(step: tl.tensor, corner_motion: tl.tensor) -> tl.tensor:
    """Return how far a step moves src's furthest corner, to first order, pixels of the level.

    Args:
        step: (16,).
        corner_motion: (8, 8) float64, four corners along x and four along y.
    """
    i, corner = tl.arange(0, 16)[:, None], tl.arange(0, 4)[None, :]
    along_x = tl.load(corner_motion + 8 * i + corner, mask=i < 8, other=0.0)
    along_y = tl.load(corner_motion + 8 * i + corner + 4, mask=i < 8, other=0.0)
    x, y = tl.sum(step[:, None] * along_x, axis=0), tl.sum(step[:, None] * along_y, axis=0)
    return tl.sqrt(tl.max(x * x + y * y))


@compiled
def times_table(vector: tl.tensor, table: tl.tensor, ROWS: tl.constexpr) -> tl.tensor:
    """Return (16,), the first `ROWS` numbers of a vector times a table (ROWS, 9) float64."""
    i, j = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    cells = tl.load(table + 9 * i + j, mask=(i < ROWS) & (j < 9), other=0.0)
    return tl.sum(tl.where(i < ROWS, vector[:, None], 0.0) * cells, axis=0)


@compiled
def move(state: tl.tensor, step: tl.tensor, basis: tl.tensor, src_motion: tl.tensor) -> tl.tensor:
    """Return the state after a step: `homography.motion_of_step` on src's side, gain and bias added to.

    Args:
        state: (16,).
        step: (16,).
        basis: (8, 9) float64, `SL3_BASIS`.
        src_motion: (9, 9) float64, of the `Frame`.
    """
    index = tl.arange(0, 16)
    half = times_table(step * -0.5, basis, 8)
    identity = tl.where((index % 4 == 0) & (index < 9), 1.0, 0.0)
    motion = _product(_inverse(identity - half), identity + half)
    moved = _product(state, times_table(motion, src_motion, 9))
    moved = tl.where(index == 8, 1.0, moved / element(moved, 8))
    light = state + pick(step, index - 1)  # gain and bias come a place later in a state than in a step
    return tl.where(index < 9, moved, tl.where(index < 11, light, 0.0))


@compiled
def pick(vector: tl.tensor, place: tl.tensor) -> tl.tensor:
    """Return the numbers of a vector (16,) at places (16,), zero where there is no such place."""
    return tl.sum(tl.where(place[:, None] == tl.arange(0, 16)[None, :], vector[None, :], 0.0), axis=1)


@compiled
def _product(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Return the product of the 3x3 matrices that two vectors (16,) begin with, row by row."""
    i, j = tl.arange(0, 16) // 3, tl.arange(0, 16) % 3
    total = pick(a, 3 * i) * pick(b, j) + pick(a, 3 * i + 1) * pick(b, 3 + j)
    return total + pick(a, 3 * i + 2) * pick(b, 6 + j)


@compiled
def _inverse(a: tl.tensor) -> tl.tensor:
    """Return the inverse of the 3x3 matrix that a vector (16,) begins with, by its cofactors."""
    index = tl.arange(0, 16)
    i, j = index // 3, index % 3
    p, q, r, s = 3 * ((j + 1) % 3), 3 * ((j + 2) % 3), (i + 1) % 3, (i + 2) % 3
    cofactor = pick(a, p + r) * pick(a, q + s) - pick(a, p + s) * pick(a, q + r)
    determinant = tl.sum(tl.where(index < 3, a * pick(cofactor, 3 * index), 0.0))
    return cofactor / determinant
