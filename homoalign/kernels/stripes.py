"""What tells stripes, in one pass over some lines.

B pairs, H W rows and columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import Doubles, Floats, add, arrays, compiled


def line_contrasts(values: Tensor, strips: Tensor, parts: int) -> Tensor:
    """Do what `stripes.contrasts` does with images of which all is known.

    Args:
        values: (B, H, W) float32.
        strips: (N, 5) int64, the rows that are looked at.
        parts: that a row, and the strips, are cut into.

    Returns:
        (B, 2, 3) float64.
    """
    found = torch.empty(len(values), 2, 3, dtype=torch.float64)
    _line_contrasts(parts, *arrays(values, strips, found))
    return found


@compiled
def _line_contrasts(parts: int, values: Floats, strips: Floats, found: Doubles) -> None:
    count, width = len(strips), values.shape[2]
    rows, columns = np.empty((parts, 5, count), np.float32), np.empty((parts, width), np.float32)
    across = np.empty((parts, 5, width - 4), np.float32)
    along, per_part = width // parts, count // parts
    for b in range(len(values)):
        columns[:] = 0
        for k in range(count):
            for i in range(5):
                row = values[b, strips[k, i]]
                add(row, columns[k // per_part])
                for part in range(parts):
                    total = np.float32(0)
                    for x in range(part * along, (part + 1) * along):
                        total += row[x]
                    rows[part, i, k] = total
        for part in range(parts):
            for i in range(5):
                across[part, i] = columns[part, i : width - 4 + i]
        _contrasts(rows, np.float32(along), found[b, 0])
        _contrasts(across, np.float32(5 * per_part), found[b, 1])


@compiled
def _contrasts(sums: Floats, size: np.float32, found: Doubles) -> None:
    """Write the share of lines whose parts agree, and the medians of what lines differ by from near and far ones."""
    parts, count = sums.shape[0], sums.shape[2]
    near, far, agree = np.empty(count, np.float32), np.empty(count, np.float32), 0
    two, scale = np.float32(2), np.float32(1) / (np.float32(parts) * size)
    for k in range(count):
        of_near, of_far, sign = np.float32(0), np.float32(0), 0
        for part in range(parts):
            differs = two * sums[part, 2, k] - sums[part, 1, k] - sums[part, 3, k]
            sign += int(differs > 0) - int(differs < 0)
            of_near += differs
            of_far += two * sums[part, 2, k] - sums[part, 0, k] - sums[part, 4, k]
        agree += int(abs(sign) == parts)
        near[k], far[k] = abs(of_near) * scale, abs(of_far) * scale
    middle = (count - 1) // 2
    found[0], found[1], found[2] = agree / count, np.partition(near, middle)[middle], np.partition(far, middle)[middle]
