"""The last level of the way down a pyramid: the full size, solved as precisely as noise and light let it be.

B pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign.config import AlignConfig
from homoalign.descent.earned import give_up_freedom, is_unsupported
from homoalign.differences.blur import compare_sharpness
from homoalign.differences.clearing import clear_away
from homoalign.differences.faint import find_faint, solve_faint
from homoalign.differences.joint import solve_jointly
from homoalign.differences.leftover import hear
from homoalign.differences.photometry import Light, apply_light, fit_light, has_contrast, sample, to_plain
from homoalign.differences.prefilter import Prefiltered, gains, hardly_cut_off, prefilter
from homoalign.differences.refinement import (
    Cleaned,
    clean_source,
    noise_share,
    on_all_pixels,
    refine_template,
    refine_template_at,
    spline_level,
    undo_attenuation,
)
from homoalign.differences.saturation import Saturation, find_saturation
from homoalign.levels.noise import UNEXPLAINED, residual_noise
from homoalign.optimisation.precision import measure_precision
from homoalign.optimisation.residual import Alignment, DirectProblem, build_problem
from homoalign.optimisation.schedule import MOTION_PARAMETERS, REFINED_SLACK, Run, plan_runs, solve_run
from homoalign.optimisation.solver import CONVERGED, OVERLAP_LOST, REASONS, SCALE_SAMPLES, Solution, robust_scale
from homoalign.optimisation.template import Template
from homoalign.optimisation.track import Descent, Solved, Track, append_trace
from homoalign.status import StopReason


def finish(track: Track, descent: Descent, *, is_beside: bool = False) -> Solved:
    """Solve the full size: dst's light is fitted where it takes more than a gain and a bias, noise is taken away.

    Before the last run the images' noise is told anew, by what is left: first of a gain and a bias, then of all light.

    Args:
        track: the pairs.
        descent: where they are.
        is_beside: whether something is known to be in the way, so that it is left out from the first run on.
    """
    config, state, before = track.config, descent.state, track
    src, dst = track.src[0], track.dst[0]
    fit = config.photometric != "none"
    raw = build_problem(src, dst, level=0, max_points=config.final_points, fit_photometric=fit)
    if track.coarsest == 0 and fit:
        state = Alignment(state.dst_homo_src, *raw.matched_moments(state.dst_homo_src))
    taken = torch.zeros_like(descent.num_iterations)
    light = Light.plain(state.gain)
    cleaned = clean_source(raw.template, src)
    template = lit = refine_template(raw.template, cleaned)
    is_clear = has_contrast(src)
    every, saturation = raw.template.usable, find_saturation(raw.template, src, dst)
    soft: Prefiltered | None = None
    if is_beside:
        raw, lit, light, state, taken = clear_away(raw, template, template, light, state, is_clear, track)
    for run in plan_runs(0, track.coarsest + 1, raw.template.u.shape[-1], config, is_near=track.is_near):
        state, _ = to_plain(light.is_rich, lit.value, raw, state)
        light = Light.plain(state.gain)
        raw, usable = _leave_out_cut_off(raw, every, saturation, state)
        if run.is_refined:
            raw = replace(raw, dst=spline_level(dst), interpolation="spline")
            track = hear(track, replace(raw, template=template), state, torch.ones_like(is_clear))
        # Before the last run only the light of those that were solved on normalised images is needed.
        index = torch.nonzero((descent.needs_light | run.is_refined) & is_clear)[:, 0]
        if config.photometric == "auto" and len(index):
            light, state = _fit_light_of(index, replace(raw, template=template), state, light, track)
        lit = apply_light(replace(template, usable=raw.template.usable), light)
        problem = replace(raw, template=lit)
        if run.is_refined:
            track = hear(track, problem, state, light.is_rich)
            cleaned = cleaned if track is before else clean_source(raw.template, track.src[0])
            raw = replace(raw, template=replace(raw.template, usable=usable))
            lit = replace(lit, usable=usable)
            raw, lit, light, state, more = clear_away(raw, template, lit, light, state, is_clear, track)
            taken += more
            template = _refine(replace(raw, template=lit), raw.template, cleaned, state, track)
            lit = apply_light(template, light)
            problem = replace(raw, template=lit)
            if fit:
                state = undo_attenuation(problem, track.src[0], state)
            if gains(raw):
                among = ~light.is_rich & hardly_cut_off(every, usable) & _is_explained(problem, state, track)
                soft = prefilter(problem, among, track.src[0], dst, cleaned)
        solution = _solve(problem, soft, state, run, config)
        state = solution.state
        taken += solution.num_iterations
    raw = replace(raw, template=template)
    end = _End(lit, light, state, solution.stop, taken, torch.zeros_like(is_clear), soft, None)
    is_white = (track.noise <= before.noise).all(-1)  # a codec's losses are not, and look like light
    among = is_white & _are_known(raw, usable) & (end.stop != OVERLAP_LOST)
    end = _last_steps(end, raw, cleaned.noise_share, is_clear, among, track)
    return _conclude(end, raw, descent, track)


def _are_known(raw: DirectProblem, usable: Tensor) -> Tensor:
    """Return (B,) bool, whether nothing lies in the way of the pixels between the points, as far as these tell.

    Args:
        raw: the problem of what is left of the points.
        usable: (B, N) bool, with those that something is in the way of.
    """
    return hardly_cut_off(usable, raw.template.usable) | raw.template.is_whole


@dataclass(frozen=True, slots=True)
class _End:
    """What the full size was solved to.

    Attributes:
        lit: the template as it should look in dst.
        light: where that is more than src under a gain and a bias; its weights are those of before the last steps.
        state: on top of it.
        stop: (B,) int64, index into `REASONS`.
        num_iterations: (B,) int32, of this level.
        is_faint: (B,) bool, see `faint.find_faint`.
        soft: the pairs whose last run was on smoothed images; None where there are none.
        whole: the pairs whose last steps were on all pixels, and their problem; None where `lit` is all of them.
    """

    lit: Template
    light: Light
    state: Alignment
    stop: Tensor
    num_iterations: Tensor
    is_faint: Tensor
    soft: Prefiltered | None
    whole: tuple[Tensor, DirectProblem] | None


def _last_steps(end: _End, raw: DirectProblem, share: Tensor, is_clear: Tensor, among: Tensor, track: Track) -> _End:
    """Solve motion and light together where the light is rich for certain, and faint pairs with the image behind both.

    Args:
        end: of the last run.
        raw: its problem, with src's own intensities.
        share: (B,) of noise in the energy of src's slopes.
        is_clear: (B,) bool, whether src's contrast is above its noise.
        among: (B,) bool, the pairs that may be faint.
        track: the pairs.
    """
    faint = find_faint(among, replace(raw, template=end.lit), end.state, share, track)
    lit, light, state, stop, taken = end.lit, end.light, end.state, end.stop, end.num_iterations
    is_certain, is_faint, whole = light.is_certain, end.is_faint.index_fill(0, faint, True), None
    if len(faint) > 0:
        part, light_part, problem = track.select(faint), light.select(faint), raw.select(faint)
        start, of_it = state.select(faint), share[faint]
        if not raw.template.is_whole:
            problem, start = on_all_pixels(problem, part.src[0], start)
            problem, _ = _leave_out_cut_off(
                problem,
                problem.template.usable,
                find_saturation(problem.template, part.src[0], part.dst[0]),
                start,
            )
            of_it = noise_share(problem.template, part.src[0].noise)
        some = solve_faint(problem, light_part, start, of_it, is_clear[faint], part)
        better = torch.nonzero(some.is_better)[:, 0]
        faint, light_part, some = faint[better], light_part.select(better), some.select(better)
        lit_part = some.lit
        if not raw.template.is_whole:
            whole = faint, replace(problem.select(better), template=lit_part)
            lit_part = lit_part.at(lit.select(faint))
        lit, state = lit.put(faint, lit_part), state.put(faint, some.state)
        light = light.put(faint, replace(light_part, is_rich=some.is_rich))
        stop, taken = stop.index_fill(0, faint, CONVERGED), taken.index_add(0, faint, some.num_iterations)
        is_certain = is_certain.index_fill(0, faint, False)
    lit, state, more = _polish(torch.nonzero(is_certain)[:, 0], raw, lit, light, state, track.config)
    return replace(
        end,
        lit=lit,
        light=light,
        state=state,
        stop=stop,
        num_iterations=taken + more,
        is_faint=is_faint,
        whole=whole,
    )


def _conclude(end: _End, raw: DirectProblem, descent: Descent, track: Track) -> Solved:
    """Say what the pairs were solved to, and how precisely.

    Args:
        end: of the full size.
        raw: its problem, with src's own intensities.
        descent: of the levels before.
        track: the pairs.
    """
    of_level = Descent(end.state, descent.num_iterations + end.num_iterations, descent.needs_light, descent.levels)
    stop = [REASONS[reason] for reason in end.stop.tolist()]
    solved = _measure(track, of_level, replace(raw, template=end.lit), stop, end)
    state, plain_scale = to_plain(end.light.is_rich, end.lit.value, raw, solved.alignment)
    append_trace(solved.levels, track, 0, state, end.num_iterations)
    scale = torch.where(end.light.is_rich, plain_scale, solved.fitted_scale)
    blurrier = compare_sharpness(raw, track.src[0], end.light, solved.alignment, state.gain)
    # Where noise drowns the texture, another light may look like another sharpness.
    blurrier = torch.where(end.is_faint, 0, blurrier)
    return replace(solved, alignment=state, scale=scale, blurrier=blurrier)


def _leave_out_cut_off(
    raw: DirectProblem, every: Tensor, saturation: Saturation | None, state: Alignment
) -> tuple[DirectProblem, Tensor]:
    """Return the problem, and (B, N) bool `every`, without the points that dst shows cut off."""
    if saturation is None:
        return raw, every
    shown = saturation.shows(raw.template.usable, state)
    return replace(raw, template=replace(raw.template, usable=raw.template.usable & shown)), every & shown


def _refine(lit: DirectProblem, template: Template, cleaned: Cleaned, state: Alignment, track: Track) -> Template:
    """Return the template with the slopes to go by in the last run."""
    src, dst = track.src[0], track.dst[0]
    return refine_template_at(template, cleaned, lit, src, dst, state, loss_width=track.config.loss_width)


def _fit_light_of(
    index: Tensor, problem: DirectProblem, state: Alignment, light: Light, track: Track
) -> tuple[Light, Alignment]:
    """Return the light, and the state on top of it, with those of the pairs that `index` names fitted anew."""
    noise = residual_noise(track.src[0].noise, track.dst[0].noise, state.gain)
    some, under = fit_light(
        sample(problem).select(index),
        state.select(index),
        src_noise=track.src[0].noise[index],
        noise=noise[index],
        loss_width=track.config.loss_width,
    )
    return light.put(index, some), state.put(index, under)


def _polish(
    rich: Tensor, raw: DirectProblem, lit: Template, light: Light, state: Alignment, config: AlignConfig
) -> tuple[Template, Alignment, Tensor]:
    """Solve motion and light together for the pairs that `rich` (int64) names.

    Returns:
        lit: the template as it should look in dst.
        state: on top of that.
        num_iterations: (B,) int32.
    """
    taken = torch.zeros_like(light.is_certain, dtype=torch.int32)
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


def _measure(
    track: Track,
    descent: Descent,
    problem: DirectProblem,
    stop: list[StopReason],
    end: _End,
) -> Solved:
    """Say how precise the solution of the full size is, and give up the freedom that is not earned.

    Args:
        track: the pairs.
        descent: where they are.
        problem: of the full-size images.
        stop: why each pair stopped.
        end: which of them were solved on other problems in the end.
    """
    config, state, src, dst = track.config, descent.state, track.src[0], track.dst[0]
    fitted_scale, covariance = _precision(problem, end, state, config)
    # What the model does not move is known.
    covariance[:, MOTION_PARAMETERS[config.model] : 8] = 0
    covariance[:, :, MOTION_PARAMETERS[config.model] : 8] = 0
    is_explained = fitted_scale < UNEXPLAINED * residual_noise(src.noise, dst.noise, state.gain)
    weak = torch.nonzero(is_explained & is_unsupported(covariance, state.dst_homo_src, src, dst))[:, 0]
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
    noise = hear(track, problem, state, ~is_explained).noise
    return Solved(
        alignment=state,
        stop_reason=stop,
        num_iterations=descent.num_iterations,
        scale=fitted_scale,
        fitted_scale=fitted_scale,
        covariance=covariance,
        levels=descent.levels,
        noise=noise,
        blurrier=torch.zeros(len(state.gain), dtype=torch.int64, device=state.gain.device),
    )


def _solve(
    problem: DirectProblem, soft: Prefiltered | None, state: Alignment, run: Run, config: AlignConfig
) -> Solution[Alignment]:
    """Do a run, where it is the last one on smoothed images for the pairs that gain by that."""
    if soft is None:
        return solve_run(problem, state, run, config)
    solution = solve_run(soft.problem, state.select(soft.index), run, config)
    if len(soft.rest) == 0:
        return solution
    other = solve_run(problem.select(soft.rest), state.select(soft.rest), run, config)
    return Solution(
        state.put(soft.index, solution.state).put(soft.rest, other.state),
        soft.with_rest(solution.stop, other.stop),
        soft.with_rest(solution.num_iterations, other.num_iterations),
    )


def _precision(problem: DirectProblem, end: _End, state: Alignment, config: AlignConfig) -> tuple[Tensor, Tensor]:
    """Return (B,) the residual's scale, of the images as they are, and (B, P, P) the parameters' covariance."""

    def measure(some: DirectProblem, there: Alignment) -> tuple[Tensor, Tensor]:
        return measure_precision(some.restrict(1, MOTION_PARAMETERS[config.model]), there, config.loss_width)

    soft = end.soft
    if soft is None:
        scale, covariance = measure(problem, state)
    else:
        there = state.select(soft.index)
        _, covariance = measure(soft.problem, there)
        scale = _scale(problem.select(soft.index), there)
        if len(soft.rest) > 0:
            rest_scale, of_rest = measure(problem.select(soft.rest), state.select(soft.rest))
            scale, covariance = soft.with_rest(scale, rest_scale), soft.with_rest(covariance, of_rest)
    if end.whole is not None:
        index, whole = end.whole
        covariance = covariance.index_copy(0, index, measure(whole, state.select(index))[1])
    return scale, covariance


def _is_explained(problem: DirectProblem, state: Alignment, track: Track) -> Tensor:
    """Return (B,) bool, whether the residual is no more than noise."""
    noise = residual_noise(track.src[0].noise, track.dst[0].noise, state.gain)
    return _scale(problem, state) < UNEXPLAINED * noise


def _scale(problem: DirectProblem, state: Alignment) -> Tensor:
    """Return (B,) the residual's scale, of as many points as it takes."""
    stride = max(1, problem.template.u.shape[-1] // (2 * SCALE_SAMPLES)) | 1
    some = problem.restrict(stride, problem.freedom.motion_parameters)
    return robust_scale(*some.evaluate(state), some.scale_floor)
