"""Reading images at points between pixels, and warping them.

B pairs, C channels, H W rows and columns, N points.
"""

from __future__ import annotations

import operator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from homoalign.homography import check_shape, image_size
from homoalign.kept import kept
from homoalign.levels.spline import read_spline

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

    It can be differentiated, by image and matrix. What covers nothing has no gradient: a NaN or singular matrix, a
    pixel behind the horizon.

    Args:
        image: (B, C, H, W) float. Half precision is computed in single precision.
        dst_homo_src: (B, 3, 3), source to destination pixels; on any device.
        size: (height, width) of the destination, pixels.

    Returns:
        (B, C, height, width), dtype and device of the image; zero where the source has no pixel.

    Raises:
        ValueError: a shape or the size is off, batch sizes differ, or the image has no pixels.
        TypeError: not a tensor, an image that is not float, or a complex matrix.
    """
    for name, tensor, shape in (("image", image, "B C H W"), ("dst_homo_src", dst_homo_src, "B 3 3")):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} should be a torch tensor, got {type(tensor).__name__}")
        check_shape(name, tensor, shape)
    if not image.is_floating_point():
        raise TypeError(f"image should be float, got {str(image.dtype).removeprefix('torch.')}")
    if dst_homo_src.is_complex():
        raise TypeError(f"dst_homo_src should be real, got {str(dst_homo_src.dtype).removeprefix('torch.')}")
    if len(image) != len(dst_homo_src):
        raise ValueError(f"image has {len(image)} entries and dst_homo_src has {len(dst_homo_src)}")
    if 0 in image_size(image):
        raise ValueError(f"image has no pixels: shape {tuple(image.shape)}")
    precise = image.to(torch.promote_types(image.dtype, torch.float32))
    warped, covered = warp_with_coverage(precise, dst_homo_src.to(image.device), _checked(size))
    return torch.where(covered[:, None], warped, 0.0).to(image.dtype)


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) as Python's integers."""
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height = width = -1
    if min(height, width) < 0:
        raise ValueError(f"size={size} should be (height, width) in whole pixels")
    return height, width


def inverse(matrix: Tensor) -> Tensor:
    """Return (B, 3, 3) float64 inverses; NaN, and no gradient, where a matrix is singular or NaN."""
    if matrix.requires_grad:
        has_inverse = inverse(matrix.detach()).isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        matrix = torch.where(has_inverse, matrix, torch.nan)
    inverted, info = torch.linalg.inv_ex(matrix.double())
    return torch.where((info == 0)[:, None, None], inverted, torch.nan)


def warp_with_coverage(image: Tensor, dst_homo_src: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Warp as `warp` does, in the image's own precision, and say which destination pixels the source covers.

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
    xy = column_part[..., :2] + row_part[..., :2]
    grid = xy / w  # (B, H, W, 2)
    # The outermost pixels' centres count as inside in spite of rounding.
    inside = grid.detach().abs() <= 1 + 1e-6
    covered = (inside[..., 0] & inside[..., 1]).logical_and_(w[..., 0] > 0)
    if torch.is_grad_enabled() and (image.requires_grad or grid.requires_grad):
        # On its way back grid_sample writes to wherever NaN points, and ends the process; and 0 / 0 has no gradient.
        grid = torch.where(covered[..., None], xy, 0.0) / torch.where(covered[..., None], w, 1.0)
    return grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True), covered
