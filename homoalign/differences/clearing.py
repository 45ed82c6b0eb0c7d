"""The full size without what lies in the way of either image, where something does (`cover.py` tells).

B pairs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from homoalign.differences.cover import explains_more, is_hindered, uncover
from homoalign.differences.photometry import Light, apply_light, fit_light, sample, to_plain
from homoalign.levels.noise import UNEXPLAINED, residual_noise
from homoalign.optimisation.residual import Alignment, DirectProblem, build_problem
from homoalign.optimisation.schedule import plan_runs, solve_run
from homoalign.optimisation.template import Template
from homoalign.optimisation.track import Track

CLEARINGS = 2
"""Times a pair is solved anew without what lies in the way, which is told the better the nearer it is."""

LEAST_CLEAR = 0.3
"""Where less of the frame would be left, something else is wrong than what lies in the way."""

NEARLY = 1.5
"""Before it is solved again, a pair may have so many times the residual that is explained in the end."""


def look_beside(track: Track) -> tuple[Tensor, Alignment]:
    """Look at what nothing covers where the pairs start.

    Returns:
        is_explained: (B,) bool, whether noise and light explain most of it, near enough to try.
        state: where the pairs start, with the light of that.
    """
    src, dst, config = track.src[0], track.dst[0], track.config
    fit = config.photometric != "none"
    problem = build_problem(src, dst, level=0, max_points=config.points_per_level, fit_photometric=fit)
    clear = uncover(problem, track.start)
    noise = residual_noise(src.noise, dst.noise, clear.state.gain)
    is_explained = clear.is_cover & (clear.scale < NEARLY * UNEXPLAINED * noise) & (clear.share > LEAST_CLEAR)
    return is_explained, clear.state


def clear_away(
    raw: DirectProblem,
    template: Template,
    lit: Template,
    light: Light,
    state: Alignment,
    is_clear: Tensor,
    track: Track,
) -> tuple[DirectProblem, Template, Light, Alignment, Tensor]:
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
        lit: likewise.
        light, state: of the others.
        num_iterations: (B,) int32.
    """
    config, taken = track.config, torch.zeros(len(is_clear), dtype=torch.int32, device=is_clear.device)
    if config.photometric != "auto":  # light that is not modelled would pass for a cover
        return raw, lit, light, state, taken
    whole = replace(raw, template=lit)
    noise = residual_noise(track.src[0].noise, track.dst[0].noise, state.gain)
    index = torch.nonzero(is_hindered(whole, state, noise))[:, 0]
    if len(index) == 0:
        return raw, lit, light, state, taken
    # One light for all of the frame and something in the way look alike: what leaves more of the frame clear it is.
    all_light, under = light.select(index), state.select(index)
    plain, _ = to_plain(all_light.is_rich, lit.value[index], raw.select(index), under)
    part = replace(raw, template=template).select(index)
    is_lit, rich = all_light.is_rich, torch.nonzero(all_light.is_rich)[:, 0]
    if len(rich):
        lit_part = whole.select(index[rich])
        better = explains_more(lit_part, under.select(rich), part.select(rich), plain.select(rich))
        is_lit = is_lit.index_copy(0, rich, better)
    kept = replace(all_light, is_rich=is_lit)
    found = under.where(is_lit, plain)
    problem = replace(part, template=apply_light(part.template, kept))
    sure = torch.nonzero(uncover(problem, found).is_cover)[:, 0]
    if len(sure) == 0:
        return raw, lit, light, state, taken
    index, is_lit = index[sure], is_lit[sure]
    part, problem, found = part.select(sure), problem.select(sure), found.select(sure)
    rough = plan_runs(0, track.coarsest + 1, part.template.u.shape[-1], config)[0]
    for _ in range(CLEARINGS):
        clear = uncover(problem, found)
        solution = solve_run(clear.problem, clear.state, rough, config)
        found = solution.state
        taken = taken.index_add(0, index, solution.num_iterations)
    clear = uncover(problem, found)
    usable = torch.where((clear.share > LEAST_CLEAR)[:, None], clear.problem.template.usable, part.template.usable)
    found, _ = to_plain(is_lit, problem.template.value, part, clear.state)
    part = replace(part, template=replace(part.template, usable=usable))
    some = Light.plain(found.gain)
    fitted = torch.nonzero(is_clear[index])[:, 0]
    if len(fitted):
        some_of_it = sample(part).select(fitted)
        chosen = index[fitted]
        of_clear, lit_state = fit_light(
            some_of_it,
            found.select(fitted),
            src_noise=track.src[0].noise[chosen],
            noise=noise[chosen],
            loss_width=config.loss_width,
        )
        some, found = some.put(fitted, of_clear), found.put(fitted, lit_state)
    usable = raw.template.usable.index_copy(0, index, usable)
    raw = replace(raw, template=replace(raw.template, usable=usable))
    light = light.put(index, some)
    lit = apply_light(replace(template, usable=raw.template.usable), light)
    return raw, lit, light, state.put(index, found), taken
