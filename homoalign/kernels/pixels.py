"""Passes over whole images.

B pairs, H W rows and columns.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homoalign.kernels.compiler import Doubles, Floats, add, arrays, compiled


@compiled
def means_of_windows(values: Floats, window: int, means: Floats) -> None:
    """Write means over square windows of an odd side of (B, H, W); beyond the border there are zeros."""
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
    smaller = torch.empty(*image.shape[:-2], (height + 1) // 2, (width + 1) // 2, dtype=torch.float32)
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
    result = torch.empty(batch, height + 2 * ends, width + 2 * ends, dtype=torch.float32)
    _convolve(image.contiguous().numpy(), np.array(taps, np.float32), ends, result.numpy())
    return result


def gray_of_bytes(image: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Return (B, H, W) float32, the weighted sum of the first three channels of (B, C, H, W) uint8, in any layout."""
    gray = torch.empty(len(image), *image.shape[2:], dtype=torch.float32)
    of_channels, pixels = np.array(weights, np.float32), image.movedim(1, -1)
    if pixels.is_contiguous() and image.shape[1] in (3, 4):
        _gray_of_pixels(pixels.numpy(), of_channels, gray.numpy())
    else:
        _gray_of_planes(image.contiguous().flatten(2).numpy(), of_channels, gray.flatten(1).numpy())
    return gray


def unit_of_bytes(image: Tensor) -> Tensor:
    """Return float32 in [0, 1] of uint8 of any shape."""
    found = torch.empty(image.shape, dtype=torch.float32)
    _unit_of_bytes(*arrays(image.flatten(), found.view(-1)))
    return found


def smooth(image: Tensor, hole: int) -> Tensor:
    """Do what `noise.smooth` does, on (B, H, W) float32."""
    result = torch.empty_like(image, memory_format=torch.contiguous_format)
    _smooth(hole, *arrays(image, result))
    return result


def box(image: Tensor, radius: int) -> Tensor:
    """Do what `blur.box` does, on (B, H, W) float32."""
    means = torch.empty_like(image, memory_format=torch.contiguous_format)
    values, found = arrays(image, means)
    means_of_windows(values, 2 * radius + 1, found)
    return means


def soften(image: Tensor) -> Tensor:
    """Do what `pyramid.soften` does, on (B, H, W) float32."""
    result = torch.empty_like(image, memory_format=torch.contiguous_format)
    _soften(*arrays(image, result))
    return result


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
            above, first = image[b, mirrored(2 * i - 2, height)], image[b, mirrored(2 * i - 1, height)]
            here, last = image[b, 2 * i], image[b, mirrored(2 * i + 1, height)]
            below = image[b, mirrored(2 * i + 2, height)]
            for k in range(width):
                inner[k] = above[k] + below[k] + four * (first[k] + last[k]) + six * here[k]
            row[0], row[1] = inner[mirrored(-2, width)], inner[mirrored(-1, width)]
            row[width + 2], row[width + 3] = inner[mirrored(width, width)], inner[mirrored(width + 1, width)]
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
            y = i - ends
            _write_times(taps[reach], image[b, mirrored(y, height)], inner)
            for j in range(1, reach, 2):  # two pairs of equal taps at a time: fewer trips to memory
                _add_two_pairs(
                    taps[reach + j], image[b, mirrored(y - j, height)], image[b, mirrored(y + j, height)],
                    taps[reach + j + 1], image[b, mirrored(y - j - 1, height)], image[b, mirrored(y + j + 1, height)],
                    inner,
                )  # fmt: skip
            if reach % 2 == 1:
                _add_pair(taps[0], image[b, mirrored(y - reach, height)], image[b, mirrored(y + reach, height)], inner)
            for k in range(ends + reach):
                row[k] = inner[mirrored(k - ends - reach, width)]
                row[ends + reach + width + k] = inner[mirrored(width + k, width)]
            of_row, n = result[b, i], result.shape[2]
            _write_times(taps[reach], row[reach : reach + n], of_row)
            for j in range(1, reach, 2):
                left, right = reach - j, reach + j
                _add_two_pairs(
                    taps[right], row[left : left + n], row[right : right + n],
                    taps[right + 1], row[left - 1 : left - 1 + n], row[right + 1 : right + 1 + n],
                    of_row,
                )  # fmt: skip
            if reach % 2 == 1:
                _add_pair(taps[0], row[:n], row[2 * reach : 2 * reach + n], of_row)


