"""How large residuals are: quantiles of size, the robust scale, the share in the tail; a line by the smaller half."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homoalign.kernels.compiler import Bools, Doubles, Floats, arrays, compiled

SCALE_OF_MEDIAN = 1.4826
"""From the median of a normal variable's size to its standard deviation."""


def magnitude_quantile(residual: Tensor, seen: Tensor, samples: int, *, part: int) -> Tensor:
    """Return (B,) float64, below which the smallest `1 / part` of what is seen lies in size; NaN where nothing is.

    Args:
        residual: (B, N) float32.
        seen: (B, N).
        samples: about how many residuals are looked at.
        part: 2 for the median, 4 for the lower quartile.
    """
    found = torch.empty(len(residual), dtype=torch.float64)
    _magnitude_quantile(samples, part, *arrays(residual, seen > 0, found))
    return found


def median(magnitude: Tensor) -> Tensor:
    """Return (B,) float64, the lower median of (B, N) float32, none of them negative or NaN."""
    found = torch.empty(len(magnitude), dtype=torch.float64)
    _median(*arrays(magnitude, found))
    return found


def median_second_difference(image: Tensor, step: int) -> Tensor:
    """Return (B,) float64, the lower median size of [1, -2, 1] along both axes of (B, H, W) float32.

    Args:
        image: sides of at least 3.
        step: every so many rows are looked at.
    """
    found = torch.empty(len(image), dtype=torch.float64)
    _median_second_difference(step, *arrays(image, found))
    return found


def mean_square(values: Tensor, stride: int) -> Tensor:
    """Return (B,) float64, the mean square of every `stride`-th of (B, N) float32."""
    found = torch.empty(len(values), dtype=torch.float64)
    _mean_square(stride, *arrays(values, found))
    return found


def trimmed_line(
    x: Tensor, y: Tensor, counted: Tensor, line: Tensor, *, rounds: int, bounds: tuple[float, float]
) -> Tensor:
    """Fit the line that explains the better half of what is counted best, by concentration steps.

    Args:
        x: (B, N) float32.
        y: (B, N) float32.
        counted: (B, N) bool.
        line: (B, 2) float64, gain and bias to start from.
        rounds: steps.
        bounds: least and largest gain.

    Returns:
        (B, 3) float64: gain, bias, and the median size of the residuals before the last step; NaN where nothing counts.
    """
    found = torch.empty(len(x), 3, dtype=torch.float64)
    _trimmed_line(rounds, bounds, *arrays(x, y, counted, line, found))
    return found


