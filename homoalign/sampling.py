"""Reading images at points between pixels, and warping them.

B pairs, C channels, H W rows and columns, N points.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from homoalign.homography import check_shape, image_size
from homoalign.kept import kept
from homoalign.spline import read_spline

Interpolation = Literal["bilinear", "spline"]


def sample_unit(image: Tensor, unit: Tensor, interpolation: Interpolation = "bilinear") -> Tensor:
    """Read an image at points; beyond its border the border's value.

    Args:
        image: (B, C, H, W) float; for `spline` what `spline_coefficients` made of it.
        unit: (B, 2, N) same dtype, unit coordinates of the image: see `unit_from_pixels`. Points that are not finite
            give NaN or a border value.
        interpolation: `spline` is the cubic B-spline through the pixels.

    Returns:
        (B, C, N).
    """
    if interpolation == "spline":
        return read_spline(image, unit)
    grid = unit.mT[:, None]  # (B, 1, N, 2)
    return grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)[:, :, 0]


@kept(256)
def unit_from_pixels(height: int, width: int, *, device: torch.device) -> Tensor:
    """Return (3, 3) float64: pixels to [-1, 1] from the first pixel's centre to the last's."""
    return torch.tensor(
        [[2 / max(width - 1, 1), 0, -1], [0, 2 / max(height - 1, 1), -1], [0, 0, 1]],
        dtype=torch.float64,
        device=device,
    )


def is_inside(xy: Tensor, size: tuple[int, int], margin: float = 0.0) -> Tensor:
    """Say which points lie on the image, `margin` pixels off its outermost pixel centres. NaN does not.

    Args:
        xy: (..., 2) pixels.
        size: (height, width) of the image, pixels.
        margin: pixels.

    Returns:
        (...) bool.
    """
    height, width = size
    x, y = xy.unbind(-1)
    return (x >= margin) & (x <= width - 1 - margin) & (y >= margin) & (y <= height - 1 - margin)


def warp(image: Tensor, dst_homo_src: Tensor, size: tuple[int, int]) -> Tensor:
    """Warp source images onto the destination frame, bilinearly.

    Args:
        image: (B, C, H, W) float.
        dst_homo_src: (B, 3, 3), source to destination pixels.
        size: (height, width) of the destination, pixels.

    Returns:
        (B, C, height, width); zero where the source has no pixel.

    Raises:
        ValueError: a shape is off.
    """
    check_shape("image", image, "B C H W")
    check_shape("dst_homo_src", dst_homo_src, "B 3 3")
    warped, covered = warp_with_coverage(image, dst_homo_src, size)
    return torch.where(covered[:, None], warped, 0.0)


def inverse(matrix: Tensor) -> Tensor:
    """Return (B, 3, 3) float64 inverses; NaN where a matrix is singular or NaN."""
    inverted, info = torch.linalg.inv_ex(matrix.double())
    return torch.where((info == 0)[:, None, None], inverted, torch.nan)


def warp_with_coverage(image: Tensor, dst_homo_src: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Warp as `warp` does, and say which destination pixels the source covers.

    Returns:
        warped: (B, C, height, width), of no meaning where not covered.
        covered: (B, height, width) bool; False everywhere for a matrix that is NaN or singular.
    """
    src_homo_dst = inverse(dst_homo_src)
    height, width = image_size(image)
    matrix = (unit_from_pixels(height, width, device=image.device) @ src_homo_dst).to(image.dtype)
    x = torch.arange(size[1], dtype=image.dtype, device=image.device)
    y = torch.arange(size[0], dtype=image.dtype, device=image.device)
    column_part = (matrix[:, :, 1, None] * y + matrix[:, :, 2, None]).mT[:, :, None]  # (B, H, 1, 3)
    row_part = (matrix[:, :, 0, None] * x).mT[:, None]  # (B, 1, W, 3)
    w = column_part[..., 2:] + row_part[..., 2:]
    grid = (column_part[..., :2] + row_part[..., :2]).div_(w)  # (B, H, W, 2)
    warped = grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)
    # The outermost pixels' centres count as inside in spite of rounding.
    inside = grid.detach().abs() <= 1 + 1e-6
    return warped, (inside[..., 0] & inside[..., 1]).logical_and_(w[..., 0] > 0)
