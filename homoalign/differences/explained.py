"""How much of dst an answer explains by src's intensities and noise: the yardstick where texture is faint.

What lies in the way has edges, faint texture has hardly any: by structure a wrong answer that lines up with the former
looks better than the right one. By the share of dst that it explains it does not.

B pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign import homography
from homoalign.homography import image_size
from homoalign.levels import metrics
from homoalign.levels.pyramid import Level, noise_gain
from homoalign.optimisation.residual import Alignment

SIDE_PX = 80
"""It is counted on the finest levels of at most this side, where noise is little."""

SCALES = 3.0
"""Standard deviations of noise that a pixel may be off and explained."""

CONTRAST = 0.1
"""Share of dst's contrast that it may be off besides."""

LEAST = 0.6
"""Answers that explain less of dst have nothing to say by that."""

MOSTLY_NOISE = 0.48
"""Share of white noise in the energy of an image's slopes from which its texture is faint."""

SLOPE_OF_NOISE = 3 / 16
"""Energy of Sobel's slopes along an axis, of white noise of variance one."""

CLEARLY = 0.03
"""By so much of dst the better one must explain more."""


def explained_share(src: list[Level], dst: list[Level], alignment: Alignment) -> Tensor:
    """Return (B,) float64, the share of dst that alignments explain; 0 where they are not finite or texture is strong.

    Args:
        src: pyramid of the source images, full size first.
        dst: of the destination images.
        alignment: in full-size pixels, with dst ~ gain * src + bias.
    """
    sides = [min(*image_size(a.image), *image_size(b.image)) for a, b in zip(src, dst, strict=False)]
    level = next((i for i, side in enumerate(sides) if side <= SIDE_PX), len(sides) - 1)
    variance = noise_gain(level) * (alignment.gain * src[0].noise).square() + noise_gain(level) * dst[0].noise.square()
    contrast = dst[level].contrast
    fit = metrics.measure_fit(
        src[level],
        dst[level],
        homography.rescale(alignment.dst_homo_src, level),
        gain=alignment.gain,
        bias=alignment.bias,
        loss_width=torch.hypot(SCALES * variance.sqrt(), CONTRAST * contrast),
    )
    share = (fit.overlap * fit.inlier_ratio).nan_to_num(0.0).double()
    return torch.where(is_faint(src[0], dst[0]), share, 0.0)


def is_faint(src: Level, dst: Level) -> Tensor:
    """Return (B,) bool, whether the texture of one of the full-size images drowns in noise."""

    def share(level: Level) -> Tensor:
        return SLOPE_OF_NOISE * level.noise.square() / level.slope.square().flatten(1).mean(-1, dtype=torch.float64)

    return torch.fmax(share(src), share(dst)) > MOSTLY_NOISE


def explains_more(share: Tensor, other: Tensor) -> Tensor:
    """Return (B,) bool, whether answers that explain (B,) `share` of dst are better than those that explain `other`."""
    return (share > LEAST) & (share - other > CLEARLY)
