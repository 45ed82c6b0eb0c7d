"""`solver.solve` for the intensities of one pair after another, compiled for the processor.

The same algorithm, step by step: what is written in `solver.py` about why holds here. There it serves any problem, in
batches, as GPUs want it; here a pair's points stay in the cache, and no pair waits for another.

N points, P = 8 + 2 parameters.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from homoalign.homography import SL3_BASIS
from homoalign.kernels.compiler import BLOCK, Bools, Doubles, Floats, compiled, factorise, solve_factorised
from homoalign.kernels.reading import read_pair
from homoalign.kernels.robust import robust_scale_of, tail_share_of
from homoalign.kernels.sums import accumulate, accumulate_score, mirror
from homoalign.residual import BORDER_PX, LEAST_DEPTH_RATIO, Alignment, DirectProblem
from homoalign.solver import (
    CLEAN_TAIL,
    CONVERGED,
    INITIAL_DAMPING,
    KEEP_PX,
    LARGEST_DAMPING,
    LONGEST_EXTRAPOLATION,
    MAX_ITERATIONS,
    NO_DESCENT,
    OVERLAP_LOST,
    RUNNING,
    SCALE_SAMPLES,
    SHORT_PX,
    TAIL_SCALES,
    Slack,
    Solution,
)

BASIS = SL3_BASIS.reshape(8, 9).numpy()
LANES = 64
FACTORS = 16
"""So many factors 1 + (r / width)^2 are multiplied before their logarithm is taken; float64 holds the product."""


def solve_direct(
    problem: DirectProblem,
    start: Alignment,
    *,
    max_iterations: int,
    step_tol_px: float,
    loss_width: float,
    min_seen: torch.Tensor,
    slack: Slack,
    clean_loss_width: float | None = None,
) -> Solution[Alignment]:
    """Do what `solver.solve` does, for images on the processor; the arguments are the same."""
    template, frame = problem.template, problem.frame
    matrix, gain, bias = (part.clone().contiguous() for part in (start.dst_homo_src, start.gain, start.bias))
    stop = torch.full((len(gain),), MAX_ITERATIONS, dtype=torch.int64)
    num_iterations = torch.zeros(len(gain), dtype=torch.int32)
    mask = problem.dst.mask
    no_mask = torch.empty(len(gain), 0, 0)
    _solve(
        problem.dst.image[:, 0].contiguous().numpy(),
        (no_mask if mask is None else mask[:, 0].contiguous()).numpy(),
        problem.interpolation == "spline",
        template.u.contiguous().numpy(),
        template.usable.contiguous().numpy(),
        template.value.contiguous().numpy(),
        template.slope.contiguous().numpy(),
        template.brightness.contiguous().numpy(),
        problem.scale_floor.contiguous().numpy(),
        problem.freedom.free.numpy(),
        frame.dst_homo_centred.numpy(),
        frame.src_motion.numpy(),
        frame.src_corners.numpy(),
        frame.corner_motion.numpy(),
        (max_iterations, step_tol_px, loss_width, clean_loss_width or loss_width, slack.step_px, slack.cost),
        min_seen.double().contiguous().numpy(),
        matrix.numpy(),
        gain.numpy(),
        bias.numpy(),
        stop.numpy(),
        num_iterations.numpy(),
    )
    return Solution(Alignment(matrix, gain, bias), stop, num_iterations)


@compiled
def _solve(
    image: Floats,
    mask: Floats,
    is_spline: bool,
    u: Floats,
    usable: Bools,
    value: Floats,
    slope: Floats,
    brightness: Floats,
    scale_floor: Doubles,
    free: Doubles,
    dst_homo_centred: Doubles,
    src_motion: Doubles,
    src_corners: Doubles,
    corner_motion: Doubles,
    limits: tuple[int, float, float, float, float, float],
    min_seen: Doubles,
    matrix: Doubles,
    gain: Doubles,
    bias: Doubles,
    stop: NDArray[np.int64],
    num_iterations: NDArray[np.int32],
) -> None:
    max_iterations, step_tol_px, loss_width, clean_loss_width, slack_px, slack_cost = limits
    num_points = u.shape[2]
    residual, new_residual = np.empty(num_points, np.float32), np.empty(num_points, np.float32)
    seen, new_seen = np.empty(num_points, np.bool_), np.empty(num_points, np.bool_)
    JtJ, Jtr, step = np.empty((10, 10)), np.empty(10), np.empty(10)
    plain_step, last_plain, last_step = np.empty(10), np.empty(10), np.empty(10)
    state, candidate = np.empty(11), np.empty(11)  # a flat matrix, gain, bias
    for b in range(len(u)):
        for k in range(9):
            state[k] = matrix[b, k // 3, k % 3]
        state[9], state[10] = gain[b], bias[b]
        count = _evaluate(
            image[b], mask[b], is_spline, u[b], usable[b], value[b], dst_homo_centred, src_corners, state, residual,
            seen,
        )  # fmt: skip
        reason = RUNNING if count >= min_seen[b] else OVERLAP_LOST
        damping, has_memory, accepted, length_px = INITIAL_DAMPING, False, False, np.inf
        iteration, in_scales = 0, loss_width
        while iteration < max_iterations and reason == RUNNING:
            iteration += 1
            scale = max(robust_scale_of(residual, seen, SCALE_SAMPLES), scale_floor[b])
            if iteration == 1 and clean_loss_width != loss_width:
                is_clean = tail_share_of(residual, seen, TAIL_SCALES * scale) <= CLEAN_TAIL
                in_scales = clean_loss_width if is_clean else loss_width
            width = in_scales * scale
            _normal_equations(
                slope[b], brightness[b], u[b], residual, seen, np.float32(1 / width), state[9], free,
                not length_px <= KEEP_PX, JtJ, Jtr,
            )  # fmt: skip
            solved = _damped_step(JtJ, Jtr, damping, plain_step)
            mixing = _mixing(JtJ, plain_step, last_plain) if has_memory and accepted else 0.0
            for i in range(10):
                step[i] = plain_step[i]
                if mixing != 0:
                    step[i] -= mixing * (last_step[i] + plain_step[i] - last_plain[i])
            _move(state, step, src_motion, candidate)
            length_px = min(_length_px(step, corner_motion), _length_px(plain_step, corner_motion))
            if solved and length_px <= step_tol_px:  # of a step this short the cost says nothing
                state[:] = candidate
                reason = CONVERGED
                break
            new_count = _evaluate(
                image[b], mask[b], is_spline, u[b], usable[b], value[b], dst_homo_centred, src_corners, candidate,
                new_residual, new_seen,
            )  # fmt: skip
            old_cost, new_cost = _costs(residual, seen, new_residual, new_seen, 1 / width)
            enough = new_count >= min_seen[b]
            bound = old_cost * (1 + slack_cost) if length_px <= slack_px else old_cost
            accepted = solved and enough and new_cost < bound
            has_memory = True
            last_plain[:] = plain_step
            last_step[:] = step
            if accepted:
                state[:] = candidate
                residual, new_residual = new_residual, residual
                seen, new_seen = new_seen, seen
                damping = max(damping / 10, 1e-9)
            elif mixing == 0:  # a rejected extrapolation says nothing against the plain step
                damping = max(damping * 10, 1e-3)
            stalled = not accepted and enough and mixing == 0 and length_px <= SHORT_PX
            if solved and stalled:
                reason = CONVERGED
            elif damping > LARGEST_DAMPING:
                reason = NO_DESCENT
        for k in range(9):
            matrix[b, k // 3, k % 3] = state[k]
        gain[b], bias[b] = state[9], state[10]
        stop[b] = MAX_ITERATIONS if reason == RUNNING else reason
        num_iterations[b] = iteration


@compiled
def _evaluate(
    image: Floats,
    mask: Floats,
    is_spline: bool,
    u: Floats,
    usable: Bools,
    value: Floats,
    dst_homo_centred: Doubles,
    src_corners: Doubles,
    state: Doubles,
    residual: Floats,
    seen: Bools,
) -> int:
    """Write residuals, zero where not seen, and return how many are seen."""
    nearest, furthest = np.inf, -np.inf
    for corner in range(4):
        w = state[6] * src_corners[0, corner] + state[7] * src_corners[1, corner] + state[8] * src_corners[2, corner]
        nearest, furthest = min(nearest, w), max(furthest, w)
        if not math.isfinite(w):
            nearest = -1.0
    if not (nearest > 0 and nearest > LEAST_DEPTH_RATIO * furthest):
        for k in range(residual.size):
            residual[k], seen[k] = 0, False
        return 0
    matrix = np.empty((3, 3), np.float32)
    for j in range(9):
        total = 0.0
        for i in range(9):
            total += state[i] * dst_homo_centred[i, j]
        matrix[j // 3, j % 3] = total
    read_pair(image, mask, matrix, u, usable, np.float32(BORDER_PX), is_spline, residual, seen)
    gain, bias, zero = np.float32(state[9]), np.float32(state[10]), np.float32(0)
    count = 0
    for k in range(residual.size):
        count += seen[k]
        residual[k] = residual[k] - (gain * value[k] + bias) if seen[k] else zero
    return count


@compiled
def _normal_equations(
    slope: Floats,
    brightness: Floats,
    u: Floats,
    residual: Floats,
    seen: Bools,
    over_width: np.float32,
    gain: float,
    free: Doubles,
    is_curvature_new: bool,
    JtJ: Doubles,
    Jtr: Doubles,
) -> None:
    """Write the normal equations under Cauchy weights; the rows of parameters that are not free are the identity's.

    JtJ stays as it is unless `is_curvature_new`.
    """
    weight = np.empty(BLOCK, np.float32)
    rows = np.empty((20, BLOCK), np.float32)
    Jtr[:] = 0
    if is_curvature_new:
        JtJ[:] = 0
    one, zero = np.float32(1), np.float32(0)
    for first in range(0, residual.size, BLOCK):
        last = min(residual.size, first + BLOCK)
        of_block, seen_of_block = residual[first:last], seen[first:last]
        for k in range(last - first):
            in_widths = of_block[k] * over_width
            weight[k] = one / (one + in_widths * in_widths) if seen_of_block[k] else zero
        if is_curvature_new:
            accumulate(slope, brightness, u, of_block, weight[: last - first], first, rows, JtJ, Jtr)
        else:
            accumulate_score(slope, brightness, u, of_block, weight[: last - first], first, rows, Jtr)
    for i in range(10):
        Jtr[i] *= -free[i] * (gain if i < 8 else 1.0)
    if is_curvature_new:
        _finish_curvature(free, gain, JtJ)


@compiled
def _finish_curvature(free: Doubles, gain: float, JtJ: Doubles) -> None:
    """Turn the template's sums into those of the residual."""
    mirror(JtJ)
    for i in range(10):
        for j in range(10):
            JtJ[i, j] *= free[i] * (gain if i < 8 else 1.0) * free[j] * (gain if j < 8 else 1.0)
        if free[i] == 0:
            JtJ[i, i] = 1.0


