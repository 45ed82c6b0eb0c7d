"""One pair's steps: from normal equations to a step, to where it leads and how far that is.

P = 8 + 2 parameters; motion is that of `homography.SL3_BASIS`.
"""

from __future__ import annotations

import math

import numpy as np

from homoalign.homography import SL3_BASIS
from homoalign.kernels.compiler import Doubles, compiled, factorise, solve_factorised
from homoalign.optimisation.solver import LONGEST_EXTRAPOLATION

BASIS = SL3_BASIS.reshape(8, 9).numpy()


@compiled
def damped_step(JtJ: Doubles, Jtr: Doubles, damping: float, step: Doubles) -> bool:
    """Solve (JtJ + damping * diag(JtJ)) step = -Jtr by Cholesky's method; False, and a zero step, where it fails."""
    scaled, inverse_size = np.empty((10, 10)), np.empty(10)
    for i in range(10):
        inverse_size[i] = 1 / math.sqrt(JtJ[i, i]) if JtJ[i, i] > 0 else math.nan
    for i in range(10):
        for j in range(i + 1):
            scaled[i, j] = JtJ[i, j] * inverse_size[i] * inverse_size[j]
        scaled[i, i] += damping
        step[i] = -Jtr[i] * inverse_size[i]
    solved = factorise(scaled)
    if solved:
        solve_factorised(scaled, step)
    for i in range(10):
        step[i] *= inverse_size[i]
        solved = solved and math.isfinite(step[i])
    for i in range(10):
        step[i] = step[i] if solved else 0.0
    return solved


@compiled
def mixing_of(JtJ: Doubles, plain_step: Doubles, last_plain: Doubles) -> float:
    """How far `solver.Memory` extrapolates."""
    along, across = 0.0, 0.0
    for i in range(10):
        of_metric = 0.0
        for j in range(10):
            of_metric += JtJ[i, j] * (plain_step[j] - last_plain[j])
        along += plain_step[i] * of_metric
        across += (plain_step[i] - last_plain[i]) * of_metric
    mixing = along / across
    return min(max(mixing, -LONGEST_EXTRAPOLATION), LONGEST_EXTRAPOLATION) if math.isfinite(mixing) else 0.0


@compiled
def move(state: Doubles, step: Doubles, src_motion: Doubles, moved: Doubles) -> None:
    """Write the state after a step: `homography.motion_of_step` on src's side, gain and bias added to."""
    plus, minus, inverse = np.empty(9), np.empty(9), np.empty(9)
    for k in range(9):
        half = 0.0
        for i in range(8):
            half -= step[i] * BASIS[i, k] / 2
        diagonal = 1.0 if k % 4 == 0 else 0.0
        plus[k], minus[k] = diagonal + half, diagonal - half
    _invert(minus, inverse)
    motion, change = np.empty(9), np.empty(9)
    _multiply_matrices(inverse, plus, motion)
    for k in range(9):
        change[k] = 0
        for i in range(9):
            change[k] += motion[i] * src_motion[i, k]
    _multiply_matrices(state, change, moved)
    for k in range(9):
        moved[k] /= moved[8] if k < 8 else 1.0
    moved[8] = 1.0
    moved[9], moved[10] = state[9] + step[8], state[10] + step[9]


@compiled
def _multiply_matrices(a: Doubles, b: Doubles, product: Doubles) -> None:
    """Write the product of two 3x3 matrices, row by row."""
    for i in range(3):
        for j in range(3):
            product[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j]


@compiled
def _invert(a: Doubles, inverse: Doubles) -> None:
    """Write the inverse of a 3x3 matrix, by its cofactors."""
    for i in range(3):
        for j in range(3):
            p, q, r, s = 3 * ((j + 1) % 3), 3 * ((j + 2) % 3), (i + 1) % 3, (i + 2) % 3
            inverse[3 * i + j] = a[p + r] * a[q + s] - a[p + s] * a[q + r]
    determinant = a[0] * inverse[0] + a[1] * inverse[3] + a[2] * inverse[6]
    for k in range(9):
        inverse[k] /= determinant


@compiled
def length_of(step: Doubles, corner_motion: Doubles) -> float:
    """How far a step moves src's furthest corner, to first order, pixels of the level."""
    furthest = 0.0
    for corner in range(4):
        x, y = 0.0, 0.0
        for i in range(8):
            x += step[i] * corner_motion[i, corner]
            y += step[i] * corner_motion[i, 4 + corner]
        furthest = max(furthest, x * x + y * y)
    return math.sqrt(furthest)
