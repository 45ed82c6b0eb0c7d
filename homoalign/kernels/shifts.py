"""Correlation of turned images at all shifts, as `shifts.py` asks for it: all but the Fourier transforms.

B pairs, R rotations, M harmonics, H W rows and columns of a map, K shifts.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homoalign.kernels.compiler import Complexes, Floats, arrays, compiled

LEAST_ENERGY = 1e-3


def turned_cross_spectra(src: Tensor, dst: Tensor, *, with_half_turns: bool) -> Tensor:
    """Do what `shifts.cross_spectra` does, for (B, R, M, H, W) and (B, M, H, W) complex64."""
    products = torch.empty(*src.shape[:2], *src.shape[3:], dtype=torch.complex64)
    (_turned_cross_spectra if with_half_turns else _cross_spectra)(*arrays(src, dst, products))
    return products


@compiled
def _cross_spectra(src: Complexes, dst: Complexes, products: Complexes) -> None:
    for b in range(len(src)):
        for r in range(src.shape[1]):
            for y in range(src.shape[3]):
                product = products[b, r, y]
                for x in range(product.size):
                    product[x] = np.conj(src[b, r, 0, y, x]) * dst[b, 0, y, x]
                for m in range(1, src.shape[2]):
                    for x in range(product.size):
                        product[x] += np.conj(src[b, r, m, y, x]) * dst[b, m, y, x]


@compiled
def _turned_cross_spectra(src: Complexes, dst: Complexes, products: Complexes) -> None:
    rows, columns = src.shape[3], src.shape[4]
    half = np.float32(0.5)
    for b in range(len(src)):
        for r in range(src.shape[1]):
            for y in range(rows // 2 + 1):
                opposite = (rows - y) % rows
                for x in range(columns):
                    beyond = columns - x if x else 0
                    straight, turned = np.complex64(0), np.complex64(0)  # spectra of real maps
                    for m in range(src.shape[2]):
                        f, f_beyond = src[b, r, m, y, x], src[b, r, m, opposite, beyond]
                        g, g_beyond = dst[b, m, y, x], dst[b, m, opposite, beyond]
                        straight += np.conj(f) * g + f_beyond * np.conj(g_beyond)
                        turned += np.conj(f_beyond) * g + f * np.conj(g_beyond)
                    _put_both(products[b, r], half * straight, half * turned, (y, x), (opposite, beyond))


@compiled
def _put_both(
    spectrum: Complexes, first: np.complex64, second: np.complex64, at: tuple[int, int], opposite: tuple[int, int]
) -> None:
    """Write the spectrum of two real maps as that of a complex one, at a frequency and at the opposite one."""
    spectrum[at] = complex(first.real - second.imag, first.imag + second.real)
    spectrum[opposite] = complex(first.real + second.imag, second.real - first.imag)


def window_spectra(src: Tensor, dst: Tensor, *, with_half_turns: bool) -> tuple[Tensor, Tensor]:
    """Do what `shifts.window_spectra` does, for (B, R, H, W) and (B, H, W) complex64."""
    batch, rotations, *size = src.shape
    energies = torch.empty(batch, 2 * rotations if with_half_turns else rotations, *size, dtype=torch.complex64)
    overlap = torch.empty_like(src)
    _window_spectra(with_half_turns, *arrays(src, dst, energies, overlap))
    return energies, overlap


@compiled
def _window_spectra(
    with_half_turns: bool, src: Complexes, dst: Complexes, energies: Complexes, overlap: Complexes
) -> None:
    rotations, rows, columns = src.shape[1:]
    none = np.complex64(0)
    for b in range(len(src)):
        for r in range(rotations):
            for y in range(rows // 2 + 1):
                opposite = (rows - y) % rows
                for x in range(columns):
                    beyond = columns - x if x else 0
                    here, there = (y, x), (opposite, beyond)
                    energy, usable = _two_maps(src[b, r, y, x], src[b, r, opposite, beyond])
                    dst_energy, dst_usable = _two_maps(dst[b, y, x], dst[b, opposite, beyond])
                    under_dst, under_src = np.conj(energy) * dst_usable, np.conj(usable) * dst_energy
                    _put_both(energies[b, r], under_dst, under_src, here, there)
                    turned = none
                    if with_half_turns:
                        under_dst, under_src, turned = energy * dst_usable, usable * dst_energy, usable * dst_usable
                        _put_both(energies[b, rotations + r], under_dst, under_src, here, there)
                    _put_both(overlap[b, r], np.conj(usable) * dst_usable, turned, here, there)


@compiled
def _two_maps(value: np.complex64, opposite: np.complex64) -> tuple[np.complex64, np.complex64]:
    """Return the spectra of the real and of the imaginary part of a map, of its spectrum at opposite frequencies."""
    half = np.float32(0.5)
    real, difference = half * (value + np.conj(opposite)), half * (value - np.conj(opposite))
    return real, np.complex64(complex(difference.imag, -difference.real))


def best_shifts(
    agreement: Tensor,
    overlap: Tensor,
    energies: Tensor,
    *,
    min_overlap: float,
    unit: float,
    radius: int,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Do what `shifts.best_of_maps` does.

    Args:
        agreement: (B, R, H, W) complex64, real parts are the sums of products at every shift.
        overlap: (B, R, H, W) complex64, likewise.
        energies: (B, R, H, W) complex64, of src and of dst; or (B, 2 R, H, W), and the imaginary parts of the others
            belong to the second half.
        min_overlap: shifts that overlap by less are none.
        unit: square root of the overlap that counts as one.
        radius: of a window whose largest value is a peak; maps go on at their other end.
        count: K.

    Returns:
        score: (B, R or 2 R, K) float32, best first; -1 where there are not as many peaks.
        at: likewise, int64, flat indices.
    """
    batch, rotations = energies.shape[:2]
    score = torch.full((batch, rotations, count), -1.0, dtype=torch.float32)
    at = torch.zeros(batch, rotations, count, dtype=torch.int64)
    settings = (np.float32(min_overlap), np.float32(1 / unit), radius)
    _best_shifts(settings, *arrays(agreement, overlap, energies, score, at))
    return score, at


