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
from homoalign.photometry import Light, apply_light, fit_light, normalise_locally, to_plain
from homoalign.pyramid import Level
from homoalign.refinement import refine_template, refine_template_at, spline_level
from homoalign.residual import Alignment, DirectProblem, build_problem
from homoalign.result import LevelTrace
from homoalign.schedule import MOTION_PARAMETERS, Run, plan_runs
from homoalign.solver import REASONS, Slack, Solution, measure_precision, solve
from homoalign.status import StopReason
from homoalign.structure_problem import LevelRefiner, standing_still

SMALLEST_PROBLEM = 20
"""Twice the unknowns: with fewer residuals a robust fit says nothing."""

DOUBTFUL_CORRELATION = 0.7
"""Pairs whose local correlation is below this before the full size get a second look."""

DOUBT_SIDE_PX = 100
"""That correlation is measured on the finest level whose shorter side is no longer."""

LEAST_NORMALISED_SIDE_PX = 24
"""Smaller levels have hardly any neighbourhoods to be normalised by."""

CLEARLY_BETTER = 0.02
"""By so much the second look must correlate better."""

REFINED_SLACK = Slack(step_px=1.0, cost=0.01)
"""What remains is a fraction of a pixel, and of flat, noisy pairs the cost does not tell where it ends."""

STRUCTURE_RUNS = 3
"""Times a level's structure is described anew."""

STRUCTURE_TOL_PX = 0.25
"""Structure is solved when the last run moves no corner further than this."""


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

    @property
    def is_near(self) -> bool:
        """Whether the starts were refined already."""
        return self.first_level is not None

    @property
    def coarsest(self) -> int:
        """The level where the solver begins."""
        return len(self.src) - 1 if self.first_level is None else self.first_level

    def select(self, index: Tensor) -> Track:
        """Return the pairs that `index` (int64) names."""
        return replace(
            self,
            src=[level.select(index) for level in self.src],
            dst=[level.select(index) for level in self.dst],
            pairs=self.pairs.select(index.cpu()),
            start=self.start.select(index),
            gt=None if self.gt is None else self.gt[index],
        )

    def shallow(self, min_side_px: int) -> Track:
        """Return the same without the levels whose shorter side is below this, but with two levels at least."""
        sides = [
            min(*image_size(src.image), *image_size(dst.image)) for src, dst in zip(self.src, self.dst, strict=True)
        ]
        count = max(2, sum(side >= min_side_px for side in sides))
        first = None if self.first_level is None else min(self.first_level, count - 1)
        return replace(self, src=self.src[:count], dst=self.dst[:count], first_level=first)


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
class Descent:
    """Where pairs are after some levels.

    Attributes:
        state: so far.
        num_iterations: (B,) int32.
        is_normalised: (B,) bool, whether that was on locally normalised images.
        levels: traces of the levels so far.
    """

    state: Alignment
    num_iterations: Tensor
    is_normalised: Tensor
    levels: list[list[LevelTrace]]

    def put(self, index: Tensor, part: Descent) -> Descent:
        """Return this with the pairs that `index` (int64) names replaced by `part`."""
        levels = list(self.levels)
        for i, pair in zip(index.tolist(), part.levels, strict=True):
            levels[i] = pair
        return Descent(
            self.state.put(index, part.state),
            self.num_iterations.index_copy(0, index, part.num_iterations),
            self.is_normalised.index_copy(0, index, part.is_normalised),
            levels,
        )


def solve_gauss_newton(track: Track) -> Solved:
    """Solve level by level on gray intensities, coarse to fine."""
    descent = _descend(track, track.start, normalised=False)
    if track.config.photometric == "auto" and len(track.src) > 1:
        descent = _look_again(track, descent)
    return _finish(track, descent)


def _descend(track: Track, start: Alignment, *, normalised: bool) -> Descent:
    """Solve every level but the full size, on intensities or on locally normalised ones."""
    config, state, first = track.config, start, track.coarsest
    total = torch.zeros(len(state.gain), dtype=torch.int32, device=state.gain.device)
    levels: list[list[LevelTrace]] = [[] for _ in range(len(total))]
    for level in range(first, 0, -1):
        src, dst = track.src[level], track.dst[level]
        if normalised:
            src, dst = normalise_locally(src), normalise_locally(dst)
        fit = config.photometric != "none"
        problem = build_problem(src, dst, level=level, max_points=config.points_per_level, fit_photometric=fit)
        if level == first and fit:
            state = Alignment(state.dst_homo_src, *problem.matched_moments(state.dst_homo_src))
        taken = torch.zeros_like(total)
        for run in plan_runs(level, len(track.src), problem.template.u.shape[-1], config, is_near=track.is_near):
            solution = _solve_run(problem, state, run, config)
            state = solution.state
            taken += solution.num_iterations
        total += taken
        _append_trace(levels, track, level, state, taken)
    return Descent(state, total, torch.full_like(total, normalised, dtype=torch.bool), levels)


