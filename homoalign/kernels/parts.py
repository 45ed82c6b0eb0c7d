"""Blocks of one image sought in another, as `parts.py` asks for it: all but the Fourier transforms.

B pairs, C channels, K blocks, H W rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import Bools, Complexes, Doubles, Floats, arrays, compiled, factorise, solve_factorised


class Grid(NamedTuple):
    """Where the blocks are.

    Attributes:
        top: row of the first block's first pixel.
        left: its column.
        rows: of blocks.
        columns: likewise.
        side: of a block, pixels.
    """

    top: int
    left: int
    rows: int
    columns: int
    side: int


def cut(channels: Tensor, grid: Grid, margin: int, length: int) -> Tensor:
    """Cut blocks and what is around them, two channels as one complex number.

    Args:
        channels: (B, C, H, W) float32.
        grid: the blocks.
        margin: pixels around them; beyond the border is zero.
        length: of the result's sides; zero beyond a block.

    Returns:
        (B, C / 2, K, length, length) complex64.
    """
    batch, count = channels.shape[:2]
    blocks = torch.zeros(batch, count // 2, grid.rows * grid.columns, length, length, dtype=torch.complex64)
    _cut(grid, margin, *arrays(channels, blocks))
    return blocks


@compiled
def _cut(grid: Grid, margin: int, channels: Floats, blocks: Complexes) -> None:
    top, left, rows, columns, side = grid
    height, width = channels.shape[2], channels.shape[3]
    for b in range(blocks.shape[0]):
        for c in range(blocks.shape[1]):
            real, imaginary = channels[b, 2 * c], channels[b, 2 * c + 1]
            for k in range(rows * columns):
                y0, x0 = top + k // columns * side - margin, left + k % columns * side - margin
                x_first, x_last = max(0, -x0), min(side + 2 * margin, width - x0)
                for y in range(max(0, -y0), min(side + 2 * margin, height - y0)):
                    row = blocks[b, c, k, y]
                    for x in range(x_first, x_last):
                        row[x] = complex(real[y0 + y, x0 + x], imaginary[y0 + y, x0 + x])


def cross_spectrum(a: Tensor, b: Tensor) -> Tensor:
    """Return (B, K, H, W) complex64, the sum over channels of conj(a) * b, (B, C, K, H, W) each."""
    product = torch.empty(len(a), *a.shape[2:], dtype=torch.complex64)
    _cross_spectrum(*arrays(a.flatten(2), b.flatten(2), product.flatten(1)))
    return product


@compiled
def _cross_spectrum(a: Complexes, b: Complexes, product: Complexes) -> None:
    for i in range(len(a)):
        for k in range(a.shape[2]):
            product[i, k] = np.conj(a[i, 0, k]) * b[i, 0, k]
        for c in range(1, a.shape[1]):
            for k in range(a.shape[2]):
                product[i, k] += np.conj(a[i, c, k]) * b[i, c, k]


def block_energies(
    template: Tensor, filled: Tensor, search: Tensor, grid: Grid, reach: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum what the blocks hold, and what dst holds under them at every shift.

    Args:
        template: (B, C, H, W) float32, channels of the warped source.
        filled: (B, H, W) float32, 1 where they are known and 0 elsewhere.
        search: (B, C, H, W) float32, channels of dst.
        grid: the blocks.
        reach: furthest shift, pixels.

    Returns:
        own: (B, K) float32, sum of squares of a block's channels.
        known: (B, K) float32, how many of its pixels are filled.
        under: (B, K, 2 * reach + 1, 2 * reach + 1) float32, sum of squares of dst's channels where a block shifted so
            is filled; zero beyond the border.
    """
    batch, count = len(template), grid.rows * grid.columns
    own, known = torch.zeros(batch, count, dtype=torch.float32), torch.zeros(batch, count, dtype=torch.float32)
    under = torch.zeros(batch, count, 2 * reach + 1, 2 * reach + 1, dtype=torch.float32)
    _block_energies(grid, reach, *arrays(template, filled, search, own, known, under))
    return own, known, under


@compiled
def _block_energies(
    grid: Grid,
    reach: int,
    template: Floats,
    filled: Floats,
    search: Floats,
    own: Floats,
    known: Floats,
    under: Floats,
) -> None:
    top, left, rows, columns, side = grid
    height, width = filled.shape[1], filled.shape[2]
    energy = np.empty(width, np.float32)
    # Sums of dst's energy along each row, up to a pixel.
    running = np.zeros((height + 2 * reach, width + 2 * reach + 1))
    for b in range(len(filled)):
        for y in range(height):
            _sum_squares(search[b], y, energy)
            _run_up(energy, reach, running[reach + y])
            row = (y - top) // side if y >= top else -1
            if 0 <= row < rows:
                _sum_squares(template[b], y, energy)
                for column in range(columns):
                    k, first = row * columns + column, left + column * side
                    for x in range(first, first + side):
                        own[b, k] += energy[x]
                        known[b, k] += filled[b, y, x]
        for k in range(rows * columns):
            y0, x0 = top + k // columns * side, left + k % columns * side
            for y in range(y0, y0 + side):
                _sum_under(running[y:], filled[b, y, x0 : x0 + side], x0, under[b, k])


@compiled
def _run_up(energy: Floats, margin: int, running: Doubles) -> None:
    total = 0.0
    for k in range(energy.size):
        total += energy[k]
        running[margin + k + 1] = total
    running[margin + energy.size + 1 :] = total


