"""The solver's way down a pyramid, from a start to an alignment, on intensities.

B pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign import homography, kernels, metrics
from homoalign.config import AlignConfig
from homoalign.earned import WEAK_480, give_up_freedom
from homoalign.homography import image_size
from homoalign.kernels.solver import solve_direct
from homoalign.metrics import corner_std
from homoalign.noise import UNEXPLAINED, residual_noise
from homoalign.photometry import Light, apply_light, fit_light, normalise_locally, sample, to_plain
from homoalign.precision import measure_precision
from homoalign.pyramid import Level
from homoalign.refinement import refine_template, refine_template_at, spline_level, undo_attenuation
from homoalign.residual import Alignment, DirectProblem, build_problem
from homoalign.result import LevelTrace
from homoalign.schedule import MOTION_PARAMETERS, Run, plan_runs
from homoalign.solver import REASONS, Slack, Solution, solve
from homoalign.track import Solved, Track, append_trace

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

LARGEST_NOISE = 0.3
"""Share of src's variance above which light is a gain and a bias."""

REFINED_SLACK = Slack(step_px=1.0, cost=0.01)
"""What remains is a fraction of a pixel, and of flat, noisy pairs the cost does not tell where it ends."""


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
        append_trace(levels, track, level, state, taken)
    return Descent(state, total, torch.full_like(total, normalised, dtype=torch.bool), levels)


def _look_again(track: Track, descent: Descent) -> Descent:
    """Give the pairs that do not fit yet a second descent, on locally normalised images; keep what fits better.

    Where the light falls unlike in the two images, intensities lead astray; where it does not, they reach further.
    """
    sides = [min(*image_size(src.image), *image_size(dst.image)) for src, dst in zip(track.src, track.dst, strict=True)]
    level = next((i for i, side in enumerate(sides) if i and side <= DOUBT_SIDE_PX), len(sides) - 1)

    def correlation(some: Track, state: Alignment) -> Tensor:
        matrix = homography.rescale(state.dst_homo_src, level)
        return metrics.local_correlation(metrics.local_patterns(some.src[level], some.dst[level], matrix))[
            0
        ].nan_to_num(-1.0)

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
    # Of noise as strong as the contrast a tone curve says more than of src.
    is_clear = src.noise.square() < LARGEST_NOISE * src.contrast.square()
    for run in plan_runs(0, len(track.src), raw.template.u.shape[-1], config, is_near=track.is_near):
        state, _ = to_plain(light, raw, state)
        light = Light.plain(state.gain)
        if run.is_refined:
            raw = replace(raw, dst=spline_level(dst), interpolation="spline")
        # Before the last run only the light of those that were solved on normalised images is needed.
        index = torch.nonzero((descent.is_normalised | run.is_refined) & is_clear)[:, 0]
        if config.photometric == "auto" and len(index):
            part = sample(replace(raw, template=template)).select(index)
            some, lit = fit_light(part, state.select(index), loss_width=config.loss_width)
            light, state = light.put(index, some), state.put(index, lit)
        problem = replace(raw, template=apply_light(template, light))
        if run.is_refined:
            template = refine_template_at(raw.template, problem, src, dst, state, loss_width=config.loss_width)
            problem = replace(raw, template=apply_light(template, light))
            if fit:
                state = undo_attenuation(problem, src, state)
        solution = _solve_run(problem, state, run, config)
        state = solution.state
        taken += solution.num_iterations
    stop = [REASONS[reason] for reason in solution.stop.tolist()]
    fitted_scale, covariance = measure_precision(
        problem.restrict(1, MOTION_PARAMETERS[config.model]), state, config.loss_width
    )
    # What the model does not move is known.
    covariance[:, MOTION_PARAMETERS[config.model] : 8] = 0
    covariance[:, :, MOTION_PARAMETERS[config.model] : 8] = 0
    is_explained = fitted_scale < UNEXPLAINED * residual_noise(src.noise, dst.noise, state.gain)
    weak = torch.nonzero(is_explained & _is_unsupported(covariance, state.dst_homo_src, src, dst))[:, 0]
    if len(weak):
        state = give_up_freedom(
            problem,
            state,
            covariance,
            weak,
            model=config.model,
            loss_width=config.loss_width,
            step_tol_px=config.step_tol_px,
        )
    state, plain_scale = to_plain(light, raw, state)
    scale = torch.where(light.is_rich, plain_scale, fitted_scale)
    levels = descent.levels
    append_trace(levels, track, 0, state, taken)
    return Solved(state, stop, descent.num_iterations + taken, scale, fitted_scale, covariance, levels)


def _is_unsupported(covariance: Tensor, dst_homo_src: Tensor, src: Level, dst: Level) -> Tensor:
    """Return (B,) bool, where the data do not hold the corners."""
    corners = metrics.corner_covariance(covariance, dst_homo_src, *image_size(src.image))
    std_480 = 480 / min(image_size(dst.image)) * corner_std(corners)
    unsupported: Tensor = ~(std_480 <= WEAK_480)  # NaN: they are not determined at all
    return unsupported


def _solve_run(problem: DirectProblem, state: Alignment, run: Run, config: AlignConfig) -> Solution[Alignment]:
    part = problem.restrict(run.stride, run.motion_parameters)
    solver = solve_direct if kernels.serves(part.template.u) else solve
    return solver(
        part,
        state,
        max_iterations=config.max_iterations,
        step_tol_px=run.step_tol_px,
        loss_width=config.loss_width,
        # A tenth of what `min_overlap` asks for in the end: on the way a pair may see less.
        min_seen=(0.1 * config.min_overlap * part.template.usable.sum(-1)).clamp_min(SMALLEST_PROBLEM),
        slack=REFINED_SLACK if run.is_refined else Slack(),
    )