@compiled
def _best_shifts(
    settings: tuple[np.float32, np.float32, int],
    agreement: Complexes,
    overlap: Complexes,
    energies: Complexes,
    score: Floats,
    at: NDArray[np.int64],
) -> None:
    min_overlap, over_unit, radius = settings
    straight, rows, columns = agreement.shape[1:]
    values = np.empty((rows, columns), np.float32)
    for b in range(len(energies)):
        for r in range(energies.shape[1]):
            for y in range(rows):
                if r < straight:
                    both, shared = agreement[b, r, y].real, overlap[b, r, y].real
                else:
                    both, shared = agreement[b, r - straight, y].imag, overlap[b, r - straight, y].imag
                _scores(both, shared, energies[b, r, y], min_overlap, over_unit, values[y])
            _highest_peaks(values, radius, score[b, r], at[b, r])


@compiled
def _highest_peaks(values: Floats, radius: int, score: Floats, at: NDArray[np.int64]) -> None:
    last = score.size - 1
    for y in range(len(values)):
        for x in range(values.shape[1]):
            value = values[y, x]
            if value > score[last] and _is_peak(values, y, x, radius):
                place = last
                while place > 0 and score[place - 1] < value:
                    score[place], at[place] = score[place - 1], at[place - 1]
                    place -= 1
                score[place], at[place] = value, y * values.shape[1] + x


@compiled
def _scores(
    agreement: Floats,
    overlap: Floats,
    energies: Complexes,
    min_overlap: np.float32,
    over_unit: np.float32,
    values: Floats,
) -> None:
    least, none = np.float32(LEAST_ENERGY), np.float32(-1)
    for x in range(values.size):
        energy = max(energies[x].real, least) * max(energies[x].imag, least)
        value = agreement[x] * np.float32(math.sqrt(max(overlap[x], np.float32(0)) / energy)) * over_unit
        values[x] = value if overlap[x] > min_overlap else none


@compiled
def _is_peak(values: Floats, y: int, x: int, radius: int) -> bool:
    rows, columns = values.shape
    for i in range(y - radius, y + radius + 1):
        for j in range(x - radius, x + radius + 1):
            if values[i % rows, j % columns] > values[y, x]:
                return False
    return True
