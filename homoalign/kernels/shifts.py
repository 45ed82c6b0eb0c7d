"""The best shifts of correlation maps.

B pairs, R rotations, H W rows and columns of a map, K shifts.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homoalign.kernels.compiler import Complexes, Floats, arrays, compiled

LEAST_ENERGY = 1e-3


def best_shifts(
    agreement: Tensor,
    overlap: Tensor,
    energies: tuple[Tensor, Tensor],
    *,
    min_overlap: float,
    unit: float,
    radius: int,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Do what `search.best_of_maps` does.

    Args:
        agreement: (B, R, H, W) complex64, whose real part is the sum of products at every shift.
        overlap: (B, R, H, W) float32.
        energies: of src and of dst, (B, R, H, W) float32 each.
        min_overlap: shifts that overlap by less are none.
        unit: square root of the overlap that counts as one.
        radius: of a window whose largest value is a peak.
        count: K.

    Returns:
        score: (B, R, K) float32, best first; -1 where there are not as many peaks.
        at: (B, R, K) int64, flat indices.
    """
    batch, rotations = overlap.shape[:2]
    score = torch.full((batch, rotations, count), -1.0, dtype=torch.float32)
    at = torch.zeros(batch, rotations, count, dtype=torch.int64)
    settings = (np.float32(min_overlap), np.float32(1 / unit), radius)
    maps = arrays(agreement.flatten(0, 1), overlap.flatten(0, 1), *(energy.flatten(0, 1) for energy in energies))
    _best_shifts(settings, *maps, *arrays(score.view(-1, count), at.view(-1, count)))
    return score, at


@compiled
def _best_shifts(
    settings: tuple[np.float32, np.float32, int],
    agreement: Complexes,
    overlap: Floats,
    src_energy: Floats,
    dst_energy: Floats,
    score: Floats,
    at: NDArray[np.int64],
) -> None:
    min_overlap, over_unit, radius = settings
    rows, columns = overlap.shape[1], overlap.shape[2]
    values = np.empty((rows, columns), np.float32)
    for m in range(len(overlap)):
        for y in range(rows):
            _scores(
                agreement[m, y], overlap[m, y], src_energy[m, y], dst_energy[m, y], min_overlap, over_unit, values[y]
            )
        last = score.shape[1] - 1
        for y in range(rows):
            for x in range(columns):
                value = values[y, x]
                if value > score[m, last] and _is_peak(values, y, x, radius):
                    place = last
                    while place > 0 and score[m, place - 1] < value:
                        score[m, place], at[m, place] = score[m, place - 1], at[m, place - 1]
                        place -= 1
                    score[m, place], at[m, place] = value, y * columns + x


@compiled
def _scores(
    agreement: Complexes,
    overlap: Floats,
    src_energy: Floats,
    dst_energy: Floats,
    min_overlap: np.float32,
    over_unit: np.float32,
    values: Floats,
) -> None:
    least, none = np.float32(LEAST_ENERGY), np.float32(-1)
    for x in range(values.size):
        energy = max(src_energy[x], least) * max(dst_energy[x], least)
        value = agreement[x].real * np.float32(math.sqrt(max(overlap[x], np.float32(0)) / energy)) * over_unit
        values[x] = value if overlap[x] > min_overlap else none


@compiled
def _is_peak(values: Floats, y: int, x: int, radius: int) -> bool:
    for i in range(max(0, y - radius), min(len(values), y + radius + 1)):
        for j in range(max(0, x - radius), min(values.shape[1], x + radius + 1)):
            if values[i, j] > values[y, x]:
                return False
    return True
