"""What edges look like whatever the light or the sensor: oriented gradients, free of sign, locally normalised.

A gradient at angle t and its opposite are one orientation, so the channels are its magnitude times cos and sin of 2t
and 4t: the sum of their products over two images is high where orientations agree, about zero where they are
unrelated. Divided by their local energy they say the same in light and in shadow. (The
double angle is Granlund and Knutsson's, "Signal Processing for Computer Vision", 1995; dense oriented-gradient
channels for sensors of unlike kind are Ye et al.'s CFOG, "Fast and robust matching for multimodal remote sensing
image registration", TGRS 2019.)

B pairs, C = 2 * len(HARMONICS) channels, H W rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from homoalign import kernels
from homoalign.levels.box import box
from homoalign.levels.pyramid import Level, take, usable_pixels

HARMONICS = (2, 4)
"""Multiples of the gradient's angle; even ones do not tell a gradient from its opposite."""

CHANNELS = 2 * len(HARMONICS)

WINDOW_RADIUS = 2
"""The local energy is the mean over a square of this radius, pixels."""

ENERGY_FLOOR = 0.1
"""Share of the whole image's mean energy that is added to the local one: flat places stay quiet."""


ROUNDING = 1e-10
"""Energies well below are those of float32 itself."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What is known of the edges of a batch of images.

    Attributes:
        channels: (B, C, H, W) float32, cosine and sine of each harmonic in turn; their root mean square is about 1
            where there is structure, and they are 0 where nothing can be said.
        usable: (B, 1, H, W) float32, 1 where they can be used and 0 where not.
    """

    channels: Tensor
    usable: Tensor

    def select(self, index: Tensor) -> Structure:
        """Return the images that `index` (int64) names."""
        return Structure(take(self.channels, index), take(self.usable, index))


def describe(level: Level) -> Structure:
    """Return the structure channels of a level's (B, 1, H, W) images."""
    # Gradients are mirrored on the border.
    usable = usable_pixels(level.image, level.mask).to(level.image).expand_as(level.image)
    if kernels.serves(level.image):
        settings = (len(HARMONICS), 2 * WINDOW_RADIUS + 1, ENERGY_FLOOR, ROUNDING)
        return Structure(kernels.describe(level.image[:, 0], usable[:, 0], settings), usable)
    slope = level.slope * usable
    energy = slope.square().sum(1)
    magnitude = energy.sqrt()
    x, y = slope.unbind(1)
    # exp(2it) |g| = (x + iy)^2 / |g|; each further doubling of the angle squares the unit vector again.
    inverse = 1 / magnitude.clamp_min(1e-9)
    cos, sin = (x * x - y * y) * inverse * inverse, 2 * x * y * inverse * inverse
    channels = [cos * magnitude, sin * magnitude]
    for _ in HARMONICS[1:]:
        cos, sin = cos * cos - sin * sin, 2 * cos * sin
        channels += [cos * magnitude, sin * magnitude]
    smooth = _smooth(torch.stack(channels, dim=1))
    energy = smooth.square().sum(1, keepdim=True)
    local = box(energy, WINDOW_RADIUS) / box(usable, WINDOW_RADIUS).clamp_min(1e-6)
    whole = energy.sum((-2, -1), keepdim=True) / usable.sum((-2, -1), keepdim=True).clamp_min(1)
    return Structure(smooth * (local + ENERGY_FLOOR * whole + ROUNDING).rsqrt() * usable, usable)


def correlation(a: Structure, b: Structure) -> tuple[Tensor, Tensor]:
    """Correlate the structure of images in one frame, where both are usable.

    Returns:
        correlation: (B,) float64 in [-1, 1]; 0 where there is nothing to compare.
        overlap: (B,) float64, share of the frame where both are usable.
    """
    pixels = math.prod(a.usable.shape[-2:])
    if kernels.serves(a.channels):
        products = kernels.structure_products((a.channels, b.channels), (a.usable[:, 0], b.usable[:, 0]))
        dot, p_energy, q_energy, count = products
        return dot / (p_energy * q_energy).clamp_min(1e-12).sqrt(), count / pixels
    both = a.usable * b.usable
    p, q = a.channels * both, b.channels * both
    dot, p_energy, q_energy = ((u * v).flatten(1).sum(-1, dtype=torch.float64) for u, v in ((p, q), (p, p), (q, q)))
    return dot / (p_energy * q_energy).clamp_min(1e-12).sqrt(), both.flatten(1).sum(-1, dtype=torch.float64) / pixels


def _smooth(image: Tensor) -> Tensor:
    """Blur with [1, 2, 1] / 4 along both axes."""
    for dim in (-2, -1):
        ends = (1, 1, 0, 0) if dim == -1 else (0, 0, 1, 1)
        padded, size = pad(image, ends, mode="replicate"), image.shape[dim]
        image = (padded.narrow(dim, 0, size) + padded.narrow(dim, 2, size)).mul_(0.25)
        image.add_(padded.narrow(dim, 1, size), alpha=0.5)
    return image
