"""What the solver's covariance of the corners does not know: where residuals are more than noise, or less.

B pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign.trust.parts import Parts

PARTS_SHARE = 0.3
"""How much of what the blocks leave open is added to the solver's covariance where residuals are more than noise. What
they would have is added too, as a bias: blur, JPEG and depth move an answer without a trace in the scatter of its
residuals, but not all blocks alike."""

OF_CODEC = 1.5
"""Of variances, where noise was told by what the alignment leaves: a codec's blocks lie alike in both images, and what
that does to an answer leaves no trace. Of the corners of 108 right pairs at JPEG qualities of 15 to 70, 92 % were
inside their 95 % ellipses without this, 95 % are with it."""

LEAST_UNEXPLAINED = 0.3
"""Residuals below this share of the noise say no more."""


def widen_by_parts(covariance: Tensor, parts: Parts, unexplained: Tensor, at_480: float) -> Tensor:
    """Add to (B, 4, 2, 2) corner covariances what residuals that are more than noise leave open."""
    no_noise = (1 - unexplained.square().reciprocal()).nan_to_num(0.0).clamp_min(0)[:, None, None, None]
    by_parts = parts.corner_covariance_480.nan_to_num(0.0) / at_480**2
    identity = torch.eye(2, dtype=covariance.dtype, device=covariance.device)
    bias = (parts.drift_480 / at_480).square()[:, None, None, None] / 2 * identity
    return covariance + no_noise * (PARTS_SHARE**2 * by_parts + bias)


def widen_of_flat(covariance: Tensor, unexplained: Tensor) -> Tensor:
    """Widen (B, 4, 2, 2) corner covariances to what residuals as large as the images' own noise would leave open.

    Where they are smaller, most are of paper, sky or what a codec has wiped flat, rounded alike in both images, and the
    few pixels that tell the motion have larger ones. Of 235 noise-free right pairs 87 % of the corners' errors were
    inside their 95 % ellipses without this, 93 % are with it.
    """
    smaller = unexplained.clamp(LEAST_UNEXPLAINED, 1).nan_to_num(1.0)
    return covariance / smaller.square()[:, None, None, None]


def widen_of_codec(covariance: Tensor, is_told_anew: Tensor) -> Tensor:
    """Widen (B, 4, 2, 2) corner covariances where the images' noise was told by what is left: (B,) bool."""
    return covariance * torch.where(is_told_anew, OF_CODEC, 1.0)[:, None, None, None]
