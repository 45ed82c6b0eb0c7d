"""The two solvers' ways down a pyramid, from a start to an alignment.

B pairs, C channels, H W rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign import homography, metrics, tutorial
from homoalign.arguments import Pairs
from homoalign.config import AlignConfig
from homoalign.homography import image_size
from homoalign.intensity import to_unit_range
from homoalign.pyramid import Level
from homoalign.refinement import refine_problem, refine_template
from homoalign.residual import Alignment, build_problem
from homoalign.result import LevelTrace
from homoalign.solver import REASONS, Slack, measure_precision, solve
from homoalign.status import StopReason
from homoalign.structure_problem import LevelRefiner, standing_still

SMALLEST_PROBLEM = 20
"""Twice the unknowns: with fewer residuals a robust fit says nothing."""

SIMILARITY, HOMOGRAPHY = 4, 8
"""Parameters of motion, the first of `homography.SL3_BASIS`."""

STRUCTURE_RUNS = 3
"""Times a level's structure is described anew."""

STRUCTURE_TOL_PX = 0.25
"""Structure is solved when the last run moves no corner further than this."""


REFINED_SLACK = Slack(step_px=1.0, cost=0.01)
"""What remains is a fraction of a pixel, and of flat, noisy pairs the cost does not tell where it ends."""


@dataclass(frozen=True, slots=True)
class Track:
    """Pairs on their way through the solver.

    Attributes:
        src: pyramid of the gray source images, full size first.
        dst: pyramid of the gray destination images, as many levels.
        pairs: the images as they came, which the tutorial's solver runs on.
        start: where the solver starts, pixels of the first levels.
        gt: (B, 3, 3) truth, likewise and on the images' device; or None.
        config: what changes the answer.
        trace: whether `levels` is wanted.
        first_level: the coarsest level to solve; None: the last, for starts that may be far off.
    """

    src: list[Level]
    dst: list[Level]
    pairs: Pairs
    start: Alignment
    gt: Tensor | None
    config: AlignConfig
    trace: bool
    first_level: int | None = None


