"""The solver's way down a pyramid, from a start to an alignment, on intensities.

B pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign import homography, kernels, metrics
from homoalign.config import AlignConfig
from homoalign.cover import explains_more, is_hindered, uncover
from homoalign.earned import WEAK_480, give_up_freedom
from homoalign.homography import image_size
from homoalign.joint import solve_jointly
from homoalign.kernels.solver import solve_direct
from homoalign.leftover import is_noise
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
from homoalign.status import StopReason
from homoalign.template import Template
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

CLEARINGS = 2
"""Times a pair is solved anew without what lies in the way, which is told the better the nearer it is."""

LEAST_CLEAR = 0.3
"""Where less of the frame would be left, something else is wrong than what lies in the way."""

NEARLY = 1.5
"""Before it is solved again, a pair may have so many times the residual that is explained in the end."""

FURTHEST = 0.04
"""Of the shorter side: so far from structure's answer what lies beside a cover may be."""

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


def _finish(track: Track, descent: Descent, *, is_beside: bool = False) -> Solved:
    """Solve the full size: dst's light is fitted where it takes more than a gain and a bias, noise is taken away.

    Args:
        track: the pairs.
        descent: where they are.
        is_beside: whether something is known to be in the way, so that it is left out from the first run on.
    """
    config, state = track.config, descent.state
    src, dst = track.src[0], track.dst[0]
    fit = config.photometric != "none"
    raw = build_problem(src, dst, level=0, max_points=config.final_points, fit_photometric=fit)
    if track.coarsest == 0 and fit:
        state = Alignment(state.dst_homo_src, *raw.matched_moments(state.dst_homo_src))
    taken = torch.zeros_like(descent.num_iterations)
    light = Light.plain(state.gain)
    template = lit = refine_template(raw.template, src)
    # Of noise as strong as the contrast a tone curve says more than of src.
    is_clear = src.noise.square() < LARGEST_NOISE * src.contrast.square()
    usable = raw.template.usable
    if is_beside:
        raw, light, state, taken = _clear_away(raw, template, template, light, state, is_clear, track)
        lit = apply_light(template, light)
    for run in plan_runs(0, len(track.src), raw.template.u.shape[-1], config, is_near=track.is_near):
        state, _ = to_plain(light.is_rich, lit.value, raw, state)
        light = Light.plain(state.gain)
        if run.is_refined:
            raw = replace(raw, dst=spline_level(dst), interpolation="spline")
        # Before the last run only the light of those that were solved on normalised images is needed.
        index = torch.nonzero((descent.is_normalised | run.is_refined) & is_clear)[:, 0]
        if config.photometric == "auto" and len(index):
            part = sample(replace(raw, template=template)).select(index)
            noise = residual_noise(src.noise, dst.noise, state.gain)
            some, under = fit_light(part, state.select(index), noise=noise[index], loss_width=config.loss_width)
            light, state = light.put(index, some), state.put(index, under)
        lit = apply_light(replace(template, usable=raw.template.usable), light)
        problem = replace(raw, template=lit)
        if run.is_refined:
            raw, lit = replace(raw, template=replace(raw.template, usable=usable)), replace(lit, usable=usable)
            raw, light, state, more = _clear_away(raw, template, lit, light, state, is_clear, track)
            taken += more
            if bool((more > 0).any()):
                lit = apply_light(replace(template, usable=raw.template.usable), light)
            problem = replace(raw, template=lit)
            template = refine_template_at(raw.template, problem, src, dst, state, loss_width=config.loss_width)
            lit = apply_light(template, light)
            problem = replace(raw, template=lit)
            if fit:
                state = undo_attenuation(problem, src, state)
        solution = _solve_run(problem, state, run, config)
        state = solution.state
        taken += solution.num_iterations
    lit, state, more = _polish(replace(raw, template=template), lit, light, state, config)
    taken += more
    stop = [REASONS[reason] for reason in solution.stop.tolist()]
    of_level = Descent(state, descent.num_iterations + taken, descent.is_normalised, descent.levels)
    solved = _conclude(track, of_level, replace(raw, template=lit), stop)
    state, plain_scale = to_plain(light.is_rich, lit.value, raw, solved.alignment)
    append_trace(solved.levels, track, 0, state, taken)
    return replace(solved, alignment=state, scale=torch.where(light.is_rich, plain_scale, solved.fitted_scale))


