"""How well a pair lies on each other, measured over the overlap.

B pairs, H W rows and columns (of dst unless said otherwise).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from homoalign import homography, kernels
from homoalign.homography import image_size
from homoalign.pyramid import Level
from homoalign.sampling import inverse, is_inside, warp_with_coverage

SHIFT_STRIDE = 61
"""Every so many pixels tell about where an image's mean is."""

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
class Fit:
    """Per-pair figures, (B,) float64; NaN where there is no overlap.

    Attributes:
        photometric_l1: mean absolute difference of the warped source and dst, intensities in [0, 1].
        zncc: zero-mean normalised cross-correlation.
        overlap: share of dst's usable pixels that the warped source covers.
        inlier_ratio: share of the overlap's pixels within the loss's width.
    """

    photometric_l1: Tensor
    zncc: Tensor
    overlap: Tensor
    inlier_ratio: Tensor


def warp_level(src: Level, dst: Level, dst_homo_src: Tensor) -> tuple[Tensor, Tensor]:
    """Warp a level of src onto the same level of dst: (B, H, W) values, and (B, H, W) bool where both count."""
    return warp_onto(src, dst_homo_src, image_size(dst.image), dst.mask)


def warp_onto(
    src: Level, dst_homo_src: Tensor, size: tuple[int, int], dst_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Warp a level of src onto a frame of (height, width) `size`, of which (B, 1, H, W) `dst_mask` is used.

    Returns:
        warped: (B, H, W), 0 where not covered.
        covered: (B, H, W) bool, where both count.
    """
    if kernels.serves(src.image):
        masks = [None if mask is None else mask[:, 0] for mask in (src.mask, dst_mask)]
        return kernels.warp_level(src.image[:, 0], masks[0], masks[1], inverse(dst_homo_src), size)
    warped, covered = warp_with_coverage(src.image, dst_homo_src, size)
    if src.mask is not None:
        mask, _ = warp_with_coverage(src.mask, dst_homo_src, size)
        covered = covered & (mask[:, 0] > 0.999)
    if dst_mask is not None:
        covered = covered & (dst_mask[:, 0] > 0.5)
    return torch.where(covered, warped[:, 0], 0.0), covered


def measure_fit(src: Level, dst: Level, dst_homo_src: Tensor, *, gain: Tensor, bias: Tensor, loss_width: Tensor) -> Fit:
    """Measure the full-size images.

    Args:
        src: source images.
        dst: destination images.
        dst_homo_src: (B, 3, 3).
        gain: (B,) of the photometric model.
        bias: (B,) likewise.
        loss_width: (B,) residuals beyond it are outliers, intensities in [0, 1].
    """
    usable = dst.image[0].numel() if dst.mask is None else total(dst.mask[:, 0])
    if kernels.serves(dst.image):
        shift = dst.image.flatten(1)[:, ::SHIFT_STRIDE].mean(-1).double()
        sums = kernels.fit_sums(
            src.image[:, 0],
            None if src.mask is None else src.mask[:, 0],
            dst.image[:, 0],
            None if dst.mask is None else dst.mask[:, 0],
            inverse(dst_homo_src),
            torch.stack([gain, bias, loss_width, shift], dim=-1),
        )
        count = sums.overlap
        spread = sums.aa / count - (sums.a / count).square(), sums.bb / count - (sums.b / count).square()
        zncc = (sums.ab / count - sums.a * sums.b / count.square()) / (spread[0] * spread[1]).sqrt()
        return Fit(sums.difference / count, zncc.clamp(-1, 1), count / usable, sums.inliers / count)
    warped, covered = warp_level(src, dst, dst_homo_src)
    value, inside = dst.image[:, 0], covered.to(warped)

    def column(values: Tensor) -> Tensor:
        return values[:, None, None].to(value)

    # All sums of a fit in one product; shifted to about zero mean, where float32 keeps the digits of a variance.
    shifted = [(image - image.mean((-2, -1), keepdim=True)).mul_(inside) for image in (warped, value)]
    rows = torch.stack([inside, *shifted], dim=1).flatten(2)  # (B, 3, H * W)
    products = (rows @ rows.mT).double()
    count = products[:, 0, 0]
    mean = products[:, 0] / count[:, None]
    centred = products / count[:, None, None] - mean[:, :, None] * mean[:, None, :]
    zncc = centred[:, 1, 2] / (centred[:, 1, 1] * centred[:, 2, 2]).sqrt()

    difference = value - warped
    residual = torch.addcmul(difference - column(bias), column(1 - gain), warped)
    inlier = (residual.abs_() <= column(loss_width)) & covered
    return Fit(
        photometric_l1=total(difference.abs_().mul_(inside)) / count,
        zncc=zncc.clamp(-1, 1),
        overlap=count / usable,
        inlier_ratio=inlier.flatten(1).sum(-1) / count,
    )


def total(values: Tensor) -> Tensor:
    """Sum (B, H, W) over each image: (B,) float64, rows in float32 and their sums in float64."""
    return values.sum(-1).sum(-1, dtype=torch.float64)


def residual_scale(src: Level, dst: Level, dst_homo_src: Tensor) -> Tensor:
    """Return (B,) 1.4826 times the median absolute difference of warped src and dst; NaN without overlap."""
    warped, covered = warp_level(src, dst, dst_homo_src)
    difference = torch.where(covered, (warped - dst.image[:, 0]).abs(), torch.nan)
    return 1.4826 * torch.nanmedian(difference.flatten(1), dim=-1).values.double()


def photometric_l1(src: Level, dst: Level, dst_homo_src: Tensor) -> Tensor:
    """Return (B,) float64 mean absolute difference of warped src and dst over the overlap; NaN where there is none."""
    warped, covered = warp_level(src, dst, dst_homo_src)
    difference = torch.where(covered, (warped - dst.image[:, 0]).abs(), 0.0)
    return total(difference) / covered.sum((-2, -1))


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
    rows = avg_pool2d(values[:, None], (WINDOW, 1), stride=1, padding=(WINDOW // 2, 0))
    return avg_pool2d(rows, (1, WINDOW), stride=1, padding=(0, WINDOW // 2))[:, 0]


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    summed = torch.where(counted, values, 0.0).sum((-2, -1), keepdim=True)
    return summed / counted.sum((-2, -1), keepdim=True).clamp_min(1) + 1e-12


def share_of_src_seen(src: Level, dst: Level, dst_homo_src: Tensor, overlap: Tensor) -> Tensor:
    """Return (B,) share of src's pixels that land on dst, less what masks take from it.

    Args:
        src: source images.
        dst: destination images.
        dst_homo_src: (B, 3, 3).
        overlap: (B,) share of dst that is covered, masks honoured; they are taken to take as much of src.
    """
    sizes = image_size(src.image), image_size(dst.image)
    seen = _share_inside(dst_homo_src, *sizes)
    if src.mask is None and dst.mask is None:
        return seen
    covered = _share_inside(inverse(dst_homo_src), *reversed(sizes))
    return seen * (overlap / covered).clamp_max(1).nan_to_num(0.0)


def _share_inside(H_b_a: Tensor, size_a: tuple[int, int], size_b: tuple[int, int]) -> Tensor:
    """Return (B,) float64 share of image a's pixels that land on image b."""
    height, width = size_a
    if kernels.serves(H_b_a, torch.float64):
        return kernels.count_inside(H_b_a, size_a, size_b) / (height * width)
    y, x = (torch.arange(side, dtype=H_b_a.dtype, device=H_b_a.device) for side in size_a)
    xy = torch.cartesian_prod(y, x).flip(-1)[None]
    warped = homography.warp_points(H_b_a, xy.expand(len(H_b_a), -1, -1))
    return is_inside(warped, size_b).double().mean(-1)


def reprojection_l1(src: Tensor, dst_homo_src: Tensor, dst_homo_src_gt: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean absolute difference of src warped by the estimate and by the truth, where both cover dst.

    kornia's tutorial calls it the reprojection error.

    Args:
        src: (B, C, h, w) float32, intensities in [0, 1].
        dst_homo_src: (B, 3, 3) estimate.
        dst_homo_src_gt: (B, 3, 3) truth.
        size: (height, width) of dst, pixels.

    Returns:
        (B,) float64; NaN where the two share no pixel of dst, or a matrix is NaN.
    """
    if kernels.serves(src):
        difference, count = kernels.warp_difference(src, (inverse(dst_homo_src), inverse(dst_homo_src_gt)), size)
        return difference / count
    warped, covered = warp_with_coverage(src, dst_homo_src, size)
    truth, covered_by_truth = warp_with_coverage(src, dst_homo_src_gt, size)
    both = (covered & covered_by_truth)[:, None]
    difference = torch.where(both, (warped - truth).abs(), 0.0).mean(1)
    return total(difference) / both[:, 0].sum((-2, -1))


def corner_covariance(parameter_covariance: Tensor, dst_homo_src: Tensor, height: int, width: int) -> Tensor:
    """Propagate the covariance of the eight parameters to the source's corners, in destination pixels.

    Args:
        parameter_covariance: (B, P, P), the first eight being those of sl(3).
        dst_homo_src: (B, 3, 3).
        height: of src, pixels.
        width: of src, pixels.

    Returns:
        (B, 4, 2, 2) pixels squared.
    """
    jacobian = corner_jacobian(dst_homo_src, height, width)
    return jacobian @ parameter_covariance[:, None, :8, :8] @ jacobian.mT


def corner_jacobian(dst_homo_src: Tensor, height: int, width: int) -> Tensor:
    """Return (B, 4, 2, 8), how the source's corners move with the parameters, in destination pixels."""
    to_pixels = homography.pixels_from_centred(height, width, device=dst_homo_src.device)
    corners = homography.image_corners(height, width, device=dst_homo_src.device)
    u = (corners - to_pixels[:2, 2]) / to_pixels[0, 0]
    matrix = dst_homo_src @ to_pixels
    homogeneous = torch.cat([u, torch.ones_like(u[:, :1])], dim=-1) @ matrix.mT  # (B, 4, 3)
    w = homogeneous[..., 2:, None]
    xy = homogeneous[..., :2, None] / w
    d_xy_d_u = (matrix[:, None, :2, :2] - xy * matrix[:, None, 2:, :2]) / w  # (B, 4, 2, 2)
    motion = torch.stack([torch.stack(pair, dim=-1) for pair in homography.velocities(*u.unbind(-1))], dim=-1)
    return d_xy_d_u @ motion


def corner_std(covariance: Tensor) -> Tensor:
    """Return (B,) root mean square length of the four corners' error vectors, of (B, 4, 2, 2) covariances."""
    # The trace of a covariance is the mean square length.
    return covariance.diagonal(dim1=-2, dim2=-1).sum(-1).mean(-1).sqrt()
