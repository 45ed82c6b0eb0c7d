"""How well a pair lies on each other, measured over the overlap.

B pairs, H W rows and columns (of dst unless said otherwise).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from homoalign import homography, kernels
from homoalign.homography import image_size
from homoalign.levels.pyramid import Level
from homoalign.levels.sampling import inverse, is_inside, warp_with_coverage

SHIFT_STRIDE = 61
"""Every so many pixels tell about where an image's mean is."""


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
