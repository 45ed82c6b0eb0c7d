"""The last steps at full size: light solved with motion, the image behind both sides of a faint pair.

B pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign.config import AlignConfig
from homoalign.differences.faint import find_faint, solve_faint
from homoalign.differences.joint import solve_jointly
from homoalign.differences.photometry import Light
from homoalign.differences.prefilter import Prefiltered
from homoalign.differences.refinement import (
    noise_share,
    on_all_pixels,
)
from homoalign.differences.saturation import find_saturation, leave_out_cut_off
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.schedule import MOTION_PARAMETERS, REFINED_SLACK
from homoalign.optimisation.solver import CONVERGED
from homoalign.optimisation.template import Template
from homoalign.optimisation.track import Track


@dataclass(frozen=True, slots=True)
class End:
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


def last_steps(end: End, raw: DirectProblem, share: Tensor, is_clear: Tensor, among: Tensor, track: Track) -> End:
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
    end, is_certain = replace(end, is_faint=end.is_faint.index_fill(0, faint, True)), end.light.is_certain
    if len(faint) > 0:
        end, better = _see_behind(faint, end, raw, share, is_clear, track)
        is_certain = is_certain.index_fill(0, better, False)
    lit, state, more = _polish(torch.nonzero(is_certain)[:, 0], raw, end.lit, end.light, end.state, track.config)
    return replace(end, lit=lit, state=state, num_iterations=end.num_iterations + more)


def _see_behind(
    faint: Tensor, end: End, raw: DirectProblem, share: Tensor, is_clear: Tensor, track: Track
) -> tuple[End, Tensor]:
    """Solve the faint pairs, which `faint` (int64) names, with the image behind both sides, on all pixels.

    Returns:
        The end, and which pairs (int64) ended better by that.
    """
    part, light = track.select(faint), end.light.select(faint)
    problem, start = raw.select(faint), end.state.select(faint)
    share, of_points = share[faint], not raw.template.is_whole
    if of_points:
        problem, start = on_all_pixels(problem, part.src[0], start)
        saturation = find_saturation(problem.template, part.src[0], part.dst[0])
        problem, _ = leave_out_cut_off(problem, problem.template.usable, saturation, start)
        share = noise_share(problem.template, part.src[0].noise)
    some = solve_faint(problem, light, start, share, is_clear[faint], part)
    chosen = torch.nonzero(some.is_better)[:, 0]
    better, light, some = faint[chosen], light.select(chosen), some.select(chosen)
    lit, whole = some.lit, None
    if of_points:
        whole = better, replace(problem.select(chosen), template=lit)
        lit = lit.at(end.lit.select(better))
    end = replace(
        end,
        lit=end.lit.put(better, lit),
        light=end.light.put(better, replace(light, is_rich=some.is_rich)),
        state=end.state.put(better, some.state),
        stop=end.stop.index_fill(0, better, CONVERGED),
        num_iterations=end.num_iterations.index_add(0, better, some.num_iterations),
        whole=whole,
    )
    return end, better


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
