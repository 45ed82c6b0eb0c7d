"""The last run where points are a part of the pixels: on images smoothed a little, each tells of its neighbours, too.

The steepest pixel of a cell holds a share of what its cell says of the motion, and all of its own noise. Smoothed by
[1, 2, 1] / 4 it holds a part of what its neighbours say too, and a third of the noise; what is locked to the pixels of
both images, as the blocks of a codec and the errors of interpolation are, weighs less. Wider filters lose what is fine.

B pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign.differences.refinement import ALL_OF_IT, Cleaned, spline_level
from homoalign.levels.noise import smooth
from homoalign.levels.pyramid import Level, soften, take
from homoalign.optimisation.residual import DirectProblem
from homoalign.optimisation.template import at_points

MOST_CUT_OFF = 0.01
"""Share of the points that dst may show cut off: their neighbours would be told wrong."""

MOST_PIXELS = 150
"""Of src for every point: where points are further apart it hardly gains, and all pixels would have to be smoothed."""

LEAST_LEFT = 0.5
"""Share of what masks leave that must not be beside them."""


@dataclass(frozen=True, slots=True)
class Prefiltered:
    """Pairs that end on smoothed images.

    Attributes:
        index: (b,) int64, which.
        rest: (B - b,) int64, the others.
        problem: theirs.
    """

    index: Tensor
    rest: Tensor
    problem: DirectProblem

    def with_rest(self, found: Tensor, of_rest: Tensor) -> Tensor:
        """Return (B, ...) in the order of all pairs: what was found for these, (b, ...), and for the others."""
        return torch.cat([found, of_rest])[torch.cat([self.index, self.rest]).argsort()]


def gains(problem: DirectProblem) -> bool:
    """Say whether the points are a part of src's pixels, but not too small a one."""
    return not problem.template.is_whole and math.prod(problem.src_size) <= MOST_PIXELS * problem.template.u.shape[-1]


def hardly_cut_off(every: Tensor, usable: Tensor) -> Tensor:
    """Return (B,) bool, whether dst shows hardly any point cut off.

    Args:
        every: (B, N) bool, points of src that count.
        usable: (B, N) bool, without those that dst shows cut off.
    """
    few: Tensor = (every & ~usable).count_nonzero(dim=-1) <= MOST_CUT_OFF * every.count_nonzero(dim=-1)
    return few


def prefilter(problem: DirectProblem, among: Tensor, src: Level, dst: Level, cleaned: Cleaned) -> Prefiltered | None:
    """Return the pairs that end on smoothed images, None where none does.

    Args:
        problem: of the full-size images.
        among: (B,) bool, which may: pairs whose dst looks as src does, but for a gain, a bias and noise.
        src: source images.
        dst: destination images.
        cleaned: what `clean_source` made of src.
    """
    usable, mask = problem.template.usable, None
    if src.mask is not None:
        usable = usable & at_points(smooth(src.mask, 1) > ALL_OF_IT, problem.template.chosen)[:, 0]
        among = among & _are_left(usable, problem.template.usable)
    if dst.mask is not None and problem.dst.mask is not None:
        mask = (soften(dst.mask) > ALL_OF_IT).to(dst.mask)
        among = among & _are_left(smooth(mask, 1) > ALL_OF_IT, problem.dst.mask)  # what the spline leaves of it
    index = torch.nonzero(among)[:, 0]
    if len(index) == 0:
        return None
    part, src, dst, cleaned = problem.select(index), src.select(index), dst.select(index), cleaned.select(index)
    template, soft = part.template, soften(src.image)
    everyone = torch.arange(len(index), device=index.device)
    clean = soft if len(cleaned.index) == 0 else soft.index_copy(0, cleaned.index, soften(cleaned.image))
    value = at_points(soft, template.chosen)[:, 0]
    lit = replace(template.with_slopes_of(clean, everyone), value=value, usable=take(usable, index))
    soft_dst = spline_level(Level(soften(dst.image), None if mask is None else take(mask, index)))
    return Prefiltered(index, torch.nonzero(~among)[:, 0], replace(part, template=lit, dst=soft_dst))


def _are_left(count: Tensor, before: Tensor) -> Tensor:
    """Return (B,) bool, whether most of what counted (B, ...) still does."""
    left, all_of_it = (some.flatten(1).count_nonzero(dim=-1) for some in (count, before))
    are_left: Tensor = left >= LEAST_LEFT * all_of_it
    return are_left
