"""The robust scale of residuals."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import Bools, Doubles, Floats, arrays, compiled


def robust_scale(residual: Tensor, seen: Tensor, samples: int) -> Tensor:
    """Return (B,) float64, 1.4826 times the median absolute residual of what is seen; 0 where nothing is.

    Args:
        residual: (B, N) float32.
        seen: (B, N).
        samples: about how many residuals are looked at.
    """
    scale = torch.empty(len(residual), dtype=torch.float64)
    _robust_scale(samples, *arrays(residual, seen > 0, scale))
    return scale


@compiled
def _robust_scale(samples: int, residual: Floats, seen: Bools, scale: Doubles) -> None:
    for b in range(len(scale)):
        scale[b] = robust_scale_of(residual[b], seen[b], samples)


@compiled
def robust_scale_of(residual: Floats, seen: Bools, samples: int) -> float:
    """Return the scale of one pair."""
    # An odd stride does not fall in step with the rows of an image.
    stride = max(1, residual.size // samples) | 1
    sample = np.empty(residual.size // stride + 1, np.float32)
    count = 0
    for k in range(0, residual.size, stride):
        sample[count] = abs(residual[k])
        count += seen[k]
    if count == 0:
        return 0.0
    # The order of positive floats is that of their bits: the leading ones say about where the median is.
    bits = sample[:count].view(np.uint32)
    histogram = np.zeros(2048, np.int32)
    for k in range(count):
        histogram[bits[k] >> 21] += 1
    below, leading, rank = 0, 0, (count - 1) // 2
    while below + histogram[leading] <= rank:
        below += histogram[leading]
        leading += 1
    near = np.empty(histogram[leading], np.float32)
    found = 0
    for k in range(count):
        if bits[k] >> 21 == leading:
            near[found] = sample[k]
            found += 1
    near.sort()
    return 1.4826 * float(near[rank - below])
