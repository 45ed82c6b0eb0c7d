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
    write_rows(
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
def accumulate_score(
    slope: Floats,
    brightness: Floats,
    u: Floats,
    residual: Floats,
    weight: Floats,
    first: int,
    rows: Floats,
    score: Doubles,
) -> None:
    """Add a block's part of J W r alone; the arguments are as for `accumulate`."""
    n = residual.size
    last = first + n
    write_rows(
        slope[0, first:last], slope[1, first:last], brightness[first:last], u[0, first:last], u[1, first:last], rows
    )
    weighted = rows[10, :n]
    multiply(residual, weight, weighted)
    for i in range(0, 10, 2):
        two = dot_two(weighted, rows[i, :n], rows[i + 1, :n])
        score[i] += two[0]
        score[i + 1] += two[1]


@compiled
def mirror(product: Doubles) -> None:
    """Copy the lower half of a symmetric matrix to the upper one."""
    for i in range(len(product)):
        for j in range(i):
            product[j, i] = product[i, j]


@compiled
def write_rows(slope_x: Floats, slope_y: Floats, brightness: Floats, u: Floats, v: Floats, rows: Floats) -> None:
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
