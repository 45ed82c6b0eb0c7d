"""Products of Jacobians, summed over points.

B pairs, N points, ten parameters.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import BLOCK, Doubles, Floats, arrays, compiled, dot, dot_two, multiply


def normal_equations(
    slope: Tensor, brightness: Tensor, u: Tensor, residual: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return J W J^T and J W r, of the Jacobian J of `template.jacobian_of`.

    Args:
        slope: (B, 2, N) float32.
        brightness: (B, N) float32.
        u: (B, 2, N) float32.
        residual: (B, N) float32, r.
        weight: (B, N) float32, the diagonal of W.

    Returns:
        (B, 10, 10) and (B, 10), float64.
    """
    product = torch.zeros(len(u), 10, 10, dtype=torch.float64)
    score = torch.zeros(len(u), 10, dtype=torch.float64)
    _normal_equations(*arrays(slope, brightness, u, residual, weight, product, score))
    return product, score


def cross_products(
    slope: Tensor, brightness: Tensor, other_slope: Tensor, other_brightness: Tensor, u: Tensor, weight: Tensor
) -> Tensor:
    """Return (B, 10, 10) float64 J W K^T of the Jacobians J and K of two templates; the arguments are as above."""
    product = torch.zeros(len(u), 10, 10, dtype=torch.float64)
    _cross_products(*arrays(slope, brightness, other_slope, other_brightness, u, weight, product))
    return product


def block_scores(
    slope: Tensor, brightness: Tensor, u: Tensor, weighted: Tensor, grid: tuple[int, int], side: int
) -> Tensor:
    """Return (B, 10, K) float64, J r summed over square blocks of a grid of points.

    Args:
        slope: (B, 2, N) float32.
        brightness: (B, N) float32.
        u: (B, 2, N) float32.
        weighted: (B, N) float32, r.
        grid: rows and columns of the points.
        side: of a block, points.
    """
    height, width = grid
    scores = torch.zeros(len(u), 10, -(-height // side), -(-width // side), dtype=torch.float64)
    _block_scores(width, side, *arrays(slope, brightness, u, weighted, scores))
    return scores.flatten(2)


@compiled
def _normal_equations(
    slope: Floats,
    brightness: Floats,
    u: Floats,
    residual: Floats,
    weight: Floats,
    product: Doubles,
    score: Doubles,
) -> None:
    rows = np.empty((20, BLOCK), np.float32)
    for b in range(len(u)):
        for first in range(0, u.shape[2], BLOCK):
            last = min(u.shape[2], first + BLOCK)
            accumulate(
                slope[b], brightness[b], u[b], residual[b, first:last], weight[b, first:last], first, rows, product[b],
                score[b],
            )  # fmt: skip
        mirror(product[b])


@compiled
def accumulate(
    slope: Floats,
    brightness: Floats,
    u: Floats,
    residual: Floats,
    weight: Floats,
    first: int,
    rows: Floats,
    product: Doubles,
    score: Doubles,
) -> None:
    """Add a block's part of J W J^T, its lower half, and of J W r.

    Args:
        slope: (2, N), of all points.
        brightness: (N,) likewise.
        u: (2, N) likewise.
        residual: of the block that begins at point `first`.
        weight: likewise.
        first: index of the block's first point.
        rows: (20, BLOCK), to work in.
        product: (10, 10), added to.
        score: (10,), added to.
    """
    n = residual.size
    last = first + n
    _write_rows(
        slope[0, first:last], slope[1, first:last], brightness[first:last], u[0, first:last], u[1, first:last], rows
    )
    for i in range(10):
        weighted = rows[10 + i, :n]
        multiply(rows[i, :n], weight, weighted)
        score[i] += dot(weighted, residual)
        for j in range(0, i, 2):
            two = dot_two(weighted, rows[j, :n], rows[j + 1, :n])
            product[i, j] += two[0]
            product[i, j + 1] += two[1]
        if i % 2 == 0:
            product[i, i] += dot(weighted, rows[i, :n])


@compiled
def mirror(product: Doubles) -> None:
    """Copy the lower half of a symmetric matrix to the upper one."""
    for i in range(len(product)):
        for j in range(i):
            product[j, i] = product[i, j]


@compiled
def _write_rows(slope_x: Floats, slope_y: Floats, brightness: Floats, u: Floats, v: Floats, rows: Floats) -> None:
    """Write the ten rows of a block's Jacobian, see `homography.velocities`."""
    three = np.float32(3)
    for k in range(u.size):
        rows[0, k] = slope_x[k]
        rows[1, k] = slope_y[k]
        rows[2, k] = slope_y[k] * u[k] - slope_x[k] * v[k]
        outward = slope_x[k] * u[k] + slope_y[k] * v[k]
        rows[3, k] = three * outward
        rows[4, k] = slope_x[k] * u[k] - slope_y[k] * v[k]
        rows[5, k] = slope_x[k] * v[k] + slope_y[k] * u[k]
        rows[6, k] = -u[k] * outward
        rows[7, k] = -v[k] * outward
        rows[8, k] = brightness[k]
        rows[9, k] = np.float32(1)


@compiled
def _cross_products(
    slope: Floats,
    brightness: Floats,
    other_slope: Floats,
    other_brightness: Floats,
    u: Floats,
    weight: Floats,
    product: Doubles,
) -> None:
    rows, other = np.empty((10, BLOCK), np.float32), np.empty((10, BLOCK), np.float32)
    for b in range(len(u)):
        for first in range(0, u.shape[2], BLOCK):
            last = min(u.shape[2], first + BLOCK)
            n = last - first
            x, y = u[b, 0, first:last], u[b, 1, first:last]
            _write_rows(slope[b, 0, first:last], slope[b, 1, first:last], brightness[b, first:last], x, y, rows)
            _write_rows(
                other_slope[b, 0, first:last], other_slope[b, 1, first:last], other_brightness[b, first:last], x, y,
                other,
            )  # fmt: skip
            for i in range(10):
                multiply(rows[i, :n], weight[b, first:last], rows[i, :n])
                for j in range(0, 10, 2):
                    two = dot_two(rows[i, :n], other[j, :n], other[j + 1, :n])
                    product[b, i, j] += two[0]
                    product[b, i, j + 1] += two[1]


@compiled
def _block_scores(
    width: int,
    side: int,
    slope: Floats,
    brightness: Floats,
    u: Floats,
    weighted: Floats,
    scores: Doubles,
) -> None:
    rows = np.empty((10, BLOCK), np.float32)
    # Whole blocks of the grid at a time, where they fit.
    run = BLOCK // side * side if side <= BLOCK else BLOCK
    for b in range(len(u)):
        for start in range(0, u.shape[2], width):  # a row of the grid
            for column in range(0, width, run):
                first, last = start + column, start + min(column + run, width)
                _write_rows(
                    slope[b, 0, first:last],
                    slope[b, 1, first:last],
                    brightness[b, first:last],
                    u[b, 0, first:last],
                    u[b, 1, first:last],
                    rows,
                )
                for left in range(first, last, side):
                    right = min(left + side, last)
                    of_block = (left - start) // side
                    for i in range(10):
                        total = dot(rows[i, left - first : right - first], weighted[b, left:right])
                        scores[b, i, start // width // side, of_block] += total
