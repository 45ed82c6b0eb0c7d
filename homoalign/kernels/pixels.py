"""Passes over whole images.

B pairs, H W rows and columns.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homoalign.kernels.compiler import Bools, Doubles, Floats, add, arrays, compiled


def window_mean(values: Tensor, window: int) -> Tensor:
    """Return (B, H, W) means over square windows of an odd side; beyond the border there are zeros."""
    means = torch.empty_like(values, memory_format=torch.contiguous_format)
    means_of_windows(values.contiguous().numpy(), window, means.numpy())
    return means


@compiled
def means_of_windows(values: Floats, window: int, means: Floats) -> None:
    """Do what `window_mean` does."""
    height, width = values.shape[1], values.shape[2]
    half = window // 2
    padded = np.zeros(width + 2 * half, np.float32)
    over_area = np.float32(1 / window**2)
    for b in range(len(values)):
        for i in range(height):
            column_sum = padded[half : half + width]
            column_sum[:] = 0
            for j in range(max(0, i - half), min(height, i + half + 1)):
                add(values[b, j], column_sum)
            mean = means[b, i]
            mean[:] = 0
            for shift in range(window):
                add(padded[shift : shift + width], mean)
            for k in range(width):
                mean[k] *= over_area


def halve(image: Tensor) -> Tensor:
    """Do what `pyramid.halve` does, on (B, C, H, W) float32."""
    height, width = image.shape[-2:]
    smaller = torch.empty(*image.shape[:-2], (height + 1) // 2, (width + 1) // 2)
    _halve(*arrays(image.flatten(0, 1), smaller.flatten(0, 1)))
    return smaller


def spread(image: Tensor) -> Tensor:
    """Return (B,) float64 standard deviation of (B, N) float32."""
    result = torch.empty(len(image), dtype=torch.float64)
    _spread(*arrays(image, result))
    return result


def convolve(image: Tensor, taps: tuple[float, ...], ends: int) -> Tensor:
    """Convolve along rows and columns, mirrored at the outermost pixels' centres.

    Args:
        image: (B, H, W) float32.
        taps: of an odd number, symmetric.
        ends: rows and columns that the result has beyond each border.

    Returns:
        (B, H + 2 * ends, W + 2 * ends).
    """
    batch, height, width = image.shape
    result = torch.empty(batch, height + 2 * ends, width + 2 * ends)
    _convolve(image.contiguous().numpy(), np.array(taps, np.float32), ends, result.numpy())
    return result


def gray_of_bytes(image: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Return (B, H, W) float32, the weighted sum of the three channels of (B, H, W, 3) uint8."""
    gray = torch.empty(image.shape[:3])
    _gray_of_bytes(image.contiguous().numpy(), np.array(weights, np.float32), gray.numpy())
    return gray


def smooth(image: Tensor, hole: int) -> Tensor:
    """Do what `noise.smooth` does, on (B, H, W) float32."""
    result = torch.empty_like(image, memory_format=torch.contiguous_format)
    _smooth(hole, *arrays(image, result))
    return result


