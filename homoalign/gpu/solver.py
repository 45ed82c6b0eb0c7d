"""`solver.solve` for the intensities of pairs on a CUDA device: a program solves a pair, and then it ends.

The same algorithm as `kernels.solver`, step by step. All iterations of a run are in one kernel, so the host waits for
nothing, and a pair that has converged gives its place to the next. Residuals lie in global memory, twice: of the state
that was kept last and of the one that is tried. An iteration passes over the points twice, for between the residuals
and their weights stands the median of all: one pass warps, reads, and compares the costs, the other sums.

A pair is no quicker than its program: with fewer pairs than the device has places, some hundreds, most of it is idle.

B pairs, N points, P = 8 + 2 parameters.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from homoalign.gpu.compiler import element, program
from homoalign.gpu.robust import robust_scale_of, tail_share_of
from homoalign.gpu.steps import damped_step, length_px, mixing_of, move, scale_to_residual
from homoalign.gpu.sums import normal_equations
from homoalign.gpu.trial import placement, try_state
from homoalign.homography import SL3_BASIS
from homoalign.kept import kept
from homoalign.optimisation.residual import Alignment, DirectProblem
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

NUM_WARPS = 8
NUM_REGISTERS = 128
"""A thread: two programs run on a multiprocessor at a time; what is spilled is not in the passes over the points."""

SUM_BLOCK = 32 * NUM_WARPS
"""A point a thread, see `sums.normal_equations`."""

SUMS_AT_ONCE = 2
EVALUATE_BLOCK = 2 * SUM_BLOCK

SLOTS = (2048, SCALE_SAMPLES, 2 * SCALE_SAMPLES)
"""For what the robust scale looks at: powers of two, few, for each is a kernel of its own; the odd stride leaves fewer
than twice what it asks for."""

_RUNNING, _CONVERGED, _MAX_ITERATIONS = tl.constexpr(RUNNING), tl.constexpr(CONVERGED), tl.constexpr(MAX_ITERATIONS)
_NO_DESCENT, _OVERLAP_LOST = tl.constexpr(NO_DESCENT), tl.constexpr(OVERLAP_LOST)
_INITIAL_DAMPING, _LARGEST_DAMPING = tl.constexpr(INITIAL_DAMPING), tl.constexpr(LARGEST_DAMPING)
_CLEAN_TAIL, _TAIL_SCALES = tl.constexpr(CLEAN_TAIL), tl.constexpr(TAIL_SCALES)
_KEEP_PX, _SHORT_PX = tl.constexpr(KEEP_PX), tl.constexpr(SHORT_PX)
_INFINITY = tl.constexpr(float("inf"))


def solve_on_device(
    problem: DirectProblem,
    start: Alignment,
    *,
    max_iterations: int,
    step_tol_px: float,
    loss_width: float,
    min_seen: Tensor,
    slack: Slack,
    clean_loss_width: float | None = None,
) -> Solution[Alignment]:
    """Do what `solver.solve` does, for images on a CUDA device; the arguments are the same."""
    template, frame, mask = problem.template, problem.frame, problem.dst.mask
    batch, _, num_points = template.u.shape
    stride = max(1, num_points // SCALE_SAMPLES) | 1  # as in `kernels.robust`
    u = template.u if template.u.stride(-1) == 1 else template.u.contiguous()
    image = problem.dst.image[:, 0].contiguous()
    states = torch.zeros(batch, 16, dtype=torch.float64, device=u.device)
    states[:, :9] = start.dst_homo_src.flatten(1)
    states[:, 9], states[:, 10] = start.gain, start.bias
    outcomes = torch.empty(batch, 2, dtype=torch.int32, device=u.device)
    with torch.cuda.device_of(u):  # type: ignore[no-untyped-call]
        _solve[(batch,)](
            image,
            image if mask is None else mask[:, 0].contiguous(),
            u,
            template.usable.contiguous().view(torch.uint8),
            template.value.contiguous(),
            template.slope.contiguous(),
            template.brightness.contiguous(),
            problem.scale_floor.contiguous(),
            problem.freedom.free,
            frame.dst_homo_centred,
            frame.src_motion,
            frame.src_corners,
            frame.corner_motion,
            _basis_on(u.device),
            min_seen.double().contiguous(),
            torch.empty(batch, 2, num_points, dtype=torch.float32, device=u.device),
            states,
            outcomes,
            num_points,
            stride,
            *problem.dst_size,
            u.stride(0),
            u.stride(1),
            max_iterations,
            float(step_tol_px),
            float(loss_width),
            float(clean_loss_width or loss_width),
            float(slack.step_px),
            float(slack.cost),
            IS_SPLINE=problem.interpolation == "spline",
            HAS_MASK=mask is not None,
            SLOTS=min(slots for slots in SLOTS if slots * stride >= num_points),
            EVALUATE_BLOCK=EVALUATE_BLOCK,
            SUM_BLOCK=SUM_BLOCK,
            SUMS_AT_ONCE=SUMS_AT_ONCE,
            num_warps=NUM_WARPS,
            maxnreg=NUM_REGISTERS,
            enable_fp_fusion=True,
        )
    state = Alignment(states[:, :9].reshape(-1, 3, 3), states[:, 9].clone(), states[:, 10].clone())
    return Solution(state, outcomes[:, 0].long(), outcomes[:, 1].clone())


@kept(16)
def _basis_on(device: torch.device) -> Tensor:
    """Return (8, 9) float64, the basis of motions; kept, for copying it there makes the host wait."""
    return SL3_BASIS.reshape(8, 9).to(device)


@program("num_points", "stride", "height", "width", "u_pair_stride", "u_row_stride", "max_iterations")
def _solve(
    image: tl.tensor,
    mask: tl.tensor,
    u: tl.tensor,
    usable: tl.tensor,
    value: tl.tensor,
    slope: tl.tensor,
    brightness: tl.tensor,
    scale_floor: tl.tensor,
    free: tl.tensor,
    dst_homo_centred: tl.tensor,
    src_motion: tl.tensor,
    src_corners: tl.tensor,
    corner_motion: tl.tensor,
    basis: tl.tensor,
    min_seen: tl.tensor,
    residuals: tl.tensor,
    states: tl.tensor,
    outcomes: tl.tensor,
    num_points: tl.tensor,
    stride: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    u_pair_stride: tl.tensor,
    u_row_stride: tl.tensor,
    max_iterations: tl.tensor,
    step_tol_px: tl.tensor,
    loss_width: tl.tensor,
    clean_loss_width: tl.tensor,
    slack_px: tl.tensor,
    slack_cost: tl.tensor,
    IS_SPLINE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SLOTS: tl.constexpr,
    EVALUATE_BLOCK: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    SUMS_AT_ONCE: tl.constexpr,
) -> None:
    pair, index = tl.program_id(0).to(tl.int64), tl.arange(0, 16)
    image += pair * (height + 2 * IS_SPLINE) * (width + 2 * IS_SPLINE)
    mask += pair * height * width
    u += pair * u_pair_stride
    v = u + u_row_stride
    usable, value, brightness = usable + pair * num_points, value + pair * num_points, brightness + pair * num_points
    slope, residuals = slope + pair * 2 * num_points, residuals + pair * 2 * num_points
    floor, least = tl.load(scale_floor + pair), tl.load(min_seen + pair)
    is_free = tl.load(free + index, mask=index < 10, other=0.0)
    candidate = tl.load(states + 16 * pair + index)
    state, kept = candidate, tl.full((), 0, tl.int32)  # which of the residuals are the state's
    plain_step, last_step = tl.zeros((16,), tl.float64), tl.zeros((16,), tl.float64)
    JtJ = tl.zeros((16, 16), tl.float64)
    iteration, reason = tl.full((), 0, tl.int32), tl.full((), _RUNNING, tl.int32)
    damping, mixing = tl.full((), _INITIAL_DAMPING, tl.float64), tl.full((), 0.0, tl.float64)
    length, in_scales = tl.full((), _INFINITY, tl.float64), tl.full((), 0.0, tl.float64) + loss_width
    solved, over_width = pair < 0, tl.full((), 0.0, tl.float32)
    while reason == _RUNNING:
        matrix, num_read = placement(candidate, dst_homo_centred, src_corners, num_points)
        count, old_cost, rise = try_state(
            image, mask, usable, value, u, v, height, width, matrix, element(candidate, 9).to(tl.float32),
            element(candidate, 10).to(tl.float32), residuals + kept * num_points, residuals + (1 - kept) * num_points,
            num_read, over_width, IS_SPLINE, HAS_MASK, EVALUATE_BLOCK,
        )  # fmt: skip
        tl.debug_barrier()  # other threads read what was written
        is_start, enough = iteration == 0, count >= least
        falls = rise < tl.where(length <= slack_px, slack_cost, 0.0) * old_cost
        accepted = is_start | (solved & enough & falls)
        state = tl.where(accepted, candidate, state)
        kept = tl.where(accepted, 1 - kept, kept)
        less = tl.maximum(damping / 10, tl.full((), 1e-9, tl.float64))  # a bare number would be float32
        more = tl.maximum(damping * 10, tl.full((), 1e-3, tl.float64))
        # A rejected extrapolation says nothing against the plain step.
        changed = tl.where(accepted, less, tl.where(mixing == 0, more, damping))
        damping = tl.where(is_start, damping, changed)
        stalled = solved & enough & (mixing == 0) & (length <= _SHORT_PX) & (accepted == 0)
        reason = tl.where(iteration >= max_iterations, _MAX_ITERATIONS, reason)
        reason = tl.where(damping > _LARGEST_DAMPING, _NO_DESCENT, reason)
        reason = tl.where(stalled, _CONVERGED, reason)
        reason = tl.where(is_start & (enough == 0), _OVERLAP_LOST, reason)
        if reason == _RUNNING:
            iteration += 1
            residual = residuals + kept * num_points
            scale = tl.maximum(robust_scale_of(residual, num_points, stride, SLOTS), floor)
            if is_start & (clean_loss_width != loss_width):
                limit = (scale * _TAIL_SCALES).to(tl.float32)
                is_clean = tail_share_of(residual, num_points, limit, EVALUATE_BLOCK) <= _CLEAN_TAIL
                in_scales = tl.where(is_clean, clean_loss_width, loss_width).to(tl.float64)
            over_width = (1.0 / (in_scales * scale)).to(tl.float32)
            products, Jtr = normal_equations(
                slope, brightness, u, v, residual, num_points, over_width, SUM_BLOCK, SUMS_AT_ONCE
            )
            products, Jtr = scale_to_residual(products, Jtr, is_free, element(state, 9))
            JtJ = tl.where(length <= _KEEP_PX, JtJ, products)
            last_plain = plain_step
            plain_step, solved = damped_step(JtJ, Jtr, damping)
            follows = accepted & (is_start == 0)
            mixing = tl.where(follows, mixing_of(JtJ, plain_step, last_plain), 0.0)
            longer = plain_step - mixing * (last_step + plain_step - last_plain)
            last_step = tl.where(mixing == 0, plain_step, longer)
            candidate = move(state, last_step, basis, src_motion)
            length = tl.minimum(length_px(last_step, corner_motion), length_px(plain_step, corner_motion))
            arrived = solved & (length <= step_tol_px)  # of a step this short the cost says nothing
            state = tl.where(arrived, candidate, state)
            reason = tl.where(arrived, _CONVERGED, reason)
    tl.store(states + 16 * pair + index, state)
    tl.store(outcomes + 2 * pair, reason)
    tl.store(outcomes + 2 * pair + 1, iteration)
