"""Which points dst cannot show as bright, or as dark, as src does: a gain told from them comes out too small.

Told from what src's neighbourhood says of a point, not from dst's own noisy pixel: a choice by the pixel's noise would
bend what it is chosen for.

B pairs, N points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign.noise import smooth
from homoalign.pyramid import Level
from homoalign.residual import Alignment
from homoalign.template import Template

AT_END = 0.5 / 255
"""So near to black or white a pixel is as dark or bright as there is."""

LEAST_CLIPPED = 0.005
"""Share of dst's pixels at an end of the range from which it is one that the light was cut off at."""

SAMPLING = 3
"""Every such row and column is asked for that."""

REACH = 2.0
"""Standard deviations of dst's noise from an end within which noise is cut off."""

LEAST_LEFT = 0.3
"""Share of the points; where fewer are left, all stay."""


def unsaturated_points(template: Template, src: Level, dst: Level, state: Alignment) -> Tensor:
    """Return (B, N) bool, False for the points that dst shows cut off.

    Args:
        template: of the full-size images.
        src: source images.
        dst: destination images.
        state: a gain and a bias that are about right.
    """
    everything = torch.ones_like(template.usable)
    some = dst.image[..., ::SAMPLING, ::SAMPLING].flatten(1)
    ends = [some > 1 - AT_END, some < AT_END]
    is_clipped = [end.count_nonzero(dim=-1) > LEAST_CLIPPED * some.shape[-1] for end in ends]
    if not bool((is_clipped[0] | is_clipped[1]).any()):
        return everything
    told = smooth(src.image, 1).flatten(1).gather(1, template.chosen)
    expected = state.gain[:, None].to(told) * told + state.bias[:, None].to(told)
    reach, src_reach = ((REACH * level.noise)[:, None].to(told) for level in (dst, src))
    # What both show cut off differs no more for it.
    shown = (expected < 1 - reach) | (told > 1 - src_reach) | ~is_clipped[0][:, None]
    shown &= (expected > reach) | (told < src_reach) | ~is_clipped[1][:, None]
    left = (shown & template.usable).sum(-1) >= LEAST_LEFT * template.usable.sum(-1)
    return torch.where(left[:, None], shown, everything)