def _polish(
    raw: DirectProblem, lit: Template, light: Light, state: Alignment, config: AlignConfig
) -> tuple[Template, Alignment, Tensor]:
    """Solve motion and light together where the light is rich for certain.

    Returns:
        lit: the template as it should look in dst.
        state: on top of that.
        num_iterations: (B,) int32.
    """
    rich, taken = torch.nonzero(light.is_certain)[:, 0], torch.zeros_like(light.is_certain, dtype=torch.int32)
    if len(rich) == 0:
        return lit, state, taken
    lit_part, found, steps = solve_jointly(
        raw.restrict(1, MOTION_PARAMETERS[config.model]).select(rich),
        light.select(rich),
        state.select(rich),
        max_iterations=config.max_iterations,
        loss_width=config.loss_width,
        step_tol_px=config.step_tol_px,
        slack=REFINED_SLACK,
    )
    return lit.put(rich, lit_part), state.put(rich, found), taken.index_copy(0, rich, steps)


def _conclude(track: Track, descent: Descent, problem: DirectProblem, stop: list[StopReason]) -> Solved:
    """Say how precise the solution of the full size is, and give up the freedom that is not earned."""
    config, state, src, dst = track.config, descent.state, track.src[0], track.dst[0]
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
    noisy = torch.zeros_like(is_explained)
    open_ = torch.nonzero(~is_explained)[:, 0]
    if len(open_):
        found = is_noise(problem.select(open_), state.select(open_), dst.contrast[open_], config.loss_width)
        noisy = noisy.index_copy(0, open_, found)
    return Solved(state, stop, descent.num_iterations, fitted_scale, fitted_scale, covariance, descent.levels, noisy)


def solve_beside_cover(track: Track, solved: Solved) -> Solved:
    """Solve on intensities again what they did not explain, but do beside something in the way.

    Args:
        track: the pairs.
        solved: on structure, which what covers a part of the frame misleads less.
    """
    before = solved.alignment
    noise = residual_noise(track.src[0].noise, track.dst[0].noise, before.gain)
    index = torch.nonzero(~(solved.fitted_scale <= UNEXPLAINED * noise) & ~solved.is_noise)[:, 0]
    index = index[before.dst_homo_src[index].isfinite().flatten(1).all(-1)]
    if len(index) == 0:
        return solved
    part = replace(track.select(index), start=before.select(index), first_level=0)
    hopeful = torch.nonzero(_is_explained_beside(part))[:, 0]
    if len(hopeful) == 0:
        return solved
    part, index = part.select(hopeful), index[hopeful]
    none = torch.zeros(len(index), dtype=torch.int32, device=index.device)
    again = _finish(part, Descent(part.start, none, none > 0, [[] for _ in index]), is_beside=True)
    src, dst, found = part.src[0], part.dst[0], again.alignment
    noise = residual_noise(src.noise, dst.noise, found.gain)
    moved = homography.corner_errors(found.dst_homo_src, part.start.dst_homo_src, *image_size(src.image)).mean(-1)
    is_right = (moved < FURTHEST * min(image_size(dst.image))) & (again.fitted_scale < UNEXPLAINED * noise)
    chosen = torch.nonzero(is_right & ~_is_unsupported(again.covariance, found.dst_homo_src, src, dst))[:, 0]
    index, again = index[chosen], again.select(chosen)
    return replace(
        solved.put(index, again),
        scale=solved.scale.index_copy(0, index, again.scale),
        fitted_scale=solved.fitted_scale.index_copy(0, index, again.fitted_scale),
    )


