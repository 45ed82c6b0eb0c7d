"""Passes over a pair's points, compiled for the processor: what torch does in a dozen passes over a batch, in one.

Torch serves GPUs with the same formulas (`DirectProblem`); tests hold the two together. Points go through in blocks
that stay in the first-level cache. Each function works pair by pair, so a pair's answer does not depend on its batch,
and on one thread without Python's lock: a job runs one task a core.

B pairs, H W rows and columns, N points, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., object])
Floats = NDArray[np.float32]

BLOCK = 512
"""Points at a time."""

FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}
"""Sums may be taken in any order; NaN and infinity keep their meaning."""


def compiled(function: Function) -> Function:
    """Compile at the first call, and keep the machine code for other processes where there is a folder for it."""
    settings = {"nogil": True, "fastmath": FAST, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(cache=True, **settings)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return numba.njit(**settings)(function)  # type: ignore[no-any-return]


def arrays(*tensors: Tensor) -> Any:
    """Return tensors as contiguous arrays on the same memory, or on a copy where they are not contiguous."""
    return [tensor.contiguous().numpy() for tensor in tensors]


def serves(tensor: Tensor) -> bool:
    """Say whether this module works on tensors like this one."""
    return tensor.device.type == "cpu"


def read(
    image: Tensor, mask: Tensor | None, matrix: Tensor, u: Tensor, usable: Tensor, margin: float, *, is_spline: bool
) -> tuple[Tensor, Tensor]:
    """Read images at warped points; beyond the border the border's value.

    Args:
        image: (B, 1, H, W) float32; (B, 1, H + 2, W + 2) of `spline.spline_coefficients` where `is_spline`.
        mask: (B, 1, H, W) float32 or None.
        matrix: (B, 3, 3) from coordinates of `u` to the image's pixels.
        u: (B, 2, N) float32.
        usable: (B, N) bool.
        margin: pixels from the border within which nothing is seen.
        is_spline: cubic B-spline instead of bilinear.

    Returns:
        value: (B, N) float32.
        seen: (B, N) bool: usable, off the border, and all four neighbours under the mask.
    """
    batch, _, num_points = u.shape
    value, seen = torch.empty(batch, num_points), torch.empty(batch, num_points, dtype=torch.bool)
    no_mask = torch.empty(batch, 0, 0)
    _read(
        image[:, 0].contiguous().numpy(),
        (no_mask if mask is None else mask[:, 0].contiguous()).numpy(),
        matrix.float().contiguous().numpy(),
        u.contiguous().numpy(),
        usable.contiguous().numpy(),
        np.float32(margin),
        is_spline,
        value.numpy(),
        seen.numpy(),
    )
    return value, seen


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


def window_mean(values: Tensor, window: int) -> Tensor:
    """Return (B, H, W) means over square windows of an odd side; beyond the border there are zeros."""
    means = torch.empty_like(values, memory_format=torch.contiguous_format)
    _window_mean(values.contiguous().numpy(), window, means.numpy())
    return means


def predict_light(weights: Tensor, intensity: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `photometry.predict` does."""
    value, slope = torch.empty(intensity.shape), torch.empty(intensity.shape)
    _predict_light(*arrays(weights, intensity, u, value, slope))
    return value, slope


@compiled
def _read(
    image: Floats,
    mask: Floats,
    matrix: Floats,
    u: Floats,
    usable: NDArray[np.bool_],
    margin: np.float32,
    is_spline: bool,
    value: Floats,
    seen: NDArray[np.bool_],
) -> None:
    for b in range(len(u)):
        read_pair(image[b], mask[b], matrix[b], u[b], usable[b], margin, is_spline, value[b], seen[b])


@compiled
def read_pair(
    image: Floats,
    mask: Floats,
    matrix: Floats,
    u: Floats,
    usable: NDArray[np.bool_],
    margin: np.float32,
    is_spline: bool,
    value: Floats,
    seen: NDArray[np.bool_],
) -> None:
    """Read one image at warped points, as `read` does; an empty `mask` is none."""
    width = image.shape[1] - (2 if is_spline else 0)
    height = image.shape[0] - (2 if is_spline else 0)
    flat, flat_mask = image.reshape(-1), mask.reshape(-1)
    column, row = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    tx, ty = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    weight = np.empty((8, BLOCK), np.float32)
    for first in range(0, value.size, BLOCK):
        last = min(value.size, first + BLOCK)
        n = last - first
        values, sees = value[first:last], seen[first:last]
        _place(
            matrix, u[0, first:last], u[1, first:last], height, width, margin, usable[first:last],
            tx[:n], ty[:n], column[:n], row[:n], sees,
        )  # fmt: skip
        if flat_mask.size > 0:
            _read_bilinear(flat_mask, width, column, row, tx, ty, weight[0, :n])
            for k in range(n):
                sees[k] &= weight[0, k] > np.float32(0.999)
        if is_spline:
            _cubic_weights(tx[:n], weight[0], weight[1], weight[2], weight[3])
            _cubic_weights(ty[:n], weight[4], weight[5], weight[6], weight[7])
            _read_spline(flat, width + 2, column, row, weight, values)
        else:
            _read_bilinear(flat, width, column, row, tx, ty, values)