def steepest_slopes(image: Tensor, usable: Tensor, cell_side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the steepest usable pixel of every square cell, by Sobel's slopes.

    Args:
        image: (B, H, W) float32.
        usable: (B, H, W) bool, False on the border.
        cell_side: pixels; the ragged rows and columns at the far ends belong to no cell.

    Returns:
        chosen: (B, N) int64 flat pixel indices, row by row; a cell's first pixel where none is usable.
        slope: (B, 2, N) float32 there, along x and y, per pixel; 0 where not usable.
        u: (B, 2, N) float32, centred coordinates of the same.
    """
    batch, height, width = image.shape
    num_points = (height // cell_side) * (width // cell_side)
    chosen = torch.empty(batch, num_points, dtype=torch.int64)
    slope, u = torch.empty(batch, 2, num_points), torch.empty(batch, 2, num_points)
    _steepest_slopes(cell_side, *arrays(image, usable, chosen, slope, u))
    return chosen, slope, u


def usable_pixels(mask: Tensor) -> Tensor:
    """Return (B, H, W) bool: off the border, where `mask` (B, H, W) float32 is above a half at all neighbours too."""
    usable = torch.empty(mask.shape, dtype=torch.bool)
    _usable_pixels(*arrays(mask, usable))
    return usable


def sobel(image: Tensor) -> Tensor:
    """Do what `pyramid.Level.slope` does, on (B, H, W) float32."""
    slope = torch.empty(len(image), 2, *image.shape[1:])
    _sobel(*arrays(image, slope))
    return slope


def second_best(
    both: Tensor, energy_a: Tensor, energy_b: Tensor, reach: tuple[int, int, int], least_shifted: float
) -> tuple[Tensor, Tensor]:
    """Do what `metrics._second_best` does; `reach` ends with the half side of the main peak."""
    best, here = torch.zeros(len(both)), torch.zeros(len(both))
    _second_best(reach, np.float32(least_shifted), *arrays(both, energy_a, energy_b, best, here))
    return best, here


@compiled
def _halve(image: Floats, smaller: Floats) -> None:
    height, width = image.shape[1], image.shape[2]
    row = np.empty(width + 4, np.float32)
    inner = row[2 : 2 + width]
    over = np.float32(1 / 256)
    four, six = np.float32(4), np.float32(6)
    for b in range(len(image)):
        for i in range(smaller.shape[1]):
            # Mirrored at the border pixel, so that a slope stays a slope.
            above, first = image[b, _mirrored(2 * i - 2, height)], image[b, _mirrored(2 * i - 1, height)]
            here, last = image[b, 2 * i], image[b, _mirrored(2 * i + 1, height)]
            below = image[b, _mirrored(2 * i + 2, height)]
            for k in range(width):
                inner[k] = above[k] + below[k] + four * (first[k] + last[k]) + six * here[k]
            row[0], row[1] = inner[_mirrored(-2, width)], inner[_mirrored(-1, width)]
            row[width + 2], row[width + 3] = inner[_mirrored(width, width)], inner[_mirrored(width + 1, width)]
            result = smaller[b, i]
            for k in range(result.size):
                j = 2 * k
                result[k] = over * (row[j] + row[j + 4] + four * (row[j + 1] + row[j + 3]) + six * row[j + 2])


@compiled
def _spread(image: Floats, result: Doubles) -> None:
    for b in range(len(image)):
        row = image[b]
        # Shifted to about zero mean, where the digits of a variance are kept.
        step = max(1, row.size // 64)
        shift = np.float32(0)
        for k in range(0, row.size, step):
            shift += row[k] / np.float32((row.size + step - 1) // step)
        total, squares = 0.0, 0.0
        for first in range(0, row.size, 4096):
            of_block, of_squares = _sum_off(row[first : first + 4096], shift)
            total += of_block
            squares += of_squares
        mean = total / row.size
        result[b] = math.sqrt(max(0.0, squares / row.size - mean * mean))


@compiled
def _sum_off(values: Floats, shift: np.float32) -> tuple[float, float]:
    """Return the sums of values less `shift`, and of their squares."""
    total, squares = np.float32(0), np.float32(0)
    for k in range(values.size):
        off = values[k] - shift
        total += off
        squares += off * off
    return float(total), float(squares)


@compiled
def _convolve(image: Floats, taps: Floats, ends: int, result: Floats) -> None:
    height, width = image.shape[1], image.shape[2]
    reach = len(taps) // 2
    row = np.empty(width + 2 * (ends + reach), np.float32)
    inner = row[ends + reach : ends + reach + width]
    for b in range(len(image)):
        for i in range(result.shape[1]):
            inner[:] = 0
            for j in range(len(taps)):
                _add_times(taps[j], image[b, _mirrored(i - ends + j - reach, height)], inner)
            for k in range(ends + reach):
                row[k] = inner[_mirrored(k - ends - reach, width)]
                row[ends + reach + width + k] = inner[_mirrored(width + k, width)]
            of_row = result[b, i]
            of_row[:] = 0
            for j in range(len(taps)):
                _add_times(taps[j], row[j : j + of_row.size], of_row)


@compiled
def _add_times(factor: np.float32, values: Floats, total: Floats) -> None:
    for k in range(total.size):
        total[k] += factor * values[k]


@compiled
def _smooth(hole: int, image: Floats, result: Floats) -> None:
    height, width = image.shape[1], image.shape[2]
    row = np.empty(width + 4 * hole, np.float32)
    inner = row[2 * hole : 2 * hole + width]
    for b in range(len(image)):
        for i in range(height):
            _weigh_five(
                image[b, _mirrored(i - 2 * hole, height)], image[b, _mirrored(i - hole, height)], image[b, i],
                image[b, _mirrored(i + hole, height)], image[b, _mirrored(i + 2 * hole, height)], inner,
            )  # fmt: skip
            for k in range(2 * hole):
                row[k] = inner[_mirrored(k - 2 * hole, width)]
                row[2 * hole + width + k] = inner[_mirrored(width + k, width)]
            _weigh_five(
                row[:width], row[hole : hole + width], inner, row[3 * hole : 3 * hole + width],
                row[4 * hole : 4 * hole + width], result[b, i],
            )  # fmt: skip


@compiled
def _weigh_five(a: Floats, b: Floats, c: Floats, d: Floats, e: Floats, result: Floats) -> None:
    sixteenth, four, six = np.float32(1 / 16), np.float32(4), np.float32(6)
    for k in range(result.size):
        result[k] = sixteenth * (a[k] + e[k] + four * (b[k] + d[k]) + six * c[k])


@compiled
def _mirrored(index: int, size: int) -> int:
    """Return the index of a row that is mirrored at its ends as often as it takes."""
    period = max(1, 2 * (size - 1))
    index %= period
    return min(index, period - index)


@compiled
def _gray_of_bytes(image: NDArray[np.uint8], weights: Floats, gray: Floats) -> None:
    red, green, blue = weights[0], weights[1], weights[2]
    for b in range(len(image)):
        for i in range(image.shape[1]):
            row, of_row = image[b, i], gray[b, i]
            for k in range(len(row)):
                of_row[k] = red * np.float32(row[k, 0]) + green * np.float32(row[k, 1]) + blue * np.float32(row[k, 2])


@compiled
def _steepest_slopes(
    cell_side: int, image: Floats, usable: Bools, chosen: NDArray[np.int64], slope: Floats, u: Floats
) -> None:
    height, width = image.shape[1], image.shape[2]
    half_side = np.float32(max(height, width) / 2)
    middle_x, middle_y = np.float32((width - 1) / 2), np.float32((height - 1) / 2)
    columns = width // cell_side
    across, down = np.zeros((cell_side, width), np.float32), np.zeros((cell_side, width), np.float32)
    best, best_row = np.empty(width, np.float32), np.empty(width, np.int32)
    for b in range(len(image)):
        for cell_row in range(height // cell_side):
            top = cell_row * cell_side
            best[:] = 0
            best_row[:] = 0
            for i in range(cell_side):
                if 0 < top + i < height - 1:
                    above, here, below = image[b, top + i - 1], image[b, top + i], image[b, top + i + 1]
                    _slopes_of_row(above, here, below, usable[b, top + i], across[i], down[i])
                    _keep_steepest(across[i], down[i], np.int32(i), best, best_row)
                else:
                    across[i] = 0
                    down[i] = 0
            for cell in range(columns):
                left = cell * cell_side
                steepest, x, y = best[left], left, best_row[left]
                # No branches, which would be mispredicted; of equals the first one, row by row.
                for j in range(left + 1, left + cell_side):
                    is_better = (best[j] > steepest) | ((best[j] == steepest) & (best_row[j] < y))
                    steepest = best[j] if is_better else steepest
                    x = j if is_better else x
                    y = best_row[j] if is_better else y
                if steepest == 0:
                    # All flat: the first usable one.
                    y, x = _first_usable(usable[b, top : top + cell_side, left : left + cell_side])
                    x += left
                n = cell_row * columns + cell
                chosen[b, n] = (top + y) * width + x
                slope[b, 0, n], slope[b, 1, n] = across[y, x], down[y, x]
                u[b, 0, n] = (np.float32(x) - middle_x) / half_side
                u[b, 1, n] = (np.float32(top + y) - middle_y) / half_side


@compiled
def _keep_steepest(across: Floats, down: Floats, row: np.int32, best: Floats, best_row: NDArray[np.int32]) -> None:
    for k in range(best.size):
        steepness = across[k] * across[k] + down[k] * down[k]
        is_best = steepness > best[k]
        best[k] = steepness if is_best else best[k]
        best_row[k] = row if is_best else best_row[k]


@compiled
def _first_usable(cell: Bools) -> tuple[int, int]:
    for i in range(cell.shape[0]):
        for j in range(cell.shape[1]):
            if cell[i, j]:
                return i, j
    return 0, 0


@compiled
def _slopes_of_row(above: Floats, here: Floats, below: Floats, usable: Bools, across: Floats, down: Floats) -> None:
    """Write Sobel's slopes, 0 where not usable."""
    eighth, two, zero = np.float32(1 / 8), np.float32(2), np.float32(0)
    across[0] = down[0] = across[-1] = down[-1] = zero
    for k in range(1, above.size - 1):
        right = above[k + 1] + two * here[k + 1] + below[k + 1]
        left = above[k - 1] + two * here[k - 1] + below[k - 1]
        lower = below[k - 1] + two * below[k] + below[k + 1]
        upper = above[k - 1] + two * above[k] + above[k + 1]
        across[k] = eighth * (right - left) if usable[k] else zero
        down[k] = eighth * (lower - upper) if usable[k] else zero


@compiled
def _usable_pixels(mask: Floats, usable: Bools) -> None:
    height, width = mask.shape[1], mask.shape[2]
    least = np.empty(width, np.float32)
    half = np.float32(0.5)
    for b in range(len(mask)):
        usable[b, 0] = usable[b, height - 1] = False
        for i in range(1, height - 1):
            for k in range(width):
                least[k] = min(mask[b, i - 1, k], mask[b, i, k], mask[b, i + 1, k])
            row = usable[b, i]
            row[0] = row[width - 1] = False
            for k in range(1, width - 1):
                row[k] = min(least[k - 1], least[k], least[k + 1]) > half


@compiled
def _sobel(image: Floats, slope: Floats) -> None:
    height, width = image.shape[1], image.shape[2]
    usable = np.ones(width, np.bool_)
    eighth, two = np.float32(1 / 8), np.float32(2)
    for b in range(len(image)):
        for i in range(height):
            # Mirrored at the outermost pixels: slopes across the border are none, those along it go on.
            above, here, below = image[b, _mirrored(i - 1, height)], image[b, i], image[b, _mirrored(i + 1, height)]
            across, down = slope[b, 0, i], slope[b, 1, i]
            _slopes_of_row(above, here, below, usable, across, down)
            for k in (0, width - 1):
                j = _mirrored(k + 1, width)
                down[k] = eighth * (two * below[j] + two * below[k] - two * above[j] - two * above[k])


@compiled
def _second_best(
    reach: tuple[int, int, int],
    least_shifted: np.float32,
    both: Floats,
    energy_a: Floats,
    energy_b: Floats,
    best: Floats,
    here: Floats,
) -> None:
    height, width = both.shape[1], both.shape[2]
    found = np.empty((height, width), np.float32)
    for b in range(len(both)):
        least_a, least_b = least_shifted * energy_a[b, 0, 0], least_shifted * energy_b[b, 0, 0]
        for y in range(height):
            _correlate(both[b, y], energy_a[b, y], energy_b[b, y], least_a, least_b, found[y])
        here[b] = found[0, 0]
        for y in range(height):
            shift_y = abs(y - height if y > height // 2 else y)
            if shift_y > reach[0]:
                continue
            for x in range(width):
                shift_x = abs(x - width if x > width // 2 else x)
                value = found[y, x]
                if value > best[b] and reach[2] < max(shift_y, shift_x) and shift_x <= reach[1]:
                    is_peak = True
                    for i in range(-1, 2):
                        for j in range(-1, 2):
                            is_peak = is_peak and value >= found[(y + i) % height, (x + j) % width]
                    if is_peak:
                        best[b] = value


@compiled
def _correlate(
    both: Floats, energy_a: Floats, energy_b: Floats, least_a: np.float32, least_b: np.float32, found: Floats
) -> None:
    zero, least = np.float32(0), np.float32(1e-12)
    for k in range(found.size):
        size = np.sqrt(max(energy_a[k] * energy_b[k], least))
        found[k] = abs(both[k]) / size if (energy_a[k] > least_a) & (energy_b[k] > least_b) else zero
