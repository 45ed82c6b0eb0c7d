"""Which points dst cannot show as bright, or as dark, as src does: a gain told from them comes out too small.

Told from what src's neighbourhood says of a point, not from dst's own noisy pixel: a choice by the pixel's noise would
bend what it is chosen for.

B pairs, N points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign import kernels
from homoalign.levels.noise import smooth
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.template import Template, at_points

AT_END = 0.5 / 255
"""So near to black or white a pixel is as dark or bright as there is."""

LEAST_CLIPPED = 0.005
"""Share of dst's pixels at an end of the range from which it is one that the light was cut off at."""

SAMPLING = 5
"""Every such row and column is asked for that."""

REACH = 2.0
"""Standard deviations of dst's noise from an end within which noise is cut off."""

LEAST_LEFT = 0.3
"""Share of the points; where fewer are left, all stay."""


@dataclass(frozen=True, slots=True)
class Saturation:
    """Of pairs of which at least one has a dst that the light was cut off in; build with `find_saturation`."""

    told: Tensor
    """(B, N) what src's neighbourhood says of a point."""
    ends: Tensor
    """(B, 4), how far dst and src are to be trusted towards white, then black; infinite where dst is not cut off."""

    def shows(self, usable: Tensor, state: Alignment) -> Tensor:
        """Return (B, N) bool, False for the points that dst shows cut off.

        Args:
            usable: (B, N) bool, points that count.
            state: a gain and a bias that are about right.
        """
        light = torch.stack([state.gain, state.bias], dim=-1).to(self.told)
        if kernels.serves(self.told):
            return kernels.not_cut_off(self.told, usable, light, self.ends, LEAST_LEFT)
        white, src_white, black, src_black = self.ends[:, :, None].unbind(1)
        expected = torch.addcmul(light[:, 1:], light[:, :1], self.told)
        # What both show cut off differs no more for it.
        cut_off = (expected >= white) & (self.told <= src_white)
        cut_off |= (expected <= black) & (self.told >= src_black)
        left = (usable & ~cut_off).count_nonzero(dim=-1) >= LEAST_LEFT * usable.count_nonzero(dim=-1)
        return ~cut_off | ~left[:, None]


def find_saturation(template: Template, src: Level, dst: Level) -> Saturation | None:
    """Return where the full size is cut off, None where that is true of no pair.

    Args:
        template: of the full-size images.
        src: source images.
        dst: destination images.
    """
    some = dst.image[..., ::SAMPLING, ::SAMPLING].flatten(1)
    enough = LEAST_CLIPPED * some.shape[-1]
    at_white, at_black = (end.count_nonzero(dim=-1) > enough for end in (some > 1 - AT_END, some < AT_END))
    if not bool((at_white | at_black).any()):
        return None
    told = at_points(smooth(src.image, 1), template.chosen)[:, 0]
    reach, src_reach = ((REACH * level.noise).to(told) for level in (dst, src))
    white, black = torch.where(at_white, 1 - reach, torch.inf), torch.where(at_black, reach, -torch.inf)
    return Saturation(told, torch.stack([white, 1 - src_reach, black, src_reach], dim=-1))


def leave_out_cut_off(
    raw: DirectProblem, every: Tensor, saturation: Saturation | None, state: Alignment
) -> tuple[DirectProblem, Tensor]:
    """Return the problem, and (B, N) bool `every`, without the points that dst shows cut off.

    Args:
        raw: of the full size.
        every: points that count.
        saturation: where the pairs are cut off; None: nowhere.
        state: a gain and a bias that are about right.
    """
    if saturation is None:
        return raw, every
    shown = saturation.shows(raw.template.usable, state)
    return replace(raw, template=replace(raw.template, usable=raw.template.usable & shown)), every & shown
