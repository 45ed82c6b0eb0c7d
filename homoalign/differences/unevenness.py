"""Noise that is louder where the image is steep: what lossy compression leaves, above all.

A codec spends its bits on what is seen: flat parts come out flat, and what it gets wrong lies along edges and in
texture, the very points that tell where an image lies. To a robust loss with one scale, which most points of most
images set by being flat, these look like outliers. So the scale is that of the points which count.

B pairs, N points.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from homoalign.levels.coding import residual_coding_noise
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.solver import robust_scale
from homoalign.optimisation.template import steep_points

SAMPLES = 2**13
"""Points, about, that this is told from."""

LEAST_STEEP = 16
"""Fewer steep ones of these tell no scale."""

LOUDER = 0.25
"""Steep points are louder by this share of the scale everywhere, at least..."""

BY_CHANCE = 4.0
"""... and by so many times what chance makes of the scale of n points, a share of 1 / sqrt(n)."""


LEAST_CODED = 0.1
"""Of the scale of steep points: where the blocks of a codec tell of less, it is relief or blur that is loud there."""


def with_scale_of_steep(
    problem: DirectProblem, state: Alignment, is_noise: Tensor, is_heard: Tensor, sides: tuple[Level, Level]
) -> DirectProblem:
    """Return the problem with the scale of the steep points as the least one, where noise is clearly louder there.

    Args:
        problem: the pairs.
        state: alignments that are good to a fraction of a pixel.
        is_noise: (B,) bool, where residuals are no more than noise, over most of the frame at least.
        is_heard: (B,) bool, where they were found to have nothing of the image in them (`leftover.hear`); elsewhere a
            codec is known by its blocks.
        sides: src and dst at full size.
    """
    stride = max(1, problem.template.u.shape[-1] // SAMPLES) | 1  # odd: not in step with the rows of an image
    some = problem.restrict(stride, problem.freedom.motion_parameters)
    residual, seen = some.evaluate(state)
    is_steep = steep_points(some.template, seen)
    no_floor = torch.zeros_like(problem.scale_floor)
    everywhere, of_steep = (robust_scale(residual, part, no_floor) for part in (seen, is_steep))
    count = is_steep.sum(-1)
    least = 1 + (BY_CHANCE / count.clamp_min(1).sqrt()).clamp_min(LOUDER)
    index = torch.nonzero(is_noise & (of_steep > least * everywhere) & (count >= LEAST_STEEP))[:, 0]
    if len(index) == 0:
        return problem
    coded = residual_coding_noise(sides[0].image, sides[1].image, state.gain, index)
    is_uneven = is_heard[index] | (coded > LEAST_CODED * of_steep[index])
    raised = torch.where(is_uneven, torch.fmax(of_steep, problem.scale_floor)[index], problem.scale_floor[index])
    return replace(problem, scale_floor=problem.scale_floor.index_copy(0, index, raised))
