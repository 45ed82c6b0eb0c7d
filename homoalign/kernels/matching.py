"""The nearest two of many features, as `features.py` asks for them: all but the products.

N M features of the two images.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homoalign.kernels.compiler import arrays, compiled

Integers = NDArray[np.int32]

AT_A_TIME = 64
"""Features of dst: of so many the largest value is found at once."""

LEAST = -(2**31)


def best_two(products: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the two largest of 2 * products + offset in each row.

    Args:
        products: (N, M) int32, M at least 2.
        offset: (M,) int32.

    Returns:
        best: (N,) int32.
        second: (N,) int32.
        index: (N,) int64 of the best, the first of those that are as good.
    """
    best = torch.full((len(products),), LEAST, dtype=torch.int32)
    second, index = best.clone(), torch.zeros(len(products), dtype=torch.int64)
    _best_two(*arrays(products, offset, best, second, index))
    return best, second, index


@compiled
def _best_two(products: Integers, offset: Integers, best: Integers, second: Integers, index: NDArray[np.int64]) -> None:
    count = offset.size
    for i in range(len(products)):
        row = products[i]
        for start in range(0, count, AT_A_TIME):
            stop = min(count, start + AT_A_TIME)
            if _largest(row[start:stop], offset[start:stop]) <= second[i]:
                continue
            for k in range(start, stop):
                value = 2 * row[k] + offset[k]
                if value > best[i]:
                    best[i], second[i], index[i] = value, best[i], k
                elif value > second[i]:
                    second[i] = value


@compiled
def _largest(row: Integers, offset: Integers) -> np.int32:
    largest = np.int32(LEAST)
    for k in range(row.size):
        largest = max(largest, np.int32(np.int32(2) * row[k] + offset[k]))
    return largest
