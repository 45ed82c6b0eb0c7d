"""Slopes of images, and the pixels that are chosen by them.

B pairs, H W rows and columns, N points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homoalign.kernels.compiler import Bools, Floats, arrays, compiled
from homoalign.kernels.pixels import mirrored


def sobel(image: Tensor) -> Tensor:
    """Do what `pyramid.Level.slope` does, on (B, H, W) float32."""
    slope = torch.empty(len(image), 2, *image.shape[1:], dtype=torch.float32)
    _sobel(*arrays(image, slope))
    return slope


class Points(NamedTuple):
    """Chosen pixels.

    Attributes:
        chosen: (B, N) int64 flat pixel indices, row by row.
        usable: (B, N) bool.
        value: (B, N) float32, intensities.
        slope: (B, 2, N) float32, along x and y, per centred unit; 0 where not usable.
        u: (B, 2, N) float32, centred coordinates.
    """

    chosen: Tensor
    usable: Tensor
    value: Tensor
    slope: Tensor
    u: Tensor


def steepest_points(image: Tensor, usable: Tensor, cell_side: int) -> Points:
    """Find the steepest usable pixel of every square cell, by Sobel's slopes; the first pixel where none is usable.

    Args:
        image: (B, H, W) float32.
        usable: (B, H, W) bool, or (1, H, W) of all pairs, False on the border.
        cell_side: pixels; the ragged rows and columns at the far ends belong to no cell.
    """
    batch, height, width = image.shape
    num_points = (height // cell_side) * (width // cell_side)
    points = Points(
        chosen=torch.empty(batch, num_points, dtype=torch.int64),
        usable=torch.empty(batch, num_points, dtype=torch.bool),
        value=torch.empty(batch, num_points, dtype=torch.float32),
        slope=torch.empty(batch, 2, num_points, dtype=torch.float32),
        u=torch.empty(batch, 2, num_points, dtype=torch.float32),
    )
    _steepest_points(cell_side, *arrays(image, usable, *points))
    return points


def without_flat(slope: Tensor, usable: Tensor, shares: tuple[float, float], stride: int) -> Tensor:
    """Do what `template.build_template` does with flat points.

    Args:
        slope: (B, 2, N) float32.
        usable: (B, N) bool.
        shares: of the mean squared slope of what is usable, up to which a point is flat; of points, that may be.
        stride: whether they are more is told from every so many of them.

    Returns:
        (B, N) bool; `usable` itself where no pair has more.
    """
    limit = torch.empty(len(slope), dtype=torch.float32)
    _limits_of_flat(shares, stride, *arrays(slope, usable, limit))
    if not bool((limit >= 0).any()):
        return usable
    found = torch.empty_like(usable)
    _leave_out_flat(*arrays(slope, usable, limit, found))
    return found


@compiled
def _limits_of_flat(shares: tuple[float, float], stride: int, slope: Floats, usable: Bools, limit: Floats) -> None:
    """Write the squared slope up to which points are left out; -1 for pairs that keep all."""
    flat, most = shares
    for b in range(len(usable)):
        energy, count = 0.0, 0
        for k in range(0, usable.shape[1], stride):
            if usable[b, k]:
                energy += slope[b, 0, k] * slope[b, 0, k] + slope[b, 1, k] * slope[b, 1, k]
                count += 1
        bound, left = np.float32(flat * energy / max(count, 1)), 0
        for k in range(0, usable.shape[1], stride):
            squared = slope[b, 0, k] * slope[b, 0, k] + slope[b, 1, k] * slope[b, 1, k]
            left += usable[b, k] and squared > bound
        limit[b] = bound if left > 0 and count - left > most * count else np.float32(-1)


@compiled
def _leave_out_flat(slope: Floats, usable: Bools, limit: Floats, found: Bools) -> None:
    for b in range(len(usable)):
        for k in range(usable.shape[1]):
            squared = slope[b, 0, k] * slope[b, 0, k] + slope[b, 1, k] * slope[b, 1, k]
            found[b, k] = usable[b, k] and squared > limit[b]


def every(values: Tensor, stride: int) -> Tensor:
    """Return every `stride`-th along the last dimension of float32 of any shape, contiguous."""
    found = torch.empty(*values.shape[:-1], -(-values.shape[-1] // stride), dtype=torch.float32)
    _every(stride, *arrays(values.flatten(0, -2), found.flatten(0, -2)))
    return found


def usable_pixels(mask: Tensor) -> Tensor:
    """Return (B, H, W) bool: off the border, where `mask` (B, H, W) float32 is above a half at all neighbours too."""
    usable = torch.empty(mask.shape, dtype=torch.bool)
    _usable_pixels(*arrays(mask, usable))
    return usable


@compiled
def _every(stride: int, values: Floats, found: Floats) -> None:
    for i in range(len(found)):
        for k in range(found.shape[1]):
            found[i, k] = values[i, k * stride]


@compiled
def _steepest_points(
    cell_side: int,
    image: Floats,
    usable: Bools,
    chosen: NDArray[np.int64],
    usable_at: Bools,
    value: Floats,
    slope: Floats,
    u: Floats,
) -> None:
    height, width = image.shape[1], image.shape[2]
    half_side = np.float32(max(height, width) / 2)
    middle_x, middle_y = np.float32((width - 1) / 2), np.float32((height - 1) / 2)
    columns = width // cell_side
    across, down = np.zeros((cell_side, width), np.float32), np.zeros((cell_side, width), np.float32)
    best, best_row = np.empty(width, np.float32), np.empty(width, np.int32)
    for b in range(len(image)):
        may = usable[b if len(usable) > 1 else 0]
        for cell_row in range(height // cell_side):
            top = cell_row * cell_side
            best[:] = 0
            best_row[:] = 0
            for i in range(cell_side):
                if 0 < top + i < height - 1:
                    above, here, below = image[b, top + i - 1], image[b, top + i], image[b, top + i + 1]
                    _slopes_of_row(above, here, below, may[top + i], across[i], down[i])
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
                    y, x = _first_usable(may[top : top + cell_side, left : left + cell_side])
                    x += left
                n = cell_row * columns + cell
                chosen[b, n] = (top + y) * width + x
                usable_at[b, n], value[b, n] = may[top + y, x], image[b, top + y, x]
                slope[b, 0, n], slope[b, 1, n] = half_side * across[y, x], half_side * down[y, x]
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
            above, here, below = image[b, mirrored(i - 1, height)], image[b, i], image[b, mirrored(i + 1, height)]
            across, down = slope[b, 0, i], slope[b, 1, i]
            _slopes_of_row(above, here, below, usable, across, down)
            for k in (0, width - 1):
                j = mirrored(k + 1, width)
                down[k] = eighth * (two * below[j] + two * below[k] - two * above[j] - two * above[k])


def slopes_at(image: Tensor, chosen: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Read an image at pixels.

    Args:
        image: (B, H, W) float32.
        chosen: (B, N) int64, flat pixel indices.
        factor: of the slopes.

    Returns:
        slope: (B, 2, N) float32, `factor` times `template.central_differences` along x and y.
        value: (B, N) float32.
    """
    slope, value = (
        torch.empty(len(image), 2, chosen.shape[1], dtype=torch.float32),
        torch.empty(chosen.shape, dtype=torch.float32),
    )
    _slopes_at(np.float32(factor / 2), *arrays(image, chosen, slope, value))
    return slope, value


@compiled
def _slopes_at(half: np.float32, image: Floats, chosen: NDArray[np.int64], slope: Floats, value: Floats) -> None:
    height, width = image.shape[1], image.shape[2]
    for b in range(len(image)):
        flat, across, down, here = image[b].reshape(-1), slope[b, 0], slope[b, 1], value[b]
        for k in range(across.size):
            i = np.uint32(chosen[b, k])  # whose division is faster
            y = i // np.uint32(width)
            x = i - y * np.uint32(width)
            here[k] = flat[i]
            # Mirrored at the outermost pixels.
            across[k] = half * (flat[i + 1] - flat[i - 1]) if 0 < x < width - 1 else np.float32(0)
            down[k] = half * (flat[i + width] - flat[i - width]) if 0 < y < height - 1 else np.float32(0)
