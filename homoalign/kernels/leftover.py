"""Products of what an alignment leaves with what it might follow from, summed over blocks, as `leftover.py` asks for.

B pairs, H W rows and columns, K blocks, F features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import Doubles, Floats, arrays, compiled, multiply


def block_products(features: tuple[Tensor, ...], weight: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return (B, K, F, F) float64, weighted sums of products of features over blocks.

    Args:
        features: F of (B, H, W) float32.
        weight: (B, H, W) float32.
        sides: height and width of the blocks, pixels; those at the end may be smaller.
    """
    batch, height, width = weight.shape
    count, blocks = len(features), (-(-height // sides[0]), -(-width // sides[1]))
    sums = torch.zeros(batch, *blocks, count, count, dtype=torch.float64)
    of_row = np.empty((count, width), np.float32)
    for b in range(batch):
        planes = torch.stack([feature[b] for feature in features])
        _block_products(*sides, of_row, *arrays(planes, weight[b], sums[b]))
    return sums.flatten(1, 2)


@compiled
def _block_products(rows: int, columns: int, of_row: Floats, features: Floats, weight: Floats, sums: Doubles) -> None:
    count, height, width = features.shape
    total = np.empty((count * (count + 1) // 2, width), np.float32)
    for first in range(0, height, rows):
        total[:] = 0
        for y in range(first, min(height, first + rows)):
            k = 0
            for i in range(count):
                multiply(features[i, y], weight[y], of_row[i])
                for j in range(i + 1):
                    _add_products(of_row[i], features[j, y], total[k])
                    k += 1
        for x in range(width):
            block = sums[first // rows, x // columns]
            k = 0
            for i in range(count):
                for j in range(i + 1):
                    block[i, j] += total[k, x]
                    k += 1
    for row in range(len(sums)):
        for column in range(sums.shape[1]):
            for i in range(count):
                for j in range(i):
                    sums[row, column, j, i] = sums[row, column, i, j]


@compiled
def _add_products(a: Floats, b: Floats, total: Floats) -> None:
    for x in range(total.size):
        total[x] += a[x] * b[x]
