"""The sums that say how well a pair fits, over every pixel of dst.

B pairs, H W rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import BLOCK, Bools, Doubles, Floats, arrays, compiled
from homoalign.kernels.reading import read_pair

NUM_SUMS = 8

ROUNDING_PX = 1e-4
"""So far off the image the outermost pixels' centres may come to lie by rounding."""


class FitSums(NamedTuple):
    """Sums over the overlap, (B,) float64; a is the warped source, b is dst, both less a constant.

    Attributes:
        overlap: number of pixels.
        a: sum of a.
        b: sum of b.
        aa: sum of squares of a.
        bb: sum of squares of b.
        ab: sum of products.
        difference: sum of |b - a|.
        inliers: number of pixels where b is within the loss's width of what a says.
    """

    overlap: Tensor
    a: Tensor
    b: Tensor
    aa: Tensor
    bb: Tensor
    ab: Tensor
    difference: Tensor
    inliers: Tensor


def fit_sums(
    src: Tensor,
    src_mask: Tensor | None,
    dst: Tensor,
    dst_mask: Tensor | None,
    src_homo_dst: Tensor,
    light: Tensor,
) -> FitSums:
    """Warp src onto dst, bilinearly, and sum.

    Args:
        src: (B, h, w) float32.
        src_mask: (B, h, w) float32 or None.
        dst: (B, H, W) float32.
        dst_mask: (B, H, W) float32 or None.
        src_homo_dst: (B, 3, 3), dst to src pixels; nothing is seen where it is NaN.
        light: (B, 4) float64: gain, bias, the loss's width, and a constant near the mean of dst.
    """
    batch = len(dst)
    sums = torch.zeros(batch, NUM_SUMS, dtype=torch.float64)
    none = torch.empty(batch, 0, 0)
    masks = (none if src_mask is None else src_mask, none if dst_mask is None else dst_mask)
    _fit_sums(*arrays(src, masks[0], dst, masks[1], src_homo_dst.double(), light, sums))
    return FitSums(*sums.unbind(-1))


def count_inside(dst_homo_src: Tensor, src_size: tuple[int, int], dst_size: tuple[int, int]) -> Tensor:
    """Return (B,) float64, how many pixels of src land on dst.

    Args:
        dst_homo_src: (B, 3, 3); where it is NaN none does.
        src_size: (height, width), pixels.
        dst_size: likewise.
    """
    count = torch.zeros(len(dst_homo_src), dtype=torch.float64)
    _count_inside(src_size, dst_size, *arrays(dst_homo_src.double(), count))
    return count


@compiled
def _count_inside(src_size: tuple[int, int], dst_size: tuple[int, int], matrix: Doubles, count: Doubles) -> None:
    right, bottom = dst_size[1] - 1.0, dst_size[0] - 1.0
    for b in range(len(matrix)):
        m = matrix[b]
        for y in range(src_size[0]):
            of_x, of_y, of_w = m[0, 1] * y + m[0, 2], m[1, 1] * y + m[1, 2], m[2, 1] * y + m[2, 2]
            of_row = 0.0
            for x in range(src_size[1]):
                w = m[2, 0] * x + of_w
                dst_x, dst_y = m[0, 0] * x + of_x, m[1, 0] * x + of_y
                inside = (w > 0) & (dst_x >= 0) & (dst_x <= right * w) & (dst_y >= 0) & (dst_y <= bottom * w)
                of_row += 1.0 if inside else 0.0
            count[b] += of_row


@compiled
def _fit_sums(
    src: Floats, src_mask: Floats, dst: Floats, dst_mask: Floats, src_homo_dst: Doubles, light: Doubles, sums: Doubles
) -> None:
    height, width = dst.shape[1], dst.shape[2]
    value, seen = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.bool_)
    rest = np.empty(NUM_SUMS, np.float32)
    for b in range(len(dst)):
        for y in range(height):
            for first in range(0, width, BLOCK):
                n = min(BLOCK, width - first)
                _read_row(src[b], src_mask[b], src_homo_dst[b], y, first, value[:n], seen[:n])
                _hide(dst_mask[b], y, first, seen[:n])
                _sum_block(value[:n], seen[:n], dst[b, y, first : first + n], light[b], rest)
                for i in range(NUM_SUMS):
                    sums[b, i] += rest[i]


