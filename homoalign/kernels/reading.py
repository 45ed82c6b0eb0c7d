"""Images read at warped points."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homoalign.kernels.compiler import BLOCK, Bools, Floats, compiled


def read(
    image: Tensor, mask: Tensor | None, matrix: Tensor, u: Tensor, usable: Tensor, margin: float, *, is_spline: bool
) -> tuple[Tensor, Tensor]:
    """Read images at warped points; beyond the border the border's value.

    Args:
        image: (B, 1, H, W) float32; (B, 1, H + 2, W + 2) of `spline.spline_coefficients` where `is_spline`.
        mask: (B, 1, H, W) float32 or None.
        matrix: (B, 3, 3) from coordinates of `u` to the image's pixels; nothing is seen where it is NaN.
        u: (B, 2, N) float32.
        usable: (B, N) bool.
        margin: pixels from the border within which nothing is seen.
        is_spline: cubic B-spline instead of bilinear.

    Returns:
        value: (B, N) float32.
        seen: (B, N) bool: usable, off the border, and all four neighbours under the mask.
    """
    batch, _, num_points = u.shape
    value, seen = torch.empty(batch, num_points, dtype=torch.float32), torch.empty(batch, num_points, dtype=torch.bool)
    no_mask = torch.empty(batch, 0, 0, dtype=torch.float32)
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


@compiled
def _read(
    image: Floats,
    mask: Floats,
    matrix: Floats,
    u: Floats,
    usable: Bools,
    margin: np.float32,
    is_spline: bool,
    value: Floats,
    seen: Bools,
) -> None:
    for b in range(len(u)):
        read_pair(
            image[b : b + 1], mask[b], matrix[b], u[b], usable[b], margin, is_spline, value[b : b + 1], seen[b]
        )  # fmt: skip


@compiled
def read_pair(
    image: Floats,
    mask: Floats,
    matrix: Floats,
    u: Floats,
    usable: Bools,
    margin: np.float32,
    is_spline: bool,
    value: Floats,
    seen: Bools,
) -> None:
    """Read the channels of one image at warped points, as `read` does.

    Args:
        image: (C, H, W), or of its spline.
        mask: (H, W); an empty one is none.
        matrix: (3, 3).
        u: (2, N).
        usable: (N,).
        margin: pixels.
        is_spline: cubic B-spline instead of bilinear.
        value: (C, N), written.
        seen: (N,), written.
    """
    ends = 2 if is_spline else 0
    height, width = image.shape[1] - ends, image.shape[2] - ends
    flat_mask = mask.reshape(-1)
    column, row = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    tx, ty = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    weight = np.empty((8, BLOCK), np.float32)
    for first in range(0, seen.size, BLOCK):
        last = min(seen.size, first + BLOCK)
        n = last - first
        sees = seen[first:last]
        place(
            matrix, u[0, first:last], u[1, first:last], height, width, margin, usable[first:last],
            tx[:n], ty[:n], column[:n], row[:n], sees,
        )  # fmt: skip
        if flat_mask.size > 0:
            read_bilinear(flat_mask, width, column, row, tx, ty, weight[0, :n])
            keep_whole(weight[0, :n], sees)
        if is_spline:
            _cubic_weights(tx[:n], weight[0], weight[1], weight[2], weight[3])
            _cubic_weights(ty[:n], weight[4], weight[5], weight[6], weight[7])
        for c in range(len(image)):
            if is_spline:
                _read_spline(image[c].reshape(-1), width + ends, column, row, weight, value[c, first:last])
            else:
                read_bilinear(image[c].reshape(-1), width, column, row, tx, ty, value[c, first:last])


@compiled
def keep_whole(of_mask: Floats, seen: Bools) -> None:
    """Call not seen what a mask hides in part."""
    for k in range(seen.size):
        seen[k] &= of_mask[k] > np.float32(0.999)


@compiled
def place(
    matrix: Floats,
    u: Floats,
    v: Floats,
    height: int,
    width: int,
    margin: np.float32,
    usable: Bools,
    tx: Floats,
    ty: Floats,
    column: NDArray[np.int32],
    row: NDArray[np.int32],
    seen: Bools,
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
def read_bilinear(
    flat: Floats,
    stride: int,
    column: NDArray[np.int32],
    row: NDArray[np.int32],
    tx: Floats,
    ty: Floats,
    value: Floats,
) -> None:
    """Interpolate between the four pixels around each point."""
    down, right = np.uint64(stride), np.uint64(1)
    for k in range(value.size):
        i = np.uint64(row[k]) * down + np.uint64(column[k])
        j = i + down
        above = flat[i] + tx[k] * (flat[i + right] - flat[i])
        below = flat[j] + tx[k] * (flat[j + right] - flat[j])
        value[k] = above + ty[k] * (below - above)
