"""`solver.solve` for one pair after another, compiled for the processor: on intensities, or on channels of structure.

The same algorithm, step by step: what is written in `solver.py` about why holds here. There it serves any problem, in
batches, as GPUs want it; here a pair's points stay in the cache, and no pair waits for another.

B pairs, C channels, N points, P = 8 + 2 parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homoalign.kernels.compiler import BLOCK, Bools, Doubles, Floats, arrays, compiled
from homoalign.kernels.reading import read_pair
from homoalign.kernels.robust import robust_scale_of, tail_share_of
from homoalign.kernels.steps import damped_step, length_of, mixing_of, move
from homoalign.kernels.sums import accumulate, accumulate_score, mirror
from homoalign.optimisation.residual import BORDER_PX, LEAST_DEPTH_RATIO, Alignment, DirectProblem, Frame
from homoalign.optimisation.solver import (
    CLEAN_TAIL,
    CONVERGED,
    INITIAL_DAMPING,
    KEEP_PX,
    LARGEST_DAMPING,
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

LANES = 64
FACTORS = 16
"""So many factors 1 + (r / width)^2 are multiplied before their logarithm is taken; float64 holds the product."""


@dataclass(frozen=True, slots=True)
class Points:
    """What is compared, and where.

    Attributes:
        image: (B, C, H, W) float32, to be read; (B, C, H + 2, W + 2) coefficients where `is_spline`.
        mask: (B, 1, H, W) float32, what is used of it; None: all is.
        is_spline: whether it is read by a cubic spline, else bilinearly.
        u: (B, 2, N) float32, centred coordinates in src.
        usable: (B, N) bool.
        value: (B, C, N) float32, of src.
        slope: (B, C, 2, N) float32, how it changes along x and y, per centred unit.
        brightness: (B, C, N) float32, how it changes with the gain.
        scale_floor: (B,) float64, least scale of the robust loss.
        free: (10,) float64, 1 for parameters that are solved for.
        frame: constant matrices of the level.
    """

    image: Tensor
    mask: Tensor | None
    is_spline: bool
    u: Tensor
    usable: Tensor
    value: Tensor
    slope: Tensor
    brightness: Tensor
    scale_floor: Tensor
    free: Tensor
    frame: Frame


class RunSettings(TypedDict):
    """How a run is to be done: the arguments of `solver.solve`."""

    max_iterations: int
    step_tol_px: float
    loss_width: float
    min_seen: Tensor
    slack: Slack
    clean_loss_width: NotRequired[float | None]


def solve_direct(problem: DirectProblem, start: Alignment, **settings: Unpack[RunSettings]) -> Solution[Alignment]:
    """Do what `solver.solve` does, for images on the processor; the arguments are the same."""
    template = problem.template
    points = Points(
        image=problem.dst.image,
        mask=problem.dst.mask,
        is_spline=problem.interpolation == "spline",
        u=template.u,
        usable=template.usable,
        value=template.value[:, None],
        slope=template.slope[:, None],
        brightness=template.brightness[:, None],
        scale_floor=problem.scale_floor,
        free=problem.freedom.free,
        frame=problem.frame,
    )
    return solve_points(points, start, **settings)


def solve_points(points: Points, start: Alignment, **settings: Unpack[RunSettings]) -> Solution[Alignment]:
    """Do what `solver.solve` does, for points on the processor; the arguments are the same.

    The residual of a state is what is read less `gain * value + bias`.
    """
    loss_width, slack = settings["loss_width"], settings["slack"]
    limits = (
        settings["max_iterations"],
        settings["step_tol_px"],
        loss_width,
        settings.get("clean_loss_width") or loss_width,
        slack.step_px,
        slack.cost,
    )
    frame = points.frame
    matrix, gain, bias = (part.clone().contiguous() for part in (start.dst_homo_src, start.gain, start.bias))
    stop = torch.full((len(gain),), MAX_ITERATIONS, dtype=torch.int64)
    num_iterations = torch.zeros(len(gain), dtype=torch.int32)
    no_mask = torch.empty(len(gain), 0, 0, dtype=torch.float32)
    arguments = [
        *arrays(points.image, no_mask if points.mask is None else points.mask[:, 0]),
        points.is_spline,
        *arrays(points.u, points.usable, points.value, points.slope, points.brightness, points.scale_floor),
        *arrays(points.free, frame.dst_homo_centred, frame.src_motion, frame.src_corners, frame.corner_motion),
        limits,
        *arrays(settings["min_seen"].double(), matrix, gain, bias, stop, num_iterations),
    ]
    _solve(*arguments)
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
    num_residuals = value.shape[1] * value.shape[2]
    residual, new_residual = np.empty(num_residuals, np.float32), np.empty(num_residuals, np.float32)
    seen, new_seen = np.empty(num_residuals, np.bool_), np.empty(num_residuals, np.bool_)
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
            solved = damped_step(JtJ, Jtr, damping, plain_step)
            mixing = mixing_of(JtJ, plain_step, last_plain) if has_memory and accepted else 0.0
            for i in range(10):
                step[i] = plain_step[i]
                if mixing != 0:
                    step[i] -= mixing * (last_step[i] + plain_step[i] - last_plain[i])
            move(state, step, src_motion, candidate)
            length_px = min(length_of(step, corner_motion), length_of(plain_step, corner_motion))
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
    """Write residuals, channel by channel and zero where not seen, and return how many are seen."""
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
    num_channels, num_points = value.shape
    by_channel, of_points = residual.reshape((num_channels, num_points)), seen[:num_points]
    read_pair(image, mask, matrix, u, usable, np.float32(BORDER_PX), is_spline, by_channel, of_points)
    gain, bias = np.float32(state[9]), np.float32(state[10])
    for c in range(num_channels):
        if c > 0:
            seen[c * num_points : (c + 1) * num_points] = of_points
        _subtract(gain, bias, value[c], of_points, by_channel[c])
    count = 0
    for k in range(num_points):
        count += num_channels if of_points[k] else 0
    return count


@compiled
def _subtract(gain: np.float32, bias: np.float32, value: Floats, seen: Bools, residual: Floats) -> None:
    zero = np.float32(0)
    for k in range(residual.size):
        residual[k] = residual[k] - (gain * value[k] + bias) if seen[k] else zero


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
    num_points = u.shape[1]
    for c in range(len(slope)):
        for first in range(0, num_points, BLOCK):
            last = min(num_points, first + BLOCK)
            of_block = residual[c * num_points + first : c * num_points + last]
            of_weight = weight[: last - first]
            _weigh(of_block, seen[first:last], over_width, of_weight)
            if is_curvature_new:
                accumulate(slope[c], brightness[c], u, of_block, of_weight, first, rows, JtJ, Jtr)
            else:
                accumulate_score(slope[c], brightness[c], u, of_block, of_weight, first, rows, Jtr)
    for i in range(10):
        Jtr[i] *= -free[i] * (gain if i < 8 else 1.0)
    if is_curvature_new:
        _finish_curvature(free, gain, JtJ)


@compiled
def _weigh(residual: Floats, seen: Bools, over_width: np.float32, weight: Floats) -> None:
    """Write Cauchy weights."""
    one, zero = np.float32(1), np.float32(0)
    for k in range(residual.size):
        in_widths = residual[k] * over_width
        weight[k] = one / (one + in_widths * in_widths) if seen[k] else zero


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
