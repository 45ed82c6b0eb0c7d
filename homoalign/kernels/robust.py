"""The robust scale of residuals."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
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


def lower_quartile(residual: Tensor, seen: Tensor, samples: int) -> Tensor:
    """Return (B,) float64, the lower quartile of the absolute residuals of what is seen; NaN where nothing is.

    Args:
        residual: (B, N) float32.
        seen: (B, N).
        samples: about how many residuals are looked at.
    """
    quartile = torch.empty(len(residual), dtype=torch.float64)
    _lower_quartile(samples, *arrays(residual, seen > 0, quartile))
    return quartile


def tail_share(residual: Tensor, seen: Tensor, limit: Tensor) -> Tensor:
    """Return (B,) float64, the share of what is seen whose residual is beyond a limit; NaN where nothing is seen.

    Args:
        residual: (B, N) float32.
        seen: (B, N).
        limit: (B,) float64.
    """
    share = torch.empty(len(residual), dtype=torch.float64)
    _tail_share(*arrays(residual, seen > 0, limit, share))
    return share


def median(magnitude: Tensor) -> Tensor:
    """Return (B,) float64, the lower median of (B, N) float32, none of them negative or NaN."""
    found = torch.empty(len(magnitude), dtype=torch.float64)
    _median(*arrays(magnitude, found))
    return found


@compiled
def _median(magnitude: Floats, found: Doubles) -> None:
    for b in range(len(found)):
        bits = magnitude[b].view(np.uint32)
        found[b] = float(magnitude[b, _index_of_rank(bits, (bits.size - 1) // 2)])


@compiled
def _robust_scale(samples: int, residual: Floats, seen: Bools, scale: Doubles) -> None:
    for b in range(len(scale)):
        scale[b] = robust_scale_of(residual[b], seen[b], samples)


@compiled
def _tail_share(residual: Floats, seen: Bools, limit: Doubles, share: Doubles) -> None:
    for b in range(len(share)):
        share[b] = tail_share_of(residual[b], seen[b], limit[b])


@compiled
def tail_share_of(residual: Floats, seen: Bools, limit: float) -> float:
    """Return the share of one pair's residuals that are beyond a limit."""
    beyond, count, most = 0, 0, np.float32(limit)
    for k in range(residual.size):
        beyond += seen[k] & (abs(residual[k]) > most)
        count += seen[k]
    return beyond / count if count > 0 else np.nan


@compiled
def robust_scale_of(residual: Floats, seen: Bools, samples: int) -> float:
    """Return the scale of one pair."""
    sample = np.empty(residual.size // _stride(residual.size, samples) + 1, np.float32)
    count = _sample(residual, seen, samples, sample)
    if count == 0:
        return 0.0
    return 1.4826 * float(sample[_index_of_rank(sample[:count].view(np.uint32), (count - 1) // 2)])


@compiled
def _lower_quartile(samples: int, residual: Floats, seen: Bools, quartile: Doubles) -> None:
    sample = np.empty(residual.shape[1] // _stride(residual.shape[1], samples) + 1, np.float32)
    for b in range(len(quartile)):
        count = _sample(residual[b], seen[b], samples, sample)
        quartile[b] = np.nan
        if count > 0:
            quartile[b] = float(sample[_index_of_rank(sample[:count].view(np.uint32), (count - 1) // 4)])


@compiled
def _stride(size: int, samples: int) -> int:
    # An odd one does not fall in step with the rows of an image.
    return max(1, size // samples) | 1


@compiled
def _sample(residual: Floats, seen: Bools, samples: int, sample: Floats) -> int:
    """Write the magnitudes of some of what is seen, and return how many these are."""
    count = 0
    for k in range(0, residual.size, _stride(residual.size, samples)):
        sample[count] = abs(residual[k])
        count += seen[k]
    return count


@compiled
def _index_of_rank(bits: NDArray[np.uint32], rank: int) -> int:
    """Return where the positive float of a rank is, the least having 0; their order is that of their bits."""
    leading, above = np.uint32(0), np.uint32(32)
    histogram = np.empty(2048, np.int32)
    for shift in (np.uint32(21), np.uint32(10), np.uint32(0)):
        digits = above - shift
        for k in range(2048):
            histogram[k] = 0
        for k in range(bits.size):
            if (np.uint64(bits[k]) >> np.uint64(above)) == leading:
                histogram[(bits[k] >> shift) & ((np.uint32(1) << digits) - np.uint32(1))] += 1
        digit = 0
        while histogram[digit] <= rank:
            rank -= histogram[digit]
            digit += 1
        leading = (leading << digits) | np.uint32(digit)
        above = shift
    for k in range(bits.size):
        if bits[k] == leading:
            return k
    return 0