@dataclass(frozen=True, slots=True)
class Solved:
    """What a solver hands to the metrics.

    Attributes:
        alignment: the answers.
        stop_reason: why each pair stopped at its last level.
        num_iterations: (B,) int32, over all levels.
        scale: (B,) robust standard deviation of the residual, intensities in [0, 1]; NaN where not estimated.
        covariance: (B, P, P) of the parameters, the first eight those of sl(3); NaN where not estimated.
        levels: the traces, coarse to fine; empty unless asked for.
    """

    alignment: Alignment
    stop_reason: list[StopReason]
    num_iterations: Tensor
    scale: Tensor
    covariance: Tensor
    levels: list[list[LevelTrace]]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the solver: on every `stride`-th point, for how many parameters of motion, how precisely.

    A refined run is that of `refinement.py`.
    """

    stride: int
    motion_parameters: int
    step_tol_px: float
    is_refined: bool = False


def plan_runs(level: int, num_points: int, track: Track) -> list[Run]:
    """Return the runs of a level.

    From far away the coarsest level, a hundred pixels or two, is solved for a similarity alone, and the next one for
    a similarity first: eight parameters from that few pixels go astray. The full-size image is solved on few points
    first where it has many; the last run, on all of them, starts a hair from its end and is refined.

    Args:
        level: 0 is full size.
        num_points: points chosen at this level.
        track: the levels and the config.
    """
    config, count = track.config, len(track.src)
    rough, is_far = config.coarse_step_tol_px, track.first_level is None
    if is_far and level == count - 1 and level >= 2:
        return [Run(1, SIMILARITY, rough)]
    runs = [Run(1, HOMOGRAPHY, rough)]
    if is_far and (0 < level == count - 2 or 1 == level == count - 1):
        runs.insert(0, Run(1, SIMILARITY, rough))
    if level == 0:
        # An odd stride does not fall in step with the rows of an image.
        stride = max(1, num_points // config.points_per_level) // 2 * 2 + 1
        runs = [*runs[:-1], Run(stride, HOMOGRAPHY, rough), Run(1, HOMOGRAPHY, config.step_tol_px, is_refined=True)]
    return runs


def solve_gauss_newton(track: Track) -> Solved:
    """Solve level by level on gray intensities, coarse to fine."""
    config, state = track.config, track.start
    first = len(track.src) - 1 if track.first_level is None else track.first_level
    total = torch.zeros(len(state.gain), dtype=torch.int32, device=state.gain.device)
    levels: list[list[LevelTrace]] = [[] for _ in range(len(total))]
    for level in range(first, -1, -1):
        problem = build_problem(
            track.src[level],
            track.dst[level],
            level=level,
            max_points=config.points_per_level if level else config.final_points,
            fit_photometric=config.photometric == "gain_bias",
        )
        if level == 0:
            problem = replace(problem, template=refine_template(problem.template, track.src[0]))
        if level == first and config.photometric == "gain_bias":
            state = Alignment(state.dst_homo_src, *problem.matched_moments(state.dst_homo_src))
        taken = torch.zeros_like(total)
        for run in plan_runs(level, problem.template.u.shape[-1], track):
            if run.is_refined:
                problem = refine_problem(
                    problem, track.src[level], track.dst[level], state, loss_width=config.loss_width
                )
            part = problem.restrict(run.stride, run.motion_parameters)
            solution = solve(
                part,
                state,
                max_iterations=config.max_iterations,
                step_tol_px=run.step_tol_px,
                loss_width=config.loss_width,
                # A tenth of what `min_overlap` asks for in the end: on the way a pair may see less.
                slack=REFINED_SLACK if run.is_refined else Slack(),
                min_seen=(0.1 * config.min_overlap * part.template.usable.sum(-1)).clamp_min(SMALLEST_PROBLEM),
            )
            state = solution.state
            taken += solution.num_iterations
        total += taken
        if track.trace:
            truth = None if track.gt is None else homography.rescale(track.gt, level)
            matrix = homography.rescale(state.dst_homo_src, level)
            _append_trace(levels, level, track.src[level], track.dst[level], matrix, truth, taken)
    stop = [REASONS[reason] for reason in solution.stop.tolist()]
    scale, covariance = measure_precision(problem, state, config.loss_width)
    return Solved(state, stop, total, scale, covariance, levels)


def solve_structure(track: Track) -> Solved:
    """Solve level by level on the images' structure; for starts that are near, as `Track.first_level` says."""
    config, matrix = track.config, track.start.dst_homo_src
    pair = torch.arange(len(matrix), device=matrix.device)
    total = torch.zeros(len(matrix), dtype=torch.int32, device=matrix.device)
    levels: list[list[LevelTrace]] = [[] for _ in range(len(matrix))]
    first = len(track.src) - 1 if track.first_level is None else track.first_level
    for level in range(first, -1, -1):
        refiner = LevelRefiner(track.src[level], track.dst[level], pair, config.points_per_level, config)
        found, taken = homography.rescale(matrix, level), torch.zeros_like(total)
        for _ in range(STRUCTURE_RUNS):
            before, (found, steps) = found, refiner.refine(found, HOMOGRAPHY)
            taken += steps
        matrix, total = homography.rescale(found, -level), total + taken
        if track.trace:
            truth = None if track.gt is None else homography.rescale(track.gt, level)
            _append_trace(levels, level, track.src[level], track.dst[level], found, truth, taken)
    size = image_size(track.src[0].image)
    moved = homography.corner_errors(found, before, *size).amax(-1)
    problem, still = refiner.build_problem(found), standing_still(found)
    _, covariance = measure_precision(problem, still, config.loss_width)
    stop = [StopReason.CONVERGED if px <= STRUCTURE_TOL_PX else StopReason.MAX_ITERATIONS for px in moved.tolist()]
    intensities = build_problem(
        track.src[0], track.dst[0], level=0, max_points=config.points_per_level, fit_photometric=False
    )
    alignment = Alignment(matrix, *intensities.matched_moments(matrix))
    return Solved(alignment, stop, total, torch.full_like(alignment.gain, math.nan), covariance, levels)


def solve_tutorial(track: Track) -> Solved:
    """Run kornia's tutorial on all channels; masks are not used, as it knows none."""
    config = track.config
    src, dst = track.src[0].image, track.dst[0].image
    if track.pairs.src.shape[1] == track.pairs.dst.shape[1]:
        src, dst = to_unit_range(track.pairs.src)[0], to_unit_range(track.pairs.dst)[0]
    batch = len(src)
    levels: list[list[LevelTrace]] = [[] for _ in range(batch)]
    total = torch.zeros(batch, dtype=torch.int32, device=src.device)
    dst_homo_src = track.start.dst_homo_src
    for done in tutorial.adam_levels(
        src,
        dst,
        dst_homo_src,
        levels=config.adam_levels,
        steps=config.adam_steps,
        learning_rate=config.adam_learning_rate,
    ):
        dst_homo_src = done.dst_homo_src
        total += done.num_iterations
        if track.trace:
            full_src = torch.linalg.inv(done.level_homo_full_src)
            matrix = done.level_homo_full_dst @ dst_homo_src @ full_src
            truth = None if track.gt is None else done.level_homo_full_dst @ track.gt @ full_src
            taken = torch.full_like(total, done.num_iterations)
            _append_trace(levels, done.level, Level(done.src, None), Level(done.dst, None), matrix, truth, taken)
    nan = torch.full((batch,), math.nan, dtype=torch.float64, device=src.device)
    return Solved(
        alignment=Alignment(dst_homo_src, torch.ones_like(nan), torch.zeros_like(nan)),
        stop_reason=[StopReason.MAX_ITERATIONS] * batch,
        num_iterations=total,
        scale=nan,
        covariance=nan[:, None, None].expand(-1, 8, 8),
        levels=levels,
    )


def _append_trace(
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