def _look_again(track: Track, descent: Descent) -> Descent:
    """Give the pairs that do not fit yet a second descent, on locally normalised images; keep what fits better.

    Where the light falls unlike in the two images, intensities lead astray; where it does not, they reach further.
    """
    sides = [min(*image_size(src.image), *image_size(dst.image)) for src, dst in zip(track.src, track.dst, strict=True)]
    level = next((i for i, side in enumerate(sides) if i and side <= DOUBT_SIDE_PX), len(sides) - 1)

    def correlation(some: Track, state: Alignment) -> Tensor:
        matrix = homography.rescale(state.dst_homo_src, level)
        return metrics.local_correlation(some.src[level], some.dst[level], matrix)[0].nan_to_num(-1.0)

    first = correlation(track, descent.state)
    doubtful = torch.nonzero(first < DOUBTFUL_CORRELATION)[:, 0]
    if len(doubtful) == 0:
        return descent
    some = track.select(doubtful).shallow(LEAST_NORMALISED_SIDE_PX)
    again = _descend(some, some.start, normalised=True)
    better = torch.nonzero(correlation(some, again.state) > first[doubtful] + CLEARLY_BETTER)[:, 0]
    chosen = Descent(
        again.state.select(better),
        again.num_iterations[better],
        again.is_normalised[better],
        [again.levels[i] for i in better.tolist()],
    )
    return descent.put(doubtful[better], chosen)


def _finish(track: Track, descent: Descent) -> Solved:
    """Solve the full size: dst's light is fitted where it takes more than a gain and a bias, noise is taken away."""
    config, state = track.config, descent.state
    src, dst = track.src[0], track.dst[0]
    fit = config.photometric != "none"
    raw = build_problem(src, dst, level=0, max_points=config.final_points, fit_photometric=fit)
    if track.coarsest == 0 and fit:
        state = Alignment(state.dst_homo_src, *raw.matched_moments(state.dst_homo_src))
    taken = torch.zeros_like(descent.num_iterations)
    light = Light.plain(state.gain)
    template = refine_template(raw.template, src)
    for run in plan_runs(0, len(track.src), raw.template.u.shape[-1], config, is_near=track.is_near):
        state, _ = to_plain(light, raw, state)
        light = Light.plain(state.gain)
        if run.is_refined:
            raw = replace(raw, dst=spline_level(dst), interpolation="spline")
        # Before the last run only the light of those that were solved on normalised images is needed.
        index = torch.nonzero(descent.is_normalised | run.is_refined)[:, 0]
        if config.photometric == "auto" and len(index):
            part = replace(raw, template=template).select(index)
            some, lit = fit_light(part, state.select(index), loss_width=config.loss_width)
            light, state = light.put(index, some), state.put(index, lit)
        problem = replace(raw, template=apply_light(template, light))
        if run.is_refined:
            template = refine_template_at(raw.template, problem, src, dst, state, loss_width=config.loss_width)
            problem = replace(raw, template=apply_light(template, light))
        solution = _solve_run(problem, state, run, config)
        state = solution.state
        taken += solution.num_iterations
    stop = [REASONS[reason] for reason in solution.stop.tolist()]
    scale, covariance = measure_precision(
        problem.restrict(1, MOTION_PARAMETERS[config.model]), state, config.loss_width
    )
    state, plain_scale = to_plain(light, raw, state)
    scale = torch.where(light.is_rich, plain_scale, scale)
    levels = descent.levels
    _append_trace(levels, track, 0, state, taken)
    # What the model does not move is known.
    covariance[:, MOTION_PARAMETERS[config.model] : 8] = 0
    covariance[:, :, MOTION_PARAMETERS[config.model] : 8] = 0
    return Solved(state, stop, descent.num_iterations + taken, scale, covariance, levels)


def _solve_run(problem: DirectProblem, state: Alignment, run: Run, config: AlignConfig) -> Solution[Alignment]:
    part = problem.restrict(run.stride, run.motion_parameters)
    return solve(
        part,
        state,
        max_iterations=config.max_iterations,
        step_tol_px=run.step_tol_px,
        loss_width=config.loss_width,
        # A tenth of what `min_overlap` asks for in the end: on the way a pair may see less.
        min_seen=(0.1 * config.min_overlap * part.template.usable.sum(-1)).clamp_min(SMALLEST_PROBLEM),
        slack=REFINED_SLACK if run.is_refined else Slack(),
    )


def solve_structure(track: Track) -> Solved:
    """Solve level by level on the images' structure; for starts that are near, as `Track.first_level` says."""
    config, matrix = track.config, track.start.dst_homo_src
    pair = torch.arange(len(matrix), device=matrix.device)
    total = torch.zeros(len(matrix), dtype=torch.int32, device=matrix.device)
    levels: list[list[LevelTrace]] = [[] for _ in range(len(matrix))]
    still = standing_still(matrix)
    for level in range(track.coarsest, -1, -1):
        refiner = LevelRefiner(track.src[level], track.dst[level], pair, config.points_per_level, config)
        found, taken = homography.rescale(matrix, level), torch.zeros_like(total)
        for _ in range(STRUCTURE_RUNS):
            before, (found, steps) = found, refiner.refine(found, MOTION_PARAMETERS[config.model])
            taken += steps
        matrix, total = homography.rescale(found, -level), total + taken
        _append_trace(levels, track, level, Alignment(matrix, still.gain, still.bias), taken)
    size = image_size(track.src[0].image)
    moved = homography.corner_errors(found, before, *size).amax(-1)
    _, covariance = measure_precision(refiner.build_problem(found), still, config.loss_width)
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
            _append_level(levels, done.level, Level(done.src, None), Level(done.dst, None), matrix, truth, taken)
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
    levels: list[list[LevelTrace]], track: Track, level: int, state: Alignment, num_iterations: Tensor
) -> None:
    """Add a finished level to every pair's trace, where traces are wanted."""
    if not track.trace:
        return
    truth = None if track.gt is None else homography.rescale(track.gt, level)
    matrix = homography.rescale(state.dst_homo_src, level)
    _append_level(levels, level, track.src[level], track.dst[level], matrix, truth, num_iterations)


def _append_level(
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
