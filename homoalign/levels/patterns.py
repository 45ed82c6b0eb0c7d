"""What two aligned images have in common when brightness and large-scale contrast are taken away: local correlation.

B pairs, H W rows and columns of dst.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from homoalign import kernels
from homoalign.levels.box import box
from homoalign.levels.metrics import total, warp_level
from homoalign.levels.pyramid import Level

WINDOW = 9
"""Side of the windows of `local_correlation`, pixels of the level it is measured on."""

ENERGY_FLOOR = 0.05
"""Share of the mean energy that is added to a window's: flat windows must not echo noise."""

BLOCKS = 6
"""The frame has this many blocks a side where `local_correlation` looks for parts that disagree."""

WEAK_SHARE = 0.4
"""Up to this share of the blocks may disagree, as they do where something is in the way."""

LEAST_TEXTURE = 0.003
"""Blocks with a smaller standard deviation about their neighbourhoods' means show rounding, not structure."""

LEAST_SIGNAL = 0.3
"""Least share of an energy that is taken for signal, whatever the noise is said to be."""

INTERPOLATED_NOISE = 0.45
"""What bilinear interpolation leaves of white noise's variance, (2 / 3)^2 on average."""


@dataclass(frozen=True, slots=True)
class Patterns:
    """Two aligned images when every pixel's neighbourhood mean is taken away, (B, H, W) each.

    Brightness, vignetting and large-scale contrast, which unrelated photographs share easily, are gone.

    Attributes:
        src: warped source, zero where not counted.
        dst: likewise.
        weight: each window has a like say, whatever its contrast.
        counted: bool, where both are known.
    """

    src: Tensor
    dst: Tensor
    weight: Tensor
    counted: Tensor


def local_patterns(src: Level, dst: Level, dst_homo_src: Tensor) -> Patterns:
    """Warp src onto dst, and take the neighbourhoods' means away.

    Args:
        src: source images of a level.
        dst: destination images of the same level.
        dst_homo_src: (B, 3, 3), of that level's pixels.
    """
    warped, covered = warp_level(src, dst, dst_homo_src)
    if kernels.serves(warped):
        return Patterns(*kernels.local_patterns(warped, covered, dst.image[:, 0], WINDOW, ENERGY_FLOOR))
    value = torch.where(covered, dst.image[:, 0], 0.0)
    share = _window_mean(covered.to(value))
    counted = covered & (share > 0.5)

    def high_pass(values: Tensor) -> Tensor:
        return torch.where(counted, values - _window_mean(values) / share.clamp_min(1e-6), 0.0)

    a, b = high_pass(warped), high_pass(value)
    energy_a, energy_b = _window_mean(a * a), _window_mean(b * b)
    floor_a, floor_b = ENERGY_FLOOR * _mean(energy_a, counted), ENERGY_FLOOR * _mean(energy_b, counted)
    weight = 1 / ((energy_a + floor_a).sqrt() * (energy_b + floor_b).sqrt())
    return Patterns(a, b, torch.where(counted, weight, 0.0), counted)


def local_correlation(patterns: Patterns, noise: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Correlate two images' patterns.

    Known noise is taken out of the energies, so that a noisy pair is not called unlike (Spearman's correction for
    attenuation, 1904).

    Args:
        patterns: of both images.
        noise: (B,) variance of src's and of dst's noise at this level.

    Returns:
        whole: (B,) in [-1, 1], over the overlap; NaN where no window lies in it or all are flat.
        weak: (B,) the value that `WEAK_SHARE` of the textured blocks stay below; NaN where there is none. A
            strong edge that both images share, such as a frame or a horizon, carries `whole` but not this.
    """
    sums, per_block = _pattern_sums(patterns)
    of_weight, of_aa, of_bb, of_ab = sums.unbind(1)
    zero = torch.zeros_like(of_weight)
    noise_a, noise_b = (zero, zero) if noise is None else noise
    noise_a = INTERPOLATED_NOISE * noise_a
    energies = [
        (energy - variance * of_weight).clamp_min(LEAST_SIGNAL * energy)
        for energy, variance in ((of_aa, noise_a), (of_bb, noise_b))
    ]
    whole = (of_ab / (energies[0] * energies[1]).sqrt()).clamp(-1, 1)

    filled, aa, bb, ab = per_block.unbind(1)
    textured = (filled > 0.3) & (torch.fmin(aa, bb) > LEAST_TEXTURE**2 * filled)
    signal_a, signal_b = aa - filled * noise_a[:, None].to(aa), bb - filled * noise_b[:, None].to(bb)
    clear = textured & (signal_a > LEAST_SIGNAL * aa) & (signal_b > LEAST_SIGNAL * bb)
    of_block = torch.where(clear, ab / (signal_a * signal_b).sqrt(), torch.nan)
    weak = torch.nanquantile(of_block.double().clamp(-1, 1), WEAK_SHARE, dim=-1)
    # Where noise hides what every block shows, the whole must do.
    return whole, torch.where(weak.isnan() & textured.any(-1), whole, weak)


def _pattern_sums(patterns: Patterns) -> tuple[Tensor, Tensor]:
    """Return (B, 4) float64 sums of w, w a a, w b b, w a b, and (B, 4, BLOCKS^2) means of counted, a a, b b, a b."""
    a, b, weight = patterns.src, patterns.dst, patterns.weight
    if kernels.serves(a):
        return kernels.pattern_sums(a, b, weight, patterns.counted, BLOCKS)
    whole = torch.stack([total(weight * values) for values in (torch.ones_like(a), a * a, b * b, a * b)], dim=1)
    per_block = torch.stack([patterns.counted.to(a), a * a, b * b, a * b], dim=1)
    return whole, adaptive_avg_pool2d(per_block, BLOCKS).flatten(2)


def _window_mean(values: Tensor) -> Tensor:
    return box(values[:, None], WINDOW // 2)[:, 0]


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    summed = torch.where(counted, values, 0.0).sum((-2, -1), keepdim=True)
    return summed / counted.sum((-2, -1), keepdim=True).clamp_min(1) + 1e-12
