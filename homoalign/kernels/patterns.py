"""What `patterns.Patterns` is made of, and the sums that are taken over it.

B pairs, H W rows and columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import Bools, Complexes, Doubles, Floats, arrays, compiled
from homoalign.kernels.pixels import means_of_windows


def local_patterns(
    warped: Tensor, covered: Tensor, dst: Tensor, window: int, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do what `patterns.local_patterns` does once src is warped.

    Args:
        warped: (B, H, W) float32, zero where not covered.
        covered: (B, H, W) bool.
        dst: (B, H, W) float32.
        window: side of the windows, pixels.
        floor: share of the mean energy that is added to a window's.

    Returns:
        src: (B, H, W) float32.
        dst: likewise.
        weight: likewise.
        counted: (B, H, W) bool.
    """
    a, b, weight = (torch.empty(dst.shape, dtype=torch.float32) for _ in range(3))
    counted = torch.empty(dst.shape, dtype=torch.bool)
    _local_patterns(window, np.float32(floor), *arrays(warped, covered, dst, a, b, weight, counted))
    return a, b, weight, counted


@compiled
def _local_patterns(
    window: int,
    floor: np.float32,
    warped: Floats,
    covered: Bools,
    dst: Floats,
    a: Floats,
    b: Floats,
    weight: Floats,
    counted: Bools,
) -> None:
    height, width = dst.shape[1], dst.shape[2]
    values, means = np.empty((3, height, width), np.float32), np.empty((3, height, width), np.float32)
    half, least, zero, one = np.float32(0.5), np.float32(1e-6), np.float32(0), np.float32(1)
    for i in range(len(dst)):
        for y in range(height):
            for x in range(width):
                inside = one if covered[i, y, x] else zero
                values[0, y, x] = inside
                values[1, y, x] = warped[i, y, x]
                values[2, y, x] = inside * dst[i, y, x]
        means_of_windows(values, window, means)
        total_a, total_b, count = 0.0, 0.0, 0
        for y in range(height):
            for x in range(width):
                share = means[0, y, x]
                counts = covered[i, y, x] & (share > half)
                counted[i, y, x] = counts
                over = one / max(share, least)
                a[i, y, x] = values[1, y, x] - means[1, y, x] * over if counts else zero
                b[i, y, x] = values[2, y, x] - means[2, y, x] * over if counts else zero
                values[0, y, x] = a[i, y, x] * a[i, y, x]
                values[1, y, x] = b[i, y, x] * b[i, y, x]
        means_of_windows(values[:2], window, means[:2])
        for y in range(height):
            of_a, of_b, of_count = _sum_counted(means[0, y], means[1, y], counted[i, y])
            total_a += of_a
            total_b += of_b
            count += of_count
        floor_a = np.float32(floor * (total_a / max(count, 1) + 1e-12))
        floor_b = np.float32(floor * (total_b / max(count, 1) + 1e-12))
        for y in range(height):
            for x in range(width):
                size = np.sqrt(means[0, y, x] + floor_a) * np.sqrt(means[1, y, x] + floor_b)
                weight[i, y, x] = one / size if counted[i, y, x] else zero


@compiled
def _sum_counted(a: Floats, b: Floats, counted: Bools) -> tuple[float, float, int]:
    of_a, of_b, count = np.float32(0), np.float32(0), 0
    for k in range(a.size):
        of_a += a[k] if counted[k] else np.float32(0)
        of_b += b[k] if counted[k] else np.float32(0)
        count += counted[k]
    return float(of_a), float(of_b), count