@compiled
def _sum_under(running: Doubles, filled: Floats, left: int, sums: Floats) -> None:
    """Add what lies under a row of a block, run by run of filled pixels, at every shift."""
    x = 0
    while x < filled.size:
        first = x
        while x < filled.size and filled[x] > 0:
            x += 1
        if x > first:
            for i in range(len(sums)):
                of_row, of_shift = running[i], sums[i]
                for j in range(of_shift.size):
                    of_shift[j] += np.float32(of_row[left + x + j] - of_row[left + first + j])
        x += 1


@compiled
def _sum_squares(channels: Floats, y: int, total: Floats) -> None:
    total[:] = 0
    for c in range(len(channels)):
        row = channels[c, y]
        for k in range(row.size):
            total[k] += row[k] * row[k]


def peaks(both: Tensor, own: Tensor, under: Tensor, least: Tensor) -> Tensor:
    """Find where blocks lie best.

    Args:
        both: (B, K, N, N) complex64, whose real part is the sum of products at every shift; as much of it as `under`.
        own: (B, K) float32, as from `block_energies`.
        under: (B, K, n, n) float32, likewise.
        least: (B, K) float32, least energy of dst.

    Returns:
        (B, K, 2) float64, x and y of the best shift, from the first one on, by parabolas to a part of a pixel.
    """
    place = torch.empty(*own.shape, 2, dtype=torch.float64)
    _peaks(*arrays(both, own, under, least, place))
    return place


@compiled
def _peaks(both: Complexes, own: Floats, under: Floats, least: Floats, place: Doubles) -> None:
    count = under.shape[2]
    found = np.empty((count, count), np.float32)
    for b in range(len(own)):
        for k in range(own.shape[1]):
            size = own[b, k] + np.float32(1e-6)
            best, y, x = np.float32(-np.inf), 0, 0
            for i in range(count):
                for j in range(count):
                    value = both[b, k, i, j].real / np.sqrt(size * max(under[b, k, i, j], least[b, k]))
                    found[i, j] = value
                    if value > best:
                        best, y, x = value, i, j
            last = count - 1
            place[b, k, 0] = x + _vertex(float(found[y, max(x - 1, 0)]), float(best), float(found[y, min(x + 1, last)]))
            place[b, k, 1] = y + _vertex(float(found[max(y - 1, 0), x]), float(best), float(found[min(y + 1, last), x]))


@compiled
def _vertex(before: float, middle: float, after: float) -> float:
    curvature = max(2 * middle - before - after, 1e-4)
    return min(max(0.5 * (after - before) / curvature, -0.5), 0.5)


def common_motion(
    jacobian: Tensor, shift: Tensor, counts: Tensor, prior: Tensor, widths: Tensor, settings: tuple[float, float, int]
) -> tuple[Tensor, Tensor]:
    """Do what `parts._common_motion` does, with losses of these widths in turn.

    Args:
        jacobian: (K, 2, 8) float64.
        shift: (B, K, 2) float64.
        counts: (B, K) bool.
        prior: (8, 8) float64.
        widths: (n,) float64, of the robust loss.
        settings: a shift's variance before the scatter is known, the least share of it that is left, and how many
            parameters there are.
    """
    motion = torch.zeros(len(shift), 8, dtype=torch.float64)
    covariance = torch.empty(len(shift), 8, 8, dtype=torch.float64)
    _common_motion(settings, *arrays(jacobian, shift, counts, prior, widths, motion, covariance))
    return motion, covariance


@compiled
def _common_motion(
    settings: tuple[float, float, int],
    jacobian: Doubles,
    shift: Doubles,
    counts: Bools,
    prior: Doubles,
    widths: Doubles,
    motion: Doubles,
    covariance: Doubles,
) -> None:
    variance, least_share, free = settings
    told, information, weight = np.empty((8, 8)), np.empty((8, 8)), np.empty(shift.shape[1])
    for b in range(len(shift)):
        for width in widths:
            for k in range(weight.size):
                squared = _squared_rest(jacobian[k], shift[b, k], motion[b])
                weight[k] = (width**2 / (width**2 + squared)) ** 2 if counts[b, k] else 0.0
            _ask_blocks(jacobian, shift[b], weight, told, motion[b])
            information[:] = told / variance + prior
            motion[b] /= variance
            factorise(information)
            solve_factorised(information, motion[b])
        scatter = 0.0
        for k in range(weight.size):
            scatter += weight[k] * _squared_rest(jacobian[k], shift[b, k], motion[b])
        scatter = max(scatter / max(2 * weight.sum() - free, 1.0), least_share * variance)
        information[:] = told / scatter + prior
        factorise(information)
        for i in range(8):
            covariance[b, i] = 0
            covariance[b, i, i] = 1
            solve_factorised(information, covariance[b, i])


@compiled
def _ask_blocks(jacobian: Doubles, shift: Doubles, weight: Doubles, told: Doubles, asked: Doubles) -> None:
    """Write J^T W J and J^T W times the shifts."""
    told[:] = 0
    asked[:] = 0
    for k in range(weight.size):
        for axis in range(2):
            row = jacobian[k, axis]
            for i in range(8):
                asked[i] += weight[k] * row[i] * shift[k, axis]
                for j in range(8):
                    told[i, j] += weight[k] * row[i] * row[j]


@compiled
def _squared_rest(jacobian: Doubles, shift: Doubles, motion: Doubles) -> float:
    """Return the squared length of what a motion leaves of a block's shift."""
    squared = 0.0
    for axis in range(2):
        rest = shift[axis]
        for i in range(8):
            rest -= jacobian[axis, i] * motion[i]
        squared += rest * rest
    return squared
