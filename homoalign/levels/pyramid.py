"""Gaussian pyramids: blur with [1, 4, 6, 4, 1] / 16, keep every second pixel.

Every level keeps the centre of the top-left pixel at (0, 0), so a point x of the image is x / 2^level of the level
(`homography.rescale`). Masked pixels do not leak: levels are normalised convolutions (Knutsson and Westin, CVPR 1993).

B pairs, H W rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d, pad

from homoalign import kernels
from homoalign.kept import kept
from homoalign.levels.noise import noise_level

LEAST_SHARE = 1e-3
"""A pixel that is made of no more of used ones has no value."""


@dataclass(frozen=True)
class Level:
    """One level of a batch of images.

    Attributes:
        image: (B, 1, H, W) float32, intensities in [0, 1].
        mask: (B, 1, H, W) float32, 1 where the pixel is used and 0 where not; None where all are.
        known_noise: (B,) float64, of `noise`, where something tells it better than the image itself.
    """

    image: Tensor
    mask: Tensor | None
    known_noise: Tensor | None = None

    @cached_property
    def slope(self) -> Tensor:
        """(B, 2, H, W) d/dx and d/dy per pixel, by Sobel's kernels: across the slope they average noise away."""
        if kernels.serves(self.image):
            return kernels.sobel(self.image[:, 0])
        padded = pad(self.image, (1, 1, 1, 1), mode="reflect")[:, 0]
        above, here, below = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
        down = (above + below).add_(here, alpha=2)
        left, here, right = padded[..., :-2], padded[..., 1:-1], padded[..., 2:]
        across = (left + right).add_(here, alpha=2)
        slope = [down[..., 2:] - down[..., :-2], across[:, 2:] - across[:, :-2]]
        return torch.stack(slope, dim=1).mul_(1 / 8)

    @cached_property
    def noise(self) -> Tensor:
        """(B,) float64, standard deviation of the image's noise where it is used, white noise: see `noise_level`."""
        return noise_level(self.image, self.mask) if self.known_noise is None else self.known_noise

    @cached_property
    def contrast(self) -> Tensor:
        """(B,) float64, standard deviation of the intensities, masked ones too."""
        flat = self.image.flatten(1)
        if kernels.serves(flat):
            return kernels.spread(flat)
        centred = flat - flat.mean(-1, keepdim=True)
        return centred.square_().mean(-1).sqrt().double()

    def select(self, index: Tensor) -> Level:
        """Return the pairs that `index` (int64) names."""
        mask, noise = (None if some is None else take(some, index) for some in (self.mask, self.known_noise))
        return Level(take(self.image, index), mask, noise)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Return the rows of `values` that `index` (int64) names; all in their order, not a copy of them."""
    return values if is_everyone(index, len(values)) else values[index]


def is_everyone(index: Tensor, count: int) -> bool:
    """Say whether `index` (int64) names so many pairs, all of them in their order."""
    return len(index) == count and torch.equal(index, torch.arange(count, device=index.device))


@lru_cache
def noise_gain(level: int) -> float:
    """Return the variance of a level's noise over that of the white noise of the image."""
    kernel, row = torch.ones(1, dtype=torch.float64), torch.tensor([1, 4, 6, 4, 1], dtype=torch.float64) / 16
    for k in range(level):
        spread = torch.zeros(4 * 2**k + 1, dtype=torch.float64)
        spread[:: 2**k] = row
        kernel = torch.nn.functional.conv1d(kernel.view(1, 1, -1), spread.view(1, 1, -1), padding=len(spread) - 1)
        kernel = kernel.flatten()
    return float(kernel.square().sum() ** 2)