@compiled
def _trimmed_line(
    rounds: int, bounds: tuple[float, float], x: Floats, y: Floats, counted: Bools, line: Doubles, found: Doubles
) -> None:
    magnitude = np.empty(x.shape[1], np.float32)
    size = np.empty(x.shape[1], np.float32)
    for b in range(len(x)):
        gain, bias, median = line[b, 0], line[b, 1], np.nan
        for _ in range(rounds):
            count = 0
            for k in range(x.shape[1]):
                magnitude[k] = abs(y[b, k] - np.float32(gain) * x[b, k] - np.float32(bias))
                size[count] = magnitude[k]
                count += counted[b, k]
            if count == 0:
                median = np.nan
                break
            half = size[_index_of_rank(size[:count].view(np.uint32), (count - 1) // 2)]
            median = float(half)
            gain, bias = _line_of_half(x[b], y[b], counted[b], magnitude, half, bounds)
        found[b, 0], found[b, 1], found[b, 2] = gain, bias, median


@compiled
def _line_of_half(
    x: Floats, y: Floats, counted: Bools, magnitude: Floats, half: np.float32, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Return gain and bias by least squares over what is counted and no larger than the median."""
    count, of_x, of_y = 0.0, 0.0, 0.0
    for k in range(x.size):
        kept = 1.0 if counted[k] & (magnitude[k] <= half) else 0.0
        count += kept
        of_x += kept * x[k]
        of_y += kept * y[k]
    mean_x, mean_y = of_x / max(count, 2.0), of_y / max(count, 2.0)
    of_xx, of_xy = 0.0, 0.0
    for k in range(x.size):
        kept = 1.0 if counted[k] & (magnitude[k] <= half) else 0.0
        off = kept * (x[k] - mean_x)
        of_xx += off * off
        of_xy += off * (y[k] - mean_y)
    gain = min(max(of_xy / max(of_xx, 1e-9), bounds[0]), bounds[1])
    return gain, mean_y - gain * mean_x


@compiled
def _mean_square(stride: int, values: Floats, found: Doubles) -> None:
    for b in range(len(found)):
        total, count = 0.0, 0
        for k in range(0, values.shape[1], stride):
            total += values[b, k] * values[b, k]
            count += 1
        found[b] = total / count


@compiled
def _median_second_difference(step: int, image: Floats, found: Doubles) -> None:
    height, width = image.shape[1], image.shape[2]
    columns = width - 2
    num_rows = (height - 2 + step - 1) // step
    magnitude, across = np.empty(num_rows * columns, np.float32), np.empty(width, np.float32)
    for b in range(len(image)):
        for i in range(num_rows):
            y = i * step
            _write_second_difference(
                image[b, y], image[b, y + 1], image[b, y + 2], across, magnitude[i * columns : (i + 1) * columns]
            )
        found[b] = float(magnitude[_index_of_rank(magnitude.view(np.uint32), (magnitude.size - 1) // 2)])


@compiled
def _write_second_difference(above: Floats, here: Floats, below: Floats, across: Floats, magnitude: Floats) -> None:
    two = np.float32(2)
    for k in range(across.size):
        across[k] = above[k] + below[k] - two * here[k]
    for k in range(magnitude.size):
        magnitude[k] = abs(across[k] + across[k + 2] - two * across[k + 1])


@compiled
def _median(magnitude: Floats, found: Doubles) -> None:
    for b in range(len(found)):
        bits = magnitude[b].view(np.uint32)
        found[b] = float(magnitude[b, _index_of_rank(bits, (bits.size - 1) // 2)])


@compiled
def _magnitude_quantile(samples: int, part: int, residual: Floats, seen: Bools, found: Doubles) -> None:
    for b in range(len(found)):
        found[b] = _magnitude_quantile_of(residual[b], seen[b], samples, part)


@compiled
def tail_share_of(residual: Floats, seen: Bools, limit: float) -> float:
    """Return the share of one pair's residuals that are beyond a limit."""
    beyond, count, most = 0, 0, np.float32(limit)
    for k in range(residual.size):
        beyond += seen[k] & (abs(residual[k]) > most)
        count += seen[k]
    return beyond / count if count > 0 else np.nan


@compiled
def robust_scale_of(residual: Floats, seen: Bools, samples: int) -> float:
    """Return 1.4826 times the median absolute residual of one pair; 0 where nothing is seen."""
    median = _magnitude_quantile_of(residual, seen, samples, 2)
    return 0.0 if np.isnan(median) else SCALE_OF_MEDIAN * median


@compiled
def _magnitude_quantile_of(residual: Floats, seen: Bools, samples: int, part: int) -> float:
    # An odd stride does not fall in step with the rows of an image.
    stride = max(1, residual.size // samples) | 1
    sample = np.empty(residual.size // stride + 1, np.float32)
    count = 0
    for k in range(0, residual.size, stride):
        sample[count] = abs(residual[k])
        count += seen[k]
    if count == 0:
        return np.nan
    return float(sample[_index_of_rank(sample[:count].view(np.uint32), (count - 1) // part)])


@compiled
def _index_of_rank(bits: NDArray[np.uint32], rank: int) -> int:
    """Return where the positive float of a rank is, the least having 0; their order is that of their bits."""
    leading, above = np.uint32(0), np.uint32(32)
    histogram = np.empty(2048, np.int32)
    for shift in (np.uint32(21), np.uint32(10), np.uint32(0)):
        digits = above - shift
        for k in range(2048):
            histogram[k] = 0
        for k in range(bits.size):
            if (np.uint64(bits[k]) >> np.uint64(above)) == leading:
                histogram[(bits[k] >> shift) & ((np.uint32(1) << digits) - np.uint32(1))] += 1
        digit = 0
        while histogram[digit] <= rank:
            rank -= histogram[digit]
            digit += 1
        leading = (leading << digits) | np.uint32(digit)
        above = shift
    for k in range(bits.size):
        if bits[k] == leading:
            return k
    return 0
