"""The blocks of a lossy codec: how large its errors are, told by the jumps where two of its blocks meet.

JPEG, and most video codecs, code blocks of eight by eight pixels on their own, so that one block's error knows nothing
of the next one's: across every eighth border neighbours differ by more than they do elsewhere (Wang, Sheikh and Bovik,
"No-reference perceptual quality assessment of JPEG compressed images", ICIP 2002).

B pairs, H W rows and columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIDE = 8
"""Pixels of a block."""

LEAST_BLOCKS = 4
"""Along either axis; of fewer no grid can be told."""

SAMPLES = 2**16
"""Pixels, about, that are looked at along either axis."""

LEAST_JUMP = 0.1
"""Of the mean difference of neighbours: so much more of it there is at the borders of blocks, at least..."""

OTHERS = 0.5
"""... and anywhere else no more than this share of that: else it is texture that repeats."""

TO_DEVIATION = math.sqrt(math.pi / 2) / math.sqrt(2)
"""From the mean size of a jump to the standard deviation of either side's error, if they are normal."""


def coding_noise(image: Tensor, index: Tensor) -> Tensor:
    """Return (b,) float64, the standard deviation of a codec's errors in its units; 0 where no grid of blocks shows.

    Args:
        image: (B, 1, H, W) float, as it was decoded: not resized since, though it may be cropped.
        index: (b,) int64, which are looked at.
    """
    step = max(1, image[0].numel() // SAMPLES)
    across, across_phase = _jumps(image[:, 0, ::step][index])
    down, down_phase = _jumps(image[:, 0, :, ::step].mT[index])
    has_grid = (across_phase >= 0) & (down_phase >= 0)
    return torch.where(has_grid, TO_DEVIATION * torch.minimum(across, down), 0.0)


def residual_coding_noise(src: Tensor, dst: Tensor, gain: Tensor, index: Tensor) -> Tensor:
    """Return (b,) float64, the standard deviation that the codecs of both sides give dst - gain * src.

    Args:
        src: (B, 1, H, W), see `coding_noise`.
        dst: likewise.
        gain: (B,).
        index: (b,) int64, which are looked at.
    """
    return torch.hypot(gain[index] * coding_noise(src, index), coding_noise(dst, index))


def _jumps(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B,) float64, the mean jump from column to column at the borders of blocks, and where these lie, or -1."""
    difference = image.diff(dim=-1).abs()
    beyond = difference[..., 1:-1] - 0.5 * (difference[..., :-2] + difference[..., 2:])
    of_column = beyond.double().mean(-2)
    count = of_column.shape[-1] // SIDE
    nothing = torch.zeros(len(image), dtype=torch.float64, device=image.device)
    if count < LEAST_BLOCKS:
        return nothing, nothing.long() - 1
    # A median of the columns: one edge of the scene, or of a frame around it, makes no grid.
    of_phase = of_column[:, : count * SIDE].view(-1, count, SIDE).median(1).values
    largest, phase = of_phase.topk(2)
    jump, other = largest.unbind(-1)
    is_grid = (jump > LEAST_JUMP * difference.double().mean((-2, -1))) & (other < OTHERS * jump)
    return jump, torch.where(is_grid, phase[:, 0], -1)