def warp_level(
    src: Tensor, src_mask: Tensor | None, dst_mask: Tensor | None, src_homo_dst: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Do what `metrics.warp_level` does.

    Args:
        src: (B, h, w) float32.
        src_mask: (B, h, w) float32 or None.
        dst_mask: (B, H, W) float32 or None.
        src_homo_dst: (B, 3, 3), dst to src pixels; nothing is covered where it is NaN.
        size: (height, width) of dst, pixels.

    Returns:
        warped: (B, H, W) float32.
        covered: (B, H, W) bool.
    """
    warped, covered = torch.empty(len(src), *size), torch.empty(len(src), *size, dtype=torch.bool)
    none = torch.empty(len(src), 0, 0)
    masks = (none if src_mask is None else src_mask, none if dst_mask is None else dst_mask)
    _warp_level(*arrays(src, *masks, src_homo_dst.double(), warped, covered))
    return warped, covered


@compiled
def _warp_level(
    src: Floats, src_mask: Floats, dst_mask: Floats, src_homo_dst: Doubles, warped: Floats, covered: Bools
) -> None:
    zero = np.float32(0)
    for b in range(len(src)):
        for y in range(warped.shape[1]):
            for first in range(0, warped.shape[2], BLOCK):
                value, seen = warped[b, y, first : first + BLOCK], covered[b, y, first : first + BLOCK]
                _read_row(src[b], src_mask[b], src_homo_dst[b], y, first, value, seen)
                _hide(dst_mask[b], y, first, seen)
                for k in range(value.size):
                    value[k] = value[k] if seen[k] else zero


@compiled
def _hide(mask: Floats, y: int, first: int, seen: Bools) -> None:
    """Call not seen what lies under a mask, an empty one being none."""
    if mask.size > 0:
        for k in range(seen.size):
            seen[k] &= mask[y, first + k] > np.float32(0.5)


@compiled
def _read_row(
    image: Floats, mask: Floats, src_homo_dst: Doubles, y: int, first: int, value: Floats, seen: Bools
) -> None:
    """Read an image where the pixels of a part of dst's row `y` lie on it, from column `first` on."""
    n = value.size
    column, usable = np.zeros((2, n), np.float32), np.empty(n, np.bool_)
    # The first pixel is moved to the origin, where float32 has digits to spare.
    matrix = np.empty((3, 3), np.float32)
    for i in range(3):
        matrix[i, 0], matrix[i, 1] = src_homo_dst[i, 0], 0
        matrix[i, 2] = src_homo_dst[i, 0] * first + src_homo_dst[i, 1] * y + src_homo_dst[i, 2]
    for k in range(n):
        column[0, k] = k
        usable[k] = matrix[2, 2] + matrix[2, 0] * np.float32(k) > 0
    read_pair(image, mask, matrix, column, usable, np.float32(-ROUNDING_PX), False, value, seen)


def warp_difference(src: Tensor, matrices: tuple[Tensor, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Warp src by two matrices, bilinearly, and compare where both cover dst.

    Args:
        src: (B, C, h, w) float32.
        matrices: (B, 3, 3) each, dst to src pixels; nothing is covered where one is NaN.
        size: (height, width) of dst, pixels.

    Returns:
        difference: (B,) float64, sum over pixels of the mean absolute difference of the channels.
        count: (B,) float64, of pixels.
    """
    difference, count = (torch.zeros(len(src), dtype=torch.float64) for _ in range(2))
    first, second = (matrix.double() for matrix in matrices)
    _warp_difference(size, *arrays(src, first, second, difference, count))
    return difference, count


@compiled
def _warp_difference(
    size: tuple[int, int], src: Floats, first: Doubles, second: Doubles, difference: Doubles, count: Doubles
) -> None:
    height, width = size
    no_mask = np.empty((0, 0), np.float32)
    a, b = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    in_a, in_b = np.empty(BLOCK, np.bool_), np.empty(BLOCK, np.bool_)
    for i in range(len(src)):
        for y in range(height):
            for left in range(0, width, BLOCK):
                n = min(BLOCK, width - left)
                for c in range(src.shape[1]):
                    _read_row(src[i, c], no_mask, first[i], y, left, a[:n], in_a[:n])
                    _read_row(src[i, c], no_mask, second[i], y, left, b[:n], in_b[:n])
                    off, both = _sum_off(a[:n], b[:n], in_a[:n], in_b[:n])
                    difference[i] += off / src.shape[1]
                count[i] += both


@compiled
def _sum_off(a: Floats, b: Floats, in_a: Bools, in_b: Bools) -> tuple[float, float]:
    """Return the sum of |a - b| over what both count, and how many do."""
    off, both = np.float32(0), np.float32(0)
    for k in range(a.size):
        counts = np.float32(1) if in_a[k] & in_b[k] else np.float32(0)
        off += counts * abs(a[k] - b[k])
        both += counts
    return float(off), float(both)


@compiled
def _sum_block(value: Floats, seen: Bools, dst: Floats, light: Doubles, sums: Floats) -> None:
    gain, bias = np.float32(light[0]), np.float32(light[1])
    width, shift = np.float32(light[2]), np.float32(light[3])
    zero, one = np.float32(0), np.float32(1)
    count = of_a = of_b = of_aa = of_bb = of_ab = of_difference = of_inliers = zero
    for k in range(value.size):
        is_seen = one if seen[k] else zero
        a, b = (value[k] - shift) * is_seen, (dst[k] - shift) * is_seen
        count += is_seen
        of_a += a
        of_b += b
        of_aa += a * a
        of_bb += b * b
        of_ab += a * b
        of_difference += abs(b - a)
        off = abs(dst[k] - gain * value[k] - bias)
        of_inliers += is_seen if off <= width else zero
    sums[0], sums[1], sums[2], sums[3] = count, of_a, of_b, of_aa
    sums[4], sums[5], sums[6], sums[7] = of_bb, of_ab, of_difference, of_inliers