@compiled
def _place(
    matrix: Floats,
    u: Floats,
    v: Floats,
    height: int,
    width: int,
    margin: np.float32,
    usable: NDArray[np.bool_],
    tx: Floats,
    ty: Floats,
    column: NDArray[np.int32],
    row: NDArray[np.int32],
    seen: NDArray[np.bool_],
) -> None:
    """Warp points to the pixel above and left of them, `column` and `row`, and how far beyond it they lie."""
    zero, one = np.float32(0), np.float32(1)
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    last_column, last_row = np.int32(width - 2), np.int32(height - 2)
    for k in range(u.size):
        over_w = one / (matrix[2, 0] * u[k] + matrix[2, 1] * v[k] + matrix[2, 2])
        x = (matrix[0, 0] * u[k] + matrix[0, 1] * v[k] + matrix[0, 2]) * over_w
        y = (matrix[1, 0] * u[k] + matrix[1, 1] * v[k] + matrix[1, 2]) * over_w
        inside = (x >= margin) & (x <= right - margin) & (y >= margin) & (y <= bottom - margin)
        seen[k] = inside & usable[k]
        # NaN is not above zero.
        x = x if x > zero else zero
        x = x if x < right else right
        y = y if y > zero else zero
        y = y if y < bottom else bottom
        column[k] = min(np.int32(x), last_column)
        row[k] = min(np.int32(y), last_row)
        tx[k] = x - np.float32(column[k])
        ty[k] = y - np.float32(row[k])


@compiled
def _cubic_weights(t: Floats, w0: Floats, w1: Floats, w2: Floats, w3: Floats) -> None:
    """Write the weights of a point's four cubic B-spline coefficients along one axis."""
    one, half, sixth, most = np.float32(1), np.float32(1 / 2), np.float32(1 / 6), np.float32(2 / 3)
    for k in range(t.size):
        after = t[k]
        before = one - after
        w0[k] = before * before * before * sixth
        w1[k] = most - half * after * after * (one + before)
        w2[k] = most - half * before * before * (one + after)
        w3[k] = after * after * after * sixth


@compiled
def _read_spline(
    flat: Floats, stride: int, column: NDArray[np.int32], row: NDArray[np.int32], weight: Floats, value: Floats
) -> None:
    x0, x1, x2, x3 = weight[0], weight[1], weight[2], weight[3]
    y0, y1, y2, y3 = weight[4], weight[5], weight[6], weight[7]
    down, right, second, third = np.uint64(stride), np.uint64(1), np.uint64(2), np.uint64(3)
    for k in range(value.size):
        a, b, c, d = x0[k], x1[k], x2[k], x3[k]
        i = np.uint64(row[k]) * down + np.uint64(column[k])
        total = y0[k] * (a * flat[i] + b * flat[i + right] + c * flat[i + second] + d * flat[i + third])
        i += down
        total += y1[k] * (a * flat[i] + b * flat[i + right] + c * flat[i + second] + d * flat[i + third])
        i += down
        total += y2[k] * (a * flat[i] + b * flat[i + right] + c * flat[i + second] + d * flat[i + third])
        i += down
        total += y3[k] * (a * flat[i] + b * flat[i + right] + c * flat[i + second] + d * flat[i + third])
        value[k] = total


@compiled
def _read_bilinear(
    flat: Floats,
    stride: int,
    column: NDArray[np.int32],
    row: NDArray[np.int32],
    tx: Floats,
    ty: Floats,
    value: Floats,
) -> None:
    down, right = np.uint64(stride), np.uint64(1)
    for k in range(value.size):
        i = np.uint64(row[k]) * down + np.uint64(column[k])
        j = i + down
        above = flat[i] + tx[k] * (flat[i + right] - flat[i])
        below = flat[j] + tx[k] * (flat[j + right] - flat[j])
        value[k] = above + ty[k] * (below - above)


