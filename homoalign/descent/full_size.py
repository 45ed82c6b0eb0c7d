"""The last level of the way down a pyramid: the full size, solved as precisely as noise and light let it be.

B pairs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from homoalign.config import AlignConfig
from homoalign.descent.conclusion import conclude, is_explained
from homoalign.descent.last_steps import End, last_steps
from homoalign.differences.clearing import clear_away
from homoalign.differences.leftover import hear
from homoalign.differences.photometry import Light, apply_light, fit_light, has_contrast, sample, to_plain
from homoalign.differences.prefilter import Prefiltered, gains, hardly_cut_off, prefilter
from homoalign.differences.refinement import (
    Cleaned,
    clean_source,
    refine_template,
    refine_template_at,
    spline_level,
    undo_attenuation,
)
from homoalign.differences.saturation import find_saturation, leave_out_cut_off
from homoalign.differences.unevenness import with_scale_of_steep
from homoalign.levels.noise import residual_noise
from homoalign.optimisation.residual import Alignment, DirectProblem, build_problem
from homoalign.optimisation.schedule import Run, plan_runs, solve_run
from homoalign.optimisation.solver import OVERLAP_LOST, Solution
from homoalign.optimisation.template import Template
from homoalign.optimisation.track import Descent, Solved, Track


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
        raw, usable = leave_out_cut_off(raw, every, saturation, state)
        if run.is_refined:
            raw = replace(raw, dst=spline_level(dst), interpolation="spline")
            track = hear(track, replace(raw, template=template), state)
        # Before the last run only the light of those that were solved on normalised images is needed.
        index = torch.nonzero((descent.needs_light | run.is_refined) & is_clear)[:, 0]
        if config.photometric == "auto" and len(index):
            light, state = _fit_light_of(index, replace(raw, template=template), state, light, track)
        lit = apply_light(replace(template, usable=raw.template.usable), light)
        problem = replace(raw, template=lit)
        if run.is_refined:
            track = hear(track, problem, state, light.is_rich, light.is_rich)
            cleaned = cleaned if track is before else clean_source(raw.template, track.src[0])
            raw = replace(raw, template=replace(raw.template, usable=usable))
            lit = replace(lit, usable=usable)
            raw, lit, light, state, more = clear_away(raw, template, lit, light, state, is_clear, track)
            taken += more
            problem, template, state = _last_problem(raw, lit, light, cleaned, state, track)
            lit = problem.template
            is_noise, is_heard = is_explained(problem, state, track), track.is_louder_than(before)
            # Rich light takes up much of what a wrong alignment leaves: that would pass for noise.
            problem = with_scale_of_steep(problem, state, is_noise & ~light.is_rich, is_heard, (track.src[0], dst))
            if gains(raw):
                among = ~light.is_rich & hardly_cut_off(every, usable) & is_noise
                soft = prefilter(problem, among, track.src[0], dst, cleaned)
        solution = _solve(problem, soft, state, run, config)
        state = solution.state
        taken += solution.num_iterations
    raw = replace(raw, template=template)
    end = End(lit, light, state, solution.stop, taken, torch.zeros_like(is_clear), soft, None)
    is_white = ~track.is_louder_than(before)  # a codec's losses are not, and look like light
    among = is_white & _are_known(raw, usable) & (end.stop != OVERLAP_LOST)
    end = last_steps(end, raw, cleaned.noise_share, is_clear, among, track)
    return conclude(end, raw, descent, track)


def _last_problem(
    raw: DirectProblem,
    lit: Template,
    light: Light,
    cleaned: Cleaned,
    state: Alignment,
    track: Track,
) -> tuple[DirectProblem, Template, Alignment]:
    """Return the problem of the last run, its template before the light, and where it starts.

    Args:
        raw: of the full size, dst as a spline, with src's own intensities and slopes.
        lit: the template so far, as it looks in `light`.
        light: of dst.
        cleaned: src without its noise.
        state: alignments on top of the light.
        track: the pairs.
    """
    src, dst, config = track.src[0], track.dst[0], track.config
    so_far = replace(raw, template=lit)
    template = refine_template_at(raw.template, cleaned, so_far, src, dst, state, loss_width=config.loss_width)
    problem = replace(raw, template=apply_light(template, light))
    if config.photometric != "none":
        state = undo_attenuation(problem, src, state)
    return problem, template, state


def _are_known(raw: DirectProblem, usable: Tensor) -> Tensor:
    """Return (B,) bool, whether nothing lies in the way of the pixels between the points, as far as these tell.

    Args:
        raw: the problem of what is left of the points.
        usable: (B, N) bool, with those that something is in the way of.
    """
    return hardly_cut_off(usable, raw.template.usable) | raw.template.is_whole


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
