"""The sums that say how well a pair fits, over every pixel of dst.

B pairs, H W rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import BLOCK, Bools, Doubles, Floats, arrays, compiled
from homoalign.kernels.reading import keep_whole, place, read_bilinear

NUM_SUMS = 8

TILE_ROWS = 32
"""Rows of dst at a time."""

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
    none = torch.empty(batch, 0, 0, dtype=torch.float32)
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
    value, seen = np.empty((TILE_ROWS, BLOCK), np.float32), np.empty((TILE_ROWS, BLOCK), np.bool_)
    rest = np.empty(NUM_SUMS, np.float32)
    for b in range(len(dst)):
        for top in range(0, height, TILE_ROWS):
            for left in range(0, width, BLOCK):
                rows, n = min(TILE_ROWS, height - top), min(BLOCK, width - left)
                _read_tile(src[b], src_mask[b], src_homo_dst[b], top, left, value[:rows, :n], seen[:rows, :n])
                for i in range(rows):
                    _hide(dst_mask[b], top + i, left, seen[i, :n])
                    _sum_block(value[i, :n], seen[i, :n], dst[b, top + i, left : left + n], light[b], rest)
                    for j in range(NUM_SUMS):
                        sums[b, j] += rest[j]


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
    warped, covered = torch.empty(len(src), *size, dtype=torch.float32), torch.empty(len(src), *size, dtype=torch.bool)
    none = torch.empty(len(src), 0, 0, dtype=torch.float32)
    masks = (none if src_mask is None else src_mask, none if dst_mask is None else dst_mask)
    _warp_level(*arrays(src, *masks, src_homo_dst.double(), warped, covered))
    return warped, covered


@compiled
def _warp_level(
    src: Floats, src_mask: Floats, dst_mask: Floats, src_homo_dst: Doubles, warped: Floats, covered: Bools
) -> None:
    for b in range(len(src)):
        for top in range(0, warped.shape[1], TILE_ROWS):
            for left in range(0, warped.shape[2], BLOCK):
                value = warped[b, top : top + TILE_ROWS, left : left + BLOCK]
                seen = covered[b, top : top + TILE_ROWS, left : left + BLOCK]
                _read_tile(src[b], src_mask[b], src_homo_dst[b], top, left, value, seen)
                for i in range(len(value)):
                    _hide(dst_mask[b], top + i, left, seen[i])
                    _blacken(seen[i], value[i])


@compiled
def _hide(mask: Floats, y: int, first: int, seen: Bools) -> None:
    """Call not seen what lies under a mask, an empty one being none."""
    if mask.size > 0:
        for k in range(seen.size):
            seen[k] &= mask[y, first + k] > np.float32(0.5)


@compiled
def _blacken(seen: Bools, value: Floats) -> None:
    """Write zeros where nothing is seen."""
    zero = np.float32(0)
    for k in range(value.size):
        value[k] = value[k] if seen[k] else zero


@compiled
def _read_tile(
    image: Floats, mask: Floats, src_homo_dst: Doubles, top: int, left: int, value: Floats, seen: Bools
) -> None:
    """Read an image where the pixels of a part of dst, from row `top` and column `left` on, lie on it."""
    rows, n = value.shape
    height, width = image.shape
    flat, flat_mask = image.reshape(-1), mask.reshape(-1)
    ramp, zeros, usable = np.empty(n, np.float32), np.zeros(n, np.float32), np.empty(n, np.bool_)
    column, row = np.empty(n, np.int32), np.empty(n, np.int32)
    tx, ty, of_mask = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    matrix = np.empty((3, 3), np.float32)
    for k in range(n):
        ramp[k] = k
    for i in range(rows):
        # The first pixel is moved to the origin, where float32 has digits to spare.
        for j in range(3):
            matrix[j, 0], matrix[j, 1] = src_homo_dst[j, 0], 0
            matrix[j, 2] = src_homo_dst[j, 0] * left + src_homo_dst[j, 1] * (top + i) + src_homo_dst[j, 2]
        _mark_before(matrix, ramp, usable)
        place(matrix, ramp, zeros, height, width, np.float32(-ROUNDING_PX), usable, tx, ty, column, row, seen[i])
        if flat_mask.size > 0:
            read_bilinear(flat_mask, width, column, row, tx, ty, of_mask)
            keep_whole(of_mask, seen[i])
        read_bilinear(flat, width, column, row, tx, ty, value[i])


@compiled
def _mark_before(matrix: Floats, ramp: Floats, usable: Bools) -> None:
    """Say which pixels of a row lie before the camera."""
    for k in range(ramp.size):
        usable[k] = matrix[2, 2] + matrix[2, 0] * ramp[k] > 0


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
    a, b = np.empty((TILE_ROWS, BLOCK), np.float32), np.empty((TILE_ROWS, BLOCK), np.float32)
    in_a, in_b = np.empty((TILE_ROWS, BLOCK), np.bool_), np.empty((TILE_ROWS, BLOCK), np.bool_)
    for i in range(len(src)):
        for top in range(0, height, TILE_ROWS):
            for left in range(0, width, BLOCK):
                rows, n = min(TILE_ROWS, height - top), min(BLOCK, width - left)
                for c in range(src.shape[1]):
                    _read_tile(src[i, c], no_mask, first[i], top, left, a[:rows, :n], in_a[:rows, :n])
                    _read_tile(src[i, c], no_mask, second[i], top, left, b[:rows, :n], in_b[:rows, :n])
                    for y in range(rows):
                        off, both = _sum_off(a[y, :n], b[y, :n], in_a[y, :n], in_b[y, :n])
                        difference[i] += off / src.shape[1]
                        count[i] += both if c == 0 else 0.0


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