def _is_explained_beside(track: Track) -> Tensor:
    """Return (B,) bool, whether noise and light explain most of what nothing covers, near enough to try."""
    src, dst, config = track.src[0], track.dst[0], track.config
    fit = config.photometric != "none"
    problem = build_problem(src, dst, level=0, max_points=config.points_per_level, fit_photometric=fit)
    clear = uncover(problem, track.start)
    noise = residual_noise(src.noise, dst.noise, clear.state.gain)
    return clear.is_cover & (clear.scale < NEARLY * UNEXPLAINED * noise) & (clear.share > LEAST_CLEAR)


def _clear_away(
    raw: DirectProblem,
    template: Template,
    lit: Template,
    light: Light,
    state: Alignment,
    is_clear: Tensor,
    track: Track,
) -> tuple[DirectProblem, Light, Alignment, Tensor]:
    """Leave out what lies in the way of either image, where something does, and solve again without it.

    Args:
        raw: of the full-size images.
        template: of the same points, with the slopes to go by.
        lit: the same as it looks in `light`.
        light: that was fitted to all of the frame.
        state: alignments, gain and bias on top of `light`.
        is_clear: (B,) bool, whether src's contrast is above its noise.
        track: the pairs.

    Returns:
        raw: without the points that are covered.
        light, state: of the others.
        num_iterations: (B,) int32.
    """
    config, taken = track.config, torch.zeros(len(is_clear), dtype=torch.int32, device=is_clear.device)
    whole = replace(raw, template=lit)
    noise = residual_noise(track.src[0].noise, track.dst[0].noise, state.gain)
    index = torch.nonzero(is_hindered(whole, state, noise))[:, 0]
    # Where light is not modelled, light that falls unlike would pass for a cover.
    if len(index) == 0 or config.photometric != "auto":
        return raw, light, state, taken
    # One light for all of the frame and something in the way look alike: what leaves more of the frame clear it is.
    all_light, under = light.select(index), state.select(index)
    plain, _ = to_plain(all_light.is_rich, lit.value[index], raw.select(index), under)
    part = replace(raw, template=template).select(index)
    is_lit = all_light.is_rich & explains_more(whole.select(index), under, part, plain)
    kept = replace(all_light, is_rich=is_lit)
    found = under.where(is_lit, plain)
    problem = replace(part, template=apply_light(part.template, kept))
    sure = torch.nonzero(uncover(problem, found).is_cover)[:, 0]
    if len(sure) == 0:
        return raw, light, state, taken
    index, is_lit = index[sure], is_lit[sure]
    part, problem, found = part.select(sure), problem.select(sure), found.select(sure)
    rough = plan_runs(0, len(track.src), part.template.u.shape[-1], config)[0]
    for _ in range(CLEARINGS):
        clear = uncover(problem, found)
        solution = _solve_run(clear.problem, clear.state, rough, config)
        found = solution.state
        taken = taken.index_add(0, index, solution.num_iterations)
    clear = uncover(problem, found)
    usable = torch.where((clear.share > LEAST_CLEAR)[:, None], clear.problem.template.usable, part.template.usable)
    found, _ = to_plain(is_lit, problem.template.value, part, clear.state)
    part = replace(part, template=replace(part.template, usable=usable))
    some = Light.plain(found.gain)
    fitted = torch.nonzero(is_clear[index])[:, 0]
    if config.photometric == "auto" and len(fitted):
        some_of_it = sample(part).select(fitted)
        of_clear, lit_state = fit_light(
            some_of_it, found.select(fitted), noise=noise[index][fitted], loss_width=config.loss_width
        )
        some, found = some.put(fitted, of_clear), found.put(fitted, lit_state)
    usable = raw.template.usable.index_copy(0, index, usable)
    raw = replace(raw, template=replace(raw.template, usable=usable))
    return raw, light.put(index, some), state.put(index, found), taken


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