def halve(image: Tensor) -> Tensor:
    """Blur and keep every second pixel: (B, C, H, W) to (B, C, ceil(H / 2), ceil(W / 2))."""
    if kernels.serves(image):
        return kernels.halve(image)
    for dim in (-2, -1):
        # Mirrored at the border pixel, so that a slope stays a slope.
        ends = (2, 2, 0, 0) if dim == -1 else (0, 0, 2, 2)
        padded = pad(image, ends, mode="reflect")
        size = (image.shape[dim] + 1) // 2
        tap = [padded.narrow(dim, shift, padded.shape[dim] - shift) for shift in range(5)]
        tap = [t[..., ::2, :] if dim == -2 else t[..., ::2] for t in tap]
        tap = [t.narrow(dim, 0, size) for t in tap]
        image = ((tap[0] + tap[4]) + 4 * (tap[1] + tap[3]) + 6 * tap[2]) / 16
    return image


def soften(image: Tensor) -> Tensor:
    """Blur (B, 1, H, W) with [1, 2, 1] / 4; beyond the border slopes go on, so that one there stays as it is."""
    if kernels.serves(image):
        return kernels.soften(image[:, 0])[:, None]
    for dim in (-2, -1):
        side = image.shape[dim]
        inner = (image.narrow(dim, 0, side - 2) + image.narrow(dim, 2, side - 2)).add_(
            image.narrow(dim, 1, side - 2), alpha=2
        )
        image = torch.cat([image.narrow(dim, 0, 1), inner.mul_(1 / 4), image.narrow(dim, side - 1, 1)], dim=dim)
    return image


def num_levels(sizes: list[tuple[int, int]], *, min_side_px: int, max_levels: int) -> int:
    """Return how many levels fit until the shortest side of any image would fall below `min_side_px`."""
    side = min(min(size) for size in sizes)
    count = 1
    while count < max_levels and (side + 1) // 2 >= min_side_px:
        side = (side + 1) // 2
        count += 1
    return count


def build_pyramid(full: Level, count: int) -> list[Level]:
    """Build `count` levels, the full-size one first.

    Args:
        full: images and masks; sides of at least 3 pixels at every level. What is masked is filled in.
        count: number of levels, at least 1.
    """
    levels, shares = [full], [] if full.mask is None else [full.mask]
    for _ in range(count - 1):
        image, mask = levels[-1].image, levels[-1].mask
        if mask is None:
            levels.append(Level(halve(image), None))
            continue
        share = halve(mask)
        image = halve(image * mask) / share.clamp_min(1e-6)
        levels.append(Level(image, (share >= 0.5).to(image.dtype)))
        shares.append(share)
    return _filled(levels, shares) if shares else levels


def _filled(levels: list[Level], shares: list[Tensor]) -> list[Level]:
    """Carry coarser levels on where finer ones have no used pixel, so that no filter finds the edge of a mask.

    (The pull and push of Gortler et al., "The lumigraph", SIGGRAPH 1996.)

    Args:
        levels: finest first.
        shares: (B, 1, H, W) each, of what a level's pixels are made of, how much is used.
    """
    filled: list[Level] = []
    for level, share in zip(reversed(levels), reversed(shares), strict=True):
        known = share > LEAST_SHARE
        if filled:
            beyond = interpolate(filled[-1].image, level.image.shape[-2:], mode="bilinear", align_corners=True)
        else:
            beyond = (level.image * known).sum((-2, -1), keepdim=True) / known.sum((-2, -1), keepdim=True).clamp_min(1)
        filled.append(Level(torch.where(known, level.image, beyond), level.mask))
    return filled[::-1]


def usable_pixels(image: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B, 1, H, W) bool: False on the border, and where a slope reads a pixel that `mask` (B, 1, H, W) hides.

    Without a mask (1, 1, H, W), for all pairs.
    """
    usable = _off_border(image.shape[-2], image.shape[-1], image.device)
    if mask is None:
        return usable
    # A pixel's gradient reads its neighbours.
    if kernels.serves(mask):
        return kernels.usable_pixels(mask[:, 0])[:, None]
    return usable & (-max_pool2d(-mask, 3, stride=1, padding=1) > 0.5)


@kept(64)
def _off_border(height: int, width: int, device: torch.device) -> Tensor:
    """Return (1, 1, H, W) bool, False on the border."""
    usable = torch.zeros(1, 1, height, width, dtype=torch.bool, device=device)
    usable[..., 1:-1, 1:-1] = True
    return usable