@compiled
def _damped_step(JtJ: Doubles, Jtr: Doubles, damping: float, step: Doubles) -> bool:
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
def _mixing(JtJ: Doubles, plain_step: Doubles, last_plain: Doubles) -> float:
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
def _move(state: Doubles, step: Doubles, src_motion: Doubles, moved: Doubles) -> None:
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
def _length_px(step: Doubles, corner_motion: Doubles) -> float:
    """How far a step moves src's furthest corner, to first order, pixels of the level."""
    furthest = 0.0
    for corner in range(4):
        x, y = 0.0, 0.0
        for i in range(8):
            x += step[i] * corner_motion[i, corner]
            y += step[i] * corner_motion[i, 4 + corner]
        furthest = max(furthest, x * x + y * y)
    return math.sqrt(furthest)


@compiled
def _costs(
    residual: Floats, seen: Bools, new_residual: Floats, new_seen: Bools, over_width: float
) -> tuple[float, float]:
    """Return the Cauchy loss of two states, summed over what both see."""
    old, new = 0.0, 0.0
    of_old, of_new = np.empty(LANES), np.empty(LANES)
    for first in range(0, residual.size, LANES * FACTORS):
        for k in range(LANES):
            of_old[k], of_new[k] = 1, 1
        for start in range(first, min(residual.size, first + LANES * FACTORS), LANES):
            last = min(residual.size, start + LANES)
            _multiply_factors(
                residual[start:last], new_residual[start:last], seen[start:last], new_seen[start:last], over_width,
                of_old, of_new,
            )  # fmt: skip
        for k in range(LANES):
            old += math.log(of_old[k])
            new += math.log(of_new[k])
    return old, new


@compiled
def _multiply_factors(
    residual: Floats,
    new_residual: Floats,
    seen: Bools,
    new_seen: Bools,
    over_width: float,
    of_old: Doubles,
    of_new: Doubles,
) -> None:
    for k in range(residual.size):
        both = over_width if seen[k] & new_seen[k] else 0.0
        old, new = residual[k] * both, new_residual[k] * both
        of_old[k] *= 1 + old * old
        of_new[k] *= 1 + new * new