@compiled
def _normal_equations(
    slope: Floats,
    brightness: Floats,
    u: Floats,
    residual: Floats,
    weight: Floats,
    product: NDArray[np.float64],
    score: NDArray[np.float64],
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
    product: NDArray[np.float64],
    score: NDArray[np.float64],
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
        _multiply(rows[i, :n], weight, weighted)
        score[i] += _dot(weighted, residual)
        for j in range(0, i, 2):
            two = _dot_two(weighted, rows[j, :n], rows[j + 1, :n])
            product[i, j] += two[0]
            product[i, j + 1] += two[1]
        if i % 2 == 0:
            product[i, i] += _dot(weighted, rows[i, :n])


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
    product: NDArray[np.float64],
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
                _multiply(rows[i, :n], weight[b, first:last], rows[i, :n])
                for j in range(0, 10, 2):
                    two = _dot_two(rows[i, :n], other[j, :n], other[j + 1, :n])
                    product[b, i, j] += two[0]
                    product[b, i, j + 1] += two[1]


@compiled
def mirror(product: NDArray[np.float64]) -> None:
    """Copy the lower half of a symmetric matrix to the upper one."""
    for i in range(len(product)):
        for j in range(i):
            product[j, i] = product[i, j]


@compiled
def _multiply(a: Floats, b: Floats, product: Floats) -> None:
    for k in range(product.size):
        product[k] = a[k] * b[k]


@compiled
def _dot(a: Floats, b: Floats) -> np.float32:
    total = np.float32(0)
    for k in range(a.size):
        total += a[k] * b[k]
    return total


@compiled
def _dot_two(a: Floats, b: Floats, c: Floats) -> tuple[np.float32, np.float32]:
    of_b, of_c = np.float32(0), np.float32(0)
    for k in range(a.size):
        of_b += a[k] * b[k]
        of_c += a[k] * c[k]
    return of_b, of_c


@compiled
def _block_scores(
    width: int,
    side: int,
    slope: Floats,
    brightness: Floats,
    u: Floats,
    weighted: Floats,
    scores: NDArray[np.float64],
) -> None:
    rows = np.empty((10, BLOCK), np.float32)
    run = min(side, BLOCK)
    for b in range(len(u)):
        for start in range(0, u.shape[2], width):  # a row of the grid
            for column in range(0, width, run):
                first, last = start + column, start + min(column + run, width)
                n = last - first
                _write_rows(
                    slope[b, 0, first:last], slope[b, 1, first:last], brightness[b, first:last], u[b, 0, first:last],
                    u[b, 1, first:last], rows,
                )  # fmt: skip
                for i in range(10):
                    total = _dot(rows[i, :n], weighted[b, first:last])
                    scores[b, i, start // width // side, column // side] += total


@compiled
def _window_mean(values: Floats, window: int, means: Floats) -> None:
    height, width = values.shape[1], values.shape[2]
    half = window // 2
    padded = np.zeros(width + 2 * half, np.float32)
    over_area = np.float32(1 / window**2)
    for b in range(len(values)):
        for i in range(height):
            column_sum = padded[half : half + width]
            column_sum[:] = 0
            for j in range(max(0, i - half), min(height, i + half + 1)):
                _add(values[b, j], column_sum)
            mean = means[b, i]
            mean[:] = 0
            for shift in range(window):
                _add(padded[shift : shift + width], mean)
            for k in range(width):
                mean[k] *= over_area


@compiled
def _add(values: Floats, total: Floats) -> None:
    for k in range(total.size):
        total[k] += values[k]


@compiled
def _predict_light(weights: Floats, intensity: Floats, u: Floats, value: Floats, slope: Floats) -> None:
    zero, one, two, three = np.float32(0), np.float32(1), np.float32(2), np.float32(3)
    for b in range(len(weights)):
        w = weights[b]
        x_, y_, of_pair, value_of_pair, slope_of_pair = u[b, 0], u[b, 1], intensity[b], value[b], slope[b]
        for k in range(of_pair.size):
            x, y, z = x_[k], y_[k], two * of_pair[k] - one
            xx, xy, yy = x * x, x * y, y * y
            bias = w[4] * x + w[5] * y + w[6] * xx + w[7] * xy + w[8] * yy
            gain = w[9] * x + w[10] * y + w[11] * xx + w[12] * xy + w[13] * yy
            level = w[0] + bias + z * (w[1] + gain + z * (w[2] + z * w[3]))
            steepness = two * (w[1] + gain + z * (two * w[2] + three * z * w[3]))
            is_inside = (level > zero) & (level < one)
            value_of_pair[k] = min(max(level, zero), one)
            slope_of_pair[k] = steepness if is_inside else zero
