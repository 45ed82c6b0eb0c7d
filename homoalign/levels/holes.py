"""Small holes of a mask: dead pixels, scratches, lines that were lost, single pixels that are NaN.

Slopes ask for the pixels beside them, and coarser levels for more of these, so that few points are left between holes,
or none, although what a hole would show is told well enough by what is around it. Small is what a morphological closing
by 3 x 3 pixels fills (Serra, "Image analysis and mathematical morphology", 1982): a pixel or two across. What is wider
stays masked, and no edge moves.

B pairs, H W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from homoalign.levels.pyramid import Level


def fill_small_holes(level: Level) -> Level:
    """Interpolate images in the small holes of their masks, and take these out of the masks.

    Args:
        level: full-size images; what is masked is not looked at.

    Returns:
        The same, itself where there is no such hole.
    """
    if level.mask is None:
        return level
    is_known = level.mask > 0
    known = is_known.to(level.image)
    is_hole = (_erode(max_pool2d(known, 3, stride=1, padding=1)) > 0) & ~is_known
    if not bool(is_hole.any()):
        return level
    around = _weigh_neighbours(torch.where(is_known, level.image, 0)) / _weigh_neighbours(known).clamp_min(1)
    return Level(torch.where(is_hole, around, level.image), torch.where(is_hole, 1, level.mask))


def _erode(known: Tensor) -> Tensor:
    """Return the least of every 3 x 3 pixels; what is beyond the border counts for nothing."""
    return -max_pool2d(-known, 3, stride=1, padding=1)


def _weigh_neighbours(values: Tensor) -> Tensor:
    """Return the sum of every 3 x 3 pixels, by [1, 2, 1] x [1, 2, 1]; beyond the border is nothing."""
    padded = pad(values, (1, 1, 1, 1))
    down = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    return down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