def pattern_sums(a: Tensor, b: Tensor, weight: Tensor, counted: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Sum what `patterns.local_correlation` correlates.

    Args:
        a: (B, H, W) float32, of src.
        b: likewise, of dst.
        weight: likewise.
        counted: (B, H, W) bool.
        blocks: along each side of the frame, as those of `adaptive_avg_pool2d`.

    Returns:
        whole: (B, 4) float64, sums of w, w a a, w b b and w a b.
        mean: (B, 4, blocks^2) float32, means over each block of `counted`, a a, b b and a b.
    """
    whole = torch.zeros(len(a), 4, dtype=torch.float64)
    mean = torch.zeros(len(a), 4, blocks, blocks, dtype=torch.float32)
    _pattern_sums(*arrays(a, b, weight, counted, whole, mean))
    return whole, mean.flatten(2)


@compiled
def _pattern_sums(a: Floats, b: Floats, weight: Floats, counted: Bools, whole: Doubles, mean: Floats) -> None:
    height, width = a.shape[1], a.shape[2]
    blocks = mean.shape[2]
    aa, bb, ab = (
        np.empty((height, width), np.float32),
        np.empty((height, width), np.float32),
        np.empty((height, width), np.float32),
    )
    for i in range(len(a)):
        for y in range(height):
            sums = _write_products(a[i, y], b[i, y], weight[i, y], aa[y], bb[y], ab[y])
            for j in range(4):
                whole[i, j] += sums[j]
        for row in range(blocks):
            top, bottom = row * height // blocks, -(-(row + 1) * height // blocks)
            for column in range(blocks):
                left, right = column * width // blocks, -(-(column + 1) * width // blocks)
                filled = of_aa = of_bb = of_ab = np.float32(0)
                for y in range(top, bottom):
                    for x in range(left, right):
                        filled += counted[i, y, x]
                        of_aa += aa[y, x]
                        of_bb += bb[y, x]
                        of_ab += ab[y, x]
                over = np.float32(1 / ((bottom - top) * (right - left)))
                mean[i, 0, row, column] = over * filled
                mean[i, 1, row, column] = over * of_aa
                mean[i, 2, row, column] = over * of_bb
                mean[i, 3, row, column] = over * of_ab


@compiled
def _write_products(
    a: Floats, b: Floats, weight: Floats, aa: Floats, bb: Floats, ab: Floats
) -> tuple[float, float, float, float]:
    """Write a row's products; return the sums of w, w a a, w b b and w a b."""
    of_w = of_aa = of_bb = of_ab = np.float32(0)
    for k in range(a.size):
        aa[k], bb[k], ab[k] = a[k] * a[k], b[k] * b[k], a[k] * b[k]
        of_w += weight[k]
        of_aa += weight[k] * aa[k]
        of_bb += weight[k] * bb[k]
        of_ab += weight[k] * ab[k]
    return float(of_w), float(of_aa), float(of_bb), float(of_ab)


def weighted_patterns(a: Tensor, b: Tensor, weight: Tensor, counted: Tensor, size: tuple[int, int]) -> Tensor:
    """Write what `rivals.rival_correlation` transforms.

    Args:
        a: (B, H, W) float32, of src.
        b: likewise, of dst.
        weight: likewise.
        counted: (B, H, W) bool.
        size: (height, width) of the result, which is zero beyond the images.

    Returns:
        (B, 5, height, width) float32: a and its square, b and its square, each times its weight's root, and `counted`.
    """
    parts = torch.zeros(len(a), 5, *size, dtype=torch.float32)
    _weighted_patterns(*arrays(a, b, weight, counted, parts))
    return parts


@compiled
def _weighted_patterns(a: Floats, b: Floats, weight: Floats, counted: Bools, parts: Floats) -> None:
    for i in range(len(a)):
        for y in range(a.shape[1]):
            for x in range(a.shape[2]):
                root = np.sqrt(weight[i, y, x])
                of_a, of_b = root * a[i, y, x], root * b[i, y, x]
                parts[i, 0, y, x], parts[i, 1, y, x] = of_a, of_a * of_a
                parts[i, 2, y, x], parts[i, 3, y, x] = of_b, of_b * of_b
                parts[i, 4, y, x] = counted[i, y, x]


def products_of_spectra(spectra: Tensor) -> Tensor:
    """Return (B, 3, H, W) complex64, whose transforms are sums at every shift: of a b, and of a a and b b that count.

    Args:
        spectra: (B, 5, H, W) complex64 of `weighted_patterns`.
    """
    products = torch.empty(len(spectra), 3, *spectra.shape[2:], dtype=torch.complex64)
    _products_of_spectra(*arrays(spectra.flatten(2), products.flatten(2)))
    return products


@compiled
def _products_of_spectra(spectra: Complexes, products: Complexes) -> None:
    for i in range(len(spectra)):
        a, aa, b, bb, counted = spectra[i, 0], spectra[i, 1], spectra[i, 2], spectra[i, 3], spectra[i, 4]
        for k in range(a.size):
            products[i, 0, k] = np.conj(a[k]) * b[k]
            products[i, 1, k] = np.conj(aa[k]) * counted[k]
            products[i, 2, k] = np.conj(counted[k]) * bb[k]


def second_best(
    both: Tensor, energy_a: Tensor, energy_b: Tensor, limits: tuple[int, int, int, int], shares: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Do what `rivals._second_best` does.

    Args:
        both, energy_a, energy_b: (B, h, w) float32.
        limits: largest shift along y and x, up to where a shift is the same answer, and from where it is on a ridge.
        shares: least energy of what a shift leaves, and least correlation of a ridge.
    """
    best, here = torch.zeros(len(both), dtype=torch.float32), torch.zeros(len(both), dtype=torch.float32)
    _second_best(limits, (np.float32(shares[0]), np.float32(shares[1])), *arrays(both, energy_a, energy_b, best, here))
    return best, here


@compiled
def _second_best(
    limits: tuple[int, int, int, int],
    shares: tuple[np.float32, np.float32],
    both: Floats,
    energy_a: Floats,
    energy_b: Floats,
    best: Floats,
    here: Floats,
) -> None:
    height, width = both.shape[1], both.shape[2]
    reach_y, reach_x, lobe, ridge = limits
    least_shifted, least_ridge = shares
    found = np.empty((height, width), np.float32)
    for b in range(len(both)):
        least_a, least_b = least_shifted * energy_a[b, 0, 0], least_shifted * energy_b[b, 0, 0]
        for y in range(height):
            _correlate(both[b, y], energy_a[b, y], energy_b[b, y], least_a, least_b, found[y])
        here[b] = found[0, 0]
        for y in range(height):
            shift_y = abs(y - height if y > height // 2 else y)
            if shift_y > reach_y:
                continue
            for x in range(width):
                shift_x = abs(x - width if x > width // 2 else x)
                value, distance = found[y, x], max(shift_y, shift_x)
                if value > best[b] and lobe < distance and shift_x <= reach_x:
                    is_peak = True
                    for i in range(-1, 2):
                        for j in range(-1, 2):
                            is_peak = is_peak and value >= found[(y + i) % height, (x + j) % width]
                    if is_peak or (distance > ridge and value >= least_ridge * here[b]):
                        best[b] = value


@compiled
def _correlate(
    both: Floats, energy_a: Floats, energy_b: Floats, least_a: np.float32, least_b: np.float32, found: Floats
) -> None:
    zero, least = np.float32(0), np.float32(1e-12)
    for k in range(found.size):
        size = np.sqrt(max(energy_a[k] * energy_b[k], least))
        found[k] = abs(both[k]) / size if (energy_a[k] > least_a) & (energy_b[k] > least_b) else zero
