"""Points that dst shows cut off, as `saturation.py` has them.

B pairs, N points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign.kernels.compiler import Bools, Floats, arrays, compiled


def not_cut_off(told: Tensor, usable: Tensor, light: Tensor, ends: Tensor, least_left: float) -> Tensor:
    """Do what `saturation.Saturation.shows` does.

    Args:
        told: (B, N) float32.
        usable: (B, N) bool.
        light: (B, 2) float32, gain and bias.
        ends: (B, 4) float32: white of dst and src, black of dst and src.
        least_left: share of the usable points.

    Returns:
        (B, N) bool.
    """
    shown = torch.empty(told.shape, dtype=torch.bool)
    _not_cut_off(least_left, *arrays(told, usable, light, ends, shown))
    return shown


@compiled
def _not_cut_off(least_left: float, told: Floats, usable: Bools, light: Floats, ends: Floats, shown: Bools) -> None:
    for b in range(len(told)):
        gain, bias = light[b]
        white, src_white, black, src_black = ends[b]
        values, counted, of_pair = told[b], usable[b], shown[b]
        num_usable = num_left = 0
        for k in range(values.size):
            value = values[k]
            expected = gain * value + bias
            is_white = (expected >= white) & (value <= src_white)
            is_black = (expected <= black) & (value >= src_black)
            of_pair[k] = not (is_white | is_black)
            num_usable += counted[k]
            num_left += of_pair[k] & counted[k]
        if num_left < least_left * num_usable:
            of_pair[:] = True
