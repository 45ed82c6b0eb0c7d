"""What the precision of a solution is drawn from, in one pass over a pair's points.

B pairs, N points, ten parameters, K blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import BLOCK, Bools, Doubles, Floats, arrays, compiled, dot_two, multiply
from homoalign.kernels.robust import robust_scale_of
from homoalign.kernels.sums import mirror, write_rows

ROW_STEP = 2
"""Products of Jacobians are summed over every so many rows of the grid, from the first on: neighbours are alike."""


def share_of_rows(height: int) -> Tensor:
    """Return (H,) float32, how much each row of a grid counts in the sums of products."""
    share = torch.zeros(height, dtype=torch.float32)
    share[::ROW_STEP] = height / len(share[::ROW_STEP])
    return share


class PrecisionSums(NamedTuple):
    """Sums over points, float64.

    Attributes:
        scale: (B,) robust standard deviation of the residual, at least the floor.
        weight: (B,) sum of the weights.
        curvature: (B,) sum of w (2 w - 1).
        information: (B, 10, 10) J W J^T.
        sensitivity: (B, 10, 10) J W K^T, K the Jacobian that dst's own slopes tell; J W J^T where these are not known.
        scores: (B, 10, K) J W r, summed over square blocks of the grid.
    """

    scale: Tensor
    weight: Tensor
    curvature: Tensor
    information: Tensor
    sensitivity: Tensor
    scores: Tensor


def precision_sums(
    points: tuple[Tensor, Tensor, Tensor, Tensor],
    residual: Tensor,
    seen: Tensor,
    value: Tensor,
    dst_scale: Tensor,
    floor: Tensor,
    *,
    grid: tuple[int, int],
    side: int,
    loss_width: float,
    samples: int,
) -> PrecisionSums:
    """Weigh residuals by Cauchy's loss, and sum.

    Args:
        points: slope (B, 2, N), brightness (B, N), intensity (B, N) and centred coordinates (B, 2, N) of the template,
            float32.
        residual: (B, N) float32, 0 where not seen.
        seen: (B, N) bool.
        value: (B, N) float32, dst at the points; (B, 0) where the points are not all pixels of the grid.
        dst_scale: (B,) float32, from differences of `value` a pixel to slopes like the template's.
        floor: (B,) float64, least scale.
        grid: rows and columns of the points.
        side: of a block, points.
        loss_width: of the loss, in scales.
        samples: residuals that the scale is read from, about.
    """
    batch, (height, width) = len(residual), grid

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, *shape, dtype=torch.float64)

    blocks = -(-height // side), -(-width // side)
    sums = PrecisionSums(zeros(), zeros(), zeros(), zeros(10, 10), zeros(10, 10), zeros(10, *blocks))
    _precision_sums(
        (height, width, side, samples), loss_width, *arrays(*points, residual, seen, value, dst_scale, floor, *sums)
    )
    return sums._replace(scores=sums.scores.flatten(2))


@compiled
def _precision_sums(
    shape: tuple[int, int, int, int],
    loss_width: float,
    slope: Floats,
    brightness: Floats,
    intensity: Floats,
    u: Floats,
    residual: Floats,
    seen: Bools,
    value: Floats,
    dst_scale: Floats,
    floor: Doubles,
    scale: Doubles,
    weight_sum: Doubles,
    curvature: Doubles,
    information: Doubles,
    sensitivity: Doubles,
    scores: Doubles,
) -> None:
    height, width, side, samples = shape
    is_whole = value.shape[1] > 0
    rows, weighted = np.empty((20, BLOCK), np.float32), np.empty((10, BLOCK), np.float32)
    weight, across, down = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    of_columns = np.zeros((10, width), np.float32)  # J W r, summed over a row of blocks
    for b in range(len(u)):
        scale[b] = max(robust_scale_of(residual[b], seen[b], samples), floor[b])
        over_width = np.float32(1 / (loss_width * scale[b]))
        for y in range(height):
            start = y * width
            for column in range(0, width, BLOCK):
                first, last = start + column, start + min(column + BLOCK, width)
                n = last - first
                of_weight, of_curvature = _weigh(residual[b, first:last], seen[b, first:last], over_width, weight)
                weight_sum[b] += of_weight
                curvature[b] += of_curvature
                x, v = u[b, 0, first:last], u[b, 1, first:last]
                write_rows(slope[b, 0, first:last], slope[b, 1, first:last], brightness[b, first:last], x, v, rows)
                if is_whole and y % ROW_STEP == 0:
                    _differences(value[b], y, column, n, (height, width), dst_scale[b], across, down)
                    write_rows(across[:n], down[:n], intensity[b, first:last], x, v, rows[10:])
                for i in range(10):
                    multiply(rows[i, :n], weight, weighted[i, :n])
                    _add_products(weighted[i, :n], residual[b, first:last], of_columns[i, column : column + n])
                if y % ROW_STEP == 0:
                    _add_dots(weighted, rows, n, True, information[b])
                    if is_whole:
                        _add_dots(weighted, rows[10:], n, False, sensitivity[b])
            if y % side == side - 1 or y == height - 1:
                _add_blocks(of_columns, side, scores[b, :, y // side])
        mirror(information[b])
        information[b] *= height / ((height + ROW_STEP - 1) // ROW_STEP)
        sensitivity[b] *= height / ((height + ROW_STEP - 1) // ROW_STEP)
        if not is_whole:
            sensitivity[b] = information[b]


@compiled
def _add_products(a: Floats, b: Floats, total: Floats) -> None:
    for k in range(total.size):
        total[k] += a[k] * b[k]


@compiled
def _add_dots(a: Floats, b: Floats, n: int, is_symmetric: bool, total: Doubles) -> None:
    """Add the products of the rows of `a` and those of `b`, of n points; the lower half alone where that is all."""
    for i in range(10):
        for j in range(0, i + 1 if is_symmetric else 10, 2):
            two = dot_two(a[i, :n], b[j, :n], b[j + 1, :n])
            total[i, j] += two[0]
            total[i, j + 1] += two[1]


@compiled
def _add_blocks(of_columns: Floats, side: int, scores: Doubles) -> None:
    """Add up columns to blocks, and begin anew."""
    for i in range(len(of_columns)):
        for k in range(of_columns.shape[1]):
            scores[i, k // side] += of_columns[i, k]
    of_columns[:] = 0


@compiled
def _weigh(residual: Floats, seen: Bools, over_width: np.float32, weight: Floats) -> tuple[float, float]:
    """Write Cauchy's weights, 0 where not seen; return the sums of w and of w (2 w - 1)."""
    one, two, total, curvature = np.float32(1), np.float32(2), np.float32(0), np.float32(0)
    for k in range(residual.size):
        in_widths = residual[k] * over_width
        w = one / (one + in_widths * in_widths) if seen[k] else np.float32(0)
        weight[k] = w
        total += w
        curvature += w * (two * w - one)
    return float(total), float(curvature)


@compiled
def _differences(
    value: Floats, y: int, column: int, n: int, size: tuple[int, int], factor: np.float32, across: Floats, down: Floats
) -> None:
    """Write central differences of part of a row of an image that is mirrored at its borders."""
    height, width = size
    half, first = np.float32(0.5) * factor, y * width + column
    for k in range(max(0, 1 - column), min(n, width - 1 - column)):
        across[k] = half * (value[first + k + 1] - value[first + k - 1])
    if column == 0:
        across[0] = 0
    if column + n == width:
        across[n - 1] = 0
    if 0 < y < height - 1:
        for k in range(n):
            down[k] = half * (value[first + k + width] - value[first + k - width])
    else:
        down[:n] = 0
