"""Channels of structure, as `structure.py` describes them.

B pairs, C channels, H W rows and columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import Doubles, Floats, arrays, compiled, dot, multiply
from homoalign.kernels.pixels import means_of_windows


def describe(image: Tensor, usable: Tensor, settings: tuple[int, int, float, float]) -> Tensor:
    """Do what `structure.describe` does.

    Args:
        image: (B, H, W) float32.
        usable: (B, H, W) float32, 1 or 0, and 0 on the border.
        settings: how many harmonics, each twice the one before, the first one being 2; the side of the window that the
            local energy is taken over; the share of the whole image's energy that is added to it, and what is besides.

    Returns:
        (B, C, H, W) float32.
    """
    channels = torch.empty(len(image), 2 * settings[0], *image.shape[1:], dtype=torch.float32)
    _describe(settings, *arrays(image, usable, channels))
    return channels


def products(channels: tuple[Tensor, Tensor], usable: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum products of two images' channels where both are usable.

    Args:
        channels: (B, C, H, W) float32 of either image.
        usable: (B, H, W) float32, 1 or 0, likewise.

    Returns:
        (B,) float64 each: of the one with the other, with itself, and of the other with itself; and of usable pixels.
    """
    sums = torch.zeros(len(channels[0]), 4, dtype=torch.float64)
    _products(*arrays(*channels, *usable, sums))
    both, one, other, count = sums.unbind(-1)
    return both, one, other, count


@compiled
def _products(a: Floats, b: Floats, a_usable: Floats, b_usable: Floats, sums: Doubles) -> None:
    usable = np.empty(a.shape[3], np.float32)
    for n in range(len(a)):
        for i in range(a.shape[2]):
            multiply(a_usable[n, i], b_usable[n, i], usable)
            sums[n, 3] += dot(usable, usable)
            for c in range(a.shape[1]):
                of_both, of_a, of_b = _products_of_row(a[n, c, i], b[n, c, i], usable)
                sums[n, 0] += of_both
                sums[n, 1] += of_a
                sums[n, 2] += of_b


@compiled
def _products_of_row(a: Floats, b: Floats, usable: Floats) -> tuple[np.float32, np.float32, np.float32]:
    of_both, of_a, of_b = np.float32(0), np.float32(0), np.float32(0)
    for k in range(a.size):
        p, q = a[k] * usable[k], b[k] * usable[k]
        of_both += p * q
        of_a += p * p
        of_b += q * q
    return of_both, of_a, of_b


@compiled
def _describe(settings: tuple[int, int, float, float], image: Floats, usable: Floats, channels: Floats) -> None:
    _, window, floor, rounding = settings
    height, width = image.shape[1], image.shape[2]
    energy = np.empty((2, height, width), np.float32)
    local = np.empty((2, height, width), np.float32)
    raw, buffer = np.empty((channels.shape[1], height, width), np.float32), np.empty((3, width), np.float32)
    for b in range(len(image)):
        for c in range(len(raw)):
            for k in range(width):
                raw[c, 0, k], raw[c, height - 1, k] = 0, 0
        for i in range(1, height - 1):
            _orient(image[b, i - 1], image[b, i], image[b, i + 1], usable[b, i], raw, i, buffer)
        total, count = 0.0, 0.0
        for i in range(height):
            for c in range(len(raw)):
                _smooth(raw[c, max(i - 1, 0)], raw[c, i], raw[c, min(i + 1, height - 1)], buffer[0], channels[b, c, i])
            of_row, of_usable = _add_energy(channels[b], i, usable[b, i], energy)
            total += of_row
            count += of_usable
        means_of_windows(energy, window, local)
        least = np.float32(floor * total / max(count, 1.0) + rounding)
        for i in range(height):
            factor = local[0, i]
            _write_factor(local[1, i], usable[b, i], least, factor)
            for c in range(len(raw)):
                multiply(channels[b, c, i], factor, channels[b, c, i])


@compiled
def _orient(above: Floats, here: Floats, below: Floats, usable: Floats, raw: Floats, row: int, buffer: Floats) -> None:
    """Write a row's gradients, their angles multiplied by each harmonic."""
    x, y, magnitude = buffer[0], buffer[1], buffer[2]
    _gradients(above, here, below, usable, x, y, magnitude)
    for c in range(0, len(raw), 2):
        _double_angle(x, y, magnitude, raw[c, row], raw[c + 1, row])


@compiled
def _gradients(
    above: Floats, here: Floats, below: Floats, usable: Floats, x: Floats, y: Floats, magnitude: Floats
) -> None:
    """Write the unit vectors along a row's gradients, and how long these are; zero at the ends."""
    eighth, two, one, least = np.float32(1 / 8), np.float32(2), np.float32(1), np.float32(1e-9)
    last = here.size - 1
    for k in range(1, last):
        right = above[k + 1] + two * here[k + 1] + below[k + 1]
        left = above[k - 1] + two * here[k - 1] + below[k - 1]
        lower = below[k - 1] + two * below[k] + below[k + 1]
        upper = above[k - 1] + two * above[k] + above[k + 1]
        across, down = eighth * (right - left) * usable[k], eighth * (lower - upper) * usable[k]
        length = np.sqrt(across * across + down * down)
        inverse = one / max(length, least)
        magnitude[k], x[k], y[k] = length, across * inverse, down * inverse
    for k in (0, last):
        magnitude[k], x[k], y[k] = 0, 0, 0


@compiled
def _double_angle(x: Floats, y: Floats, magnitude: Floats, cosine: Floats, sine: Floats) -> None:
    """Replace unit vectors by those of twice the angle, and write them with a length."""
    two = np.float32(2)
    for k in range(x.size):
        along, across = x[k] * x[k] - y[k] * y[k], two * x[k] * y[k]
        x[k], y[k] = along, across
        cosine[k], sine[k] = magnitude[k] * along, magnitude[k] * across


@compiled
def _smooth(above: Floats, here: Floats, below: Floats, column: Floats, result: Floats) -> None:
    """Write a row blurred by [1, 2, 1] / 4 along both axes, whose ends go on as they are."""
    quarter, half, last = np.float32(1 / 4), np.float32(1 / 2), here.size - 1
    for k in range(here.size):
        column[k] = quarter * (above[k] + below[k]) + half * here[k]
    for k in range(1, last):
        result[k] = quarter * (column[k - 1] + column[k + 1]) + half * column[k]
    result[0] = quarter * (column[0] + column[1]) + half * column[0]
    result[last] = quarter * (column[last - 1] + column[last]) + half * column[last]


@compiled
def _add_energy(channels: Floats, row: int, usable: Floats, energy: Floats) -> tuple[float, float]:
    """Write a row's energy and where it is usable; return the sums of both."""
    total, count = np.float32(0), np.float32(0)
    for k in range(usable.size):
        energy[0, row, k] = 0
        energy[1, row, k] = usable[k]
        count += usable[k]
    for c in range(len(channels)):
        of_row = channels[c, row]
        for k in range(of_row.size):
            energy[0, row, k] += of_row[k] * of_row[k]
    for k in range(usable.size):
        total += energy[0, row, k]
    return float(total), float(count)


@compiled
def _write_factor(share: Floats, usable: Floats, least: np.float32, energy: Floats) -> None:
    """Replace a row of local energies, of so large a share of usable pixels, by what normalises the channels."""
    tiny = np.float32(1e-6)
    for k in range(energy.size):
        energy[k] = usable[k] / np.sqrt(energy[k] / max(share[k], tiny) + least)
