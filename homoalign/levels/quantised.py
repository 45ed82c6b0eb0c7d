"""Images of few gray levels: thresholded, dithered, posterised, or of so little contrast that 8 bits hold few steps.

Their plateaus match exactly wherever they lie, and the steps between them, which tell the motion, stand where rounding
put them. A robust loss takes the plateaus for the rule and the steps for outliers. So both images of a pair are
smoothed first: the steps become slopes again, and what rounding did to them becomes noise as any other.

B pairs, H W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign.levels.noise import smooth
from homoalign.levels.pyramid import Level

FEW = 16
"""Gray levels up to which an image is smoothed..."""

VERY_FEW = 4
"""... and up to which it is smoothed twice: thresholded scans, dithered ones."""

MOST_UNLIKE = 0.5
"""Share of neighbours that differ; where more do, noise has dithered more than `VERY_FEW` levels well enough."""

SHARE = 0.99
"""Of the energy of the differences between neighbours, that the levels have to carry: a dark sky is one level."""

ROWS = 32
"""About so many rows of an image are asked."""

DEPTH = 2**16 - 1
"""Differences are counted in such steps of the range, as integers: their sums are the same in any order."""

BINS = 4093
"""Prime, so that the levels of 8 bits fall into different ones."""


LEAST_LEFT = 1 / 12
"""Share of the contrast, of either image: what has a texture so fine that smoothing leaves less stays as it is."""


def smooth_quantised(src: Level, dst: Level) -> tuple[Level, Level, Tensor]:
    """Smooth both images of the pairs of which either has few gray levels.

    Args:
        src: full-size source images.
        dst: full-size destination images.

    Returns:
        src: smoothed where that is so.
        dst: likewise.
        is_smoothed: (B,) bool on the CPU, where that is so.
    """
    passes = torch.maximum(_passes(src), _passes(dst)).cpu()
    index = torch.nonzero(passes)[:, 0]
    if len(index) == 0:
        return src, dst, passes > 0
    here, twice = index.to(src.image.device), (passes[index] > 1).to(src.image.device)
    before = [level.select(here) for level in (src, dst)]
    after = [_smoothed(level, twice) for level in before]
    left = [smoothed.contrast / level.contrast for smoothed, level in zip(after, before, strict=True)]
    is_left = torch.minimum(*left) >= LEAST_LEFT
    src, dst = (
        Level(level.image.index_copy(0, here[is_left], smoothed.image[is_left]), level.mask)
        for level, smoothed in zip((src, dst), after, strict=True)
    )
    return src, dst, torch.zeros_like(passes, dtype=torch.bool).index_copy(0, index, is_left.cpu())


def _passes(level: Level) -> Tensor:
    """Return (B,) int64, how many times images are to be smoothed."""
    rows = (level.image[:, 0, :: max(1, level.image.shape[-2] // ROWS)] * DEPTH).round()
    difference = (rows[..., 1:] - rows[..., :-1]).double()
    if level.mask is not None:
        known = level.mask[:, 0, :: max(1, level.image.shape[-2] // ROWS)] > 0
        difference = difference * (known[..., 1:] & known[..., :-1])
    code = rows[..., 1:].long() % BINS
    carried = difference.new_zeros(len(rows), BINS).scatter_add_(1, code.flatten(1), difference.square().flatten(1))
    largest, every = carried.topk(FEW, dim=-1).values.cumsum(-1), carried.sum(-1)
    unlike = difference.count_nonzero(dim=(-2, -1)) / difference[0].numel()
    is_few = (largest[:, -1] >= SHARE * every) & (unlike <= MOST_UNLIKE)
    is_very_few = largest[:, VERY_FEW - 1] >= SHARE * every
    # Where nothing differs, nothing is known.
    return torch.where(every > 0, torch.where(is_very_few, 2, is_few.long()), 0)


def _smoothed(level: Level, twice: Tensor) -> Level:
    """Return images smoothed once, or twice where that is asked for (bool); what is masked stays out of it."""
    once, index = _smooth(level), torch.nonzero(twice)[:, 0]
    if len(index) == 0:
        return once
    return Level(once.image.index_copy(0, index, _smooth(once.select(index)).image), level.mask)


def _smooth(level: Level) -> Level:
    image, mask = level.image, level.mask
    if mask is None:
        return Level(smooth(image, 1), None)
    mean = smooth(image * mask, 1) / smooth(mask, 1).clamp_min(1e-6)
    return Level(torch.where(mask > 0, mean, image), mask)
