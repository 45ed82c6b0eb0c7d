"""Channels of structure, as `structure.py` describes them.

B pairs, C channels, H W rows and columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import Floats, arrays, compiled
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
    channels = torch.empty(len(image), 2 * settings[0], *image.shape[1:])
    _describe(settings, *arrays(image, usable, channels))
    return channels


@compiled
def _describe(settings: tuple[int, int, float, float], image: Floats, usable: Floats, channels: Floats) -> None:
    _, window, floor, rounding = settings
    height, width = image.shape[1], image.shape[2]
    energy = np.empty((2, height, width), np.float32)
    local = np.empty((2, height, width), np.float32)
    raw = np.empty((channels.shape[1], height, width), np.float32)
    for b in range(len(image)):
        for c in range(len(raw)):
            for k in range(width):
                raw[c, 0, k], raw[c, height - 1, k] = 0, 0
        for i in range(1, height - 1):
            _orient(image[b, i - 1], image[b, i], image[b, i + 1], usable[b, i], raw, i)
        total, count = 0.0, 0.0
        for i in range(height):
            for c in range(len(raw)):
                _smooth(raw[c, max(i - 1, 0)], raw[c, i], raw[c, min(i + 1, height - 1)], channels[b, c, i])
            of_row, of_usable = _add_energy(channels[b], i, usable[b, i], energy)
            total += of_row
            count += of_usable
        means_of_windows(energy, window, local)
        least = np.float32(floor * total / max(count, 1.0) + rounding)
        for c in range(len(raw)):
            for i in range(height):
                _normalise(local[0, i], local[1, i], usable[b, i], least, channels[b, c, i])


@compiled
def _orient(above: Floats, here: Floats, below: Floats, usable: Floats, raw: Floats, row: int) -> None:
    """Write a row's gradients, their angles multiplied by each harmonic."""
    eighth, two, one, least = np.float32(1 / 8), np.float32(2), np.float32(1), np.float32(1e-9)
    last = above.size - 1
    for c in range(len(raw)):
        raw[c, row, 0], raw[c, row, last] = 0, 0
    for k in range(1, last):
        right = above[k + 1] + two * here[k + 1] + below[k + 1]
        left = above[k - 1] + two * here[k - 1] + below[k - 1]
        lower = below[k - 1] + two * below[k] + below[k + 1]
        upper = above[k - 1] + two * above[k] + above[k + 1]
        x, y = eighth * (right - left) * usable[k], eighth * (lower - upper) * usable[k]
        magnitude = np.sqrt(x * x + y * y)
        inverse = one / max(magnitude, least)
        x *= inverse
        y *= inverse
        for c in range(0, len(raw), 2):
            x, y = x * x - y * y, two * x * y
            raw[c, row, k], raw[c + 1, row, k] = magnitude * x, magnitude * y


@compiled
def _smooth(above: Floats, here: Floats, below: Floats, result: Floats) -> None:
    """Write a row blurred by [1, 2, 1] / 4 along both axes, whose ends go on as they are."""
    quarter, half, last = np.float32(1 / 4), np.float32(1 / 2), here.size - 1
    column = np.empty(here.size, np.float32)
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
def _normalise(energy: Floats, share: Floats, usable: Floats, least: np.float32, values: Floats) -> None:
    tiny = np.float32(1e-6)
    for k in range(values.size):
        values[k] *= usable[k] / np.sqrt(energy[k] / max(share[k], tiny) + least)