@compiled
def _write_times(factor: np.float32, values: Floats, total: Floats) -> None:
    for k in range(total.size):
        total[k] = factor * values[k]


@compiled
def _add_pair(factor: np.float32, a: Floats, b: Floats, total: Floats) -> None:
    for k in range(total.size):
        total[k] += factor * (a[k] + b[k])


@compiled
def _add_two_pairs(
    factor: np.float32, a: Floats, b: Floats, other_factor: np.float32, c: Floats, d: Floats, total: Floats
) -> None:
    for k in range(total.size):
        total[k] += factor * (a[k] + b[k]) + other_factor * (c[k] + d[k])


@compiled
def _smooth(hole: int, image: Floats, result: Floats) -> None:
    height, width = image.shape[1], image.shape[2]
    row = np.empty(width + 4 * hole, np.float32)
    inner = row[2 * hole : 2 * hole + width]
    for b in range(len(image)):
        for i in range(height):
            _weigh_five(
                image[b, mirrored(i - 2 * hole, height)], image[b, mirrored(i - hole, height)], image[b, i],
                image[b, mirrored(i + hole, height)], image[b, mirrored(i + 2 * hole, height)], inner,
            )  # fmt: skip
            for k in range(2 * hole):
                row[k] = inner[mirrored(k - 2 * hole, width)]
                row[2 * hole + width + k] = inner[mirrored(width + k, width)]
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
def _soften(image: Floats, result: Floats) -> None:
    height, width = image.shape[1], image.shape[2]
    quarter, two = np.float32(1 / 4), np.float32(2)
    row = np.empty(width, np.float32)
    for b in range(len(image)):
        for i in range(height):
            here, softened = image[b, i], result[b, i]
            if 0 < i < height - 1:
                above, below = image[b, i - 1], image[b, i + 1]
                for k in range(width):
                    row[k] = quarter * (above[k] + below[k] + two * here[k])
            else:
                row[:] = here
            softened[0], softened[width - 1] = row[0], row[width - 1]
            inner, left, right = softened[1 : width - 1], row[: width - 2], row[2:]
            middle = row[1 : width - 1]
            for k in range(inner.size):
                inner[k] = quarter * (left[k] + right[k] + two * middle[k])


@compiled
def mirrored(index: int, size: int) -> int:
    """Return the index of a row that is mirrored at its ends as often as it takes."""
    period = max(1, 2 * (size - 1))
    index %= period
    return min(index, period - index)


@compiled
def _gray_of_pixels(image: NDArray[np.uint8], weights: Floats, gray: Floats) -> None:
    for b in range(len(image)):
        for i in range(image.shape[1]):
            # Of steps that the compiler knows it makes a few shuffles.
            if image.shape[3] == 3:
                _weigh_pixels(weights, image[b, i].reshape(-1), 3, gray[b, i])
            else:
                _weigh_pixels(weights, image[b, i].reshape(-1), 4, gray[b, i])


@compiled
def _weigh_pixels(weights: Floats, row: NDArray[np.uint8], step: int, gray: Floats) -> None:
    red, green, blue = weights[0], weights[1], weights[2]
    for k in range(gray.size):
        j = step * k
        gray[k] = red * np.float32(row[j]) + green * np.float32(row[j + 1]) + blue * np.float32(row[j + 2])


@compiled
def _gray_of_planes(image: NDArray[np.uint8], weights: Floats, gray: Floats) -> None:
    for b in range(len(image)):
        _weigh_three(weights, image[b, 0], image[b, 1], image[b, 2], gray[b])


@compiled
def _weigh_three(
    weights: Floats, red: NDArray[np.uint8], green: NDArray[np.uint8], blue: NDArray[np.uint8], gray: Floats
) -> None:
    of_red, of_green, of_blue = weights[0], weights[1], weights[2]
    for k in range(gray.size):
        gray[k] = of_red * np.float32(red[k]) + of_green * np.float32(green[k]) + of_blue * np.float32(blue[k])


@compiled
def _unit_of_bytes(image: NDArray[np.uint8], found: Floats) -> None:
    over = 1 / 255  # in float64, which rounds as a division does
    for k in range(image.size):
        found[k] = np.float32(np.float64(image[k]) * over)
