"""Which levels of two pyramids show the scene at the same pitch, where one is a zoom, and enough of it in common.

K matrices, H W rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from homoalign import homography
from homoalign.homography import image_size
from homoalign.levels.pyramid import Level

LARGEST_OCTAVE = 3
"""Levels are matched for zooms of up to 2^3 either way."""


def zoom_octave(dst_homo_src: Tensor, src_size: tuple[int, int]) -> Tensor:
    """Return (K,) int64: the nearest power of two of how many dst pixels a src pixel is wide, at src's centre."""
    height, width = src_size
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2, 1], dtype=torch.float64, device=dst_homo_src.device)
    x, y, w = (dst_homo_src @ centre).unbind(-1)
    position = torch.stack([x, y], dim=-1)[..., None] / w[:, None, None]
    local = (dst_homo_src[:, :2, :2] - position * dst_homo_src[:, 2:, :2]) / w[:, None, None]
    octave = local.det().abs().log2() / 2
    return octave.nan_to_num(0.0, 0.0, 0.0).round().clamp(-LARGEST_OCTAVE, LARGEST_OCTAVE).long()


def coarsest_shared(
    dst_homo_src: Tensor, src_size: tuple[int, int], dst_size: tuple[int, int], *, min_side_px: int
) -> Tensor:
    """Return (K,) int64: the coarsest level of dst on which what both frames show has sides of `min_side_px`.

    On coarser ones a strip that two tiles share is too thin to say anything. Frames that share nothing, or meet the
    horizon, may lie anywhere: what dst's own size allows.
    """
    corners = homography.warp_points(dst_homo_src, homography.image_corners(*src_size, device=dst_homo_src.device))
    (right, bottom), (left, top) = corners.amax(1).unbind(-1), corners.amin(1).clamp_min(0).unbind(-1)
    shared = torch.minimum(right.clamp_max(dst_size[1] - 1) - left, bottom.clamp_max(dst_size[0] - 1) - top) + 1
    shared = torch.where(shared > 1, shared, min(dst_size))  # NaN: no
    # As `pyramid.num_levels` has it, whose halves are rounded up.
    return ((shared / (min_side_px - 1)).log2().ceil() - 1).clamp_min(0).long()


@dataclass(frozen=True, slots=True)
class MatchedLevels:
    """A level of src and one of dst whose pixels cover about the same."""

    src_level: int
    dst_level: int

    def from_full(self, dst_homo_src: Tensor) -> Tensor:
        """Return (K, 3, 3) between the levels, given those between the full-size images."""
        src_shrink, dst_shrink = self._shrinks(dst_homo_src)
        return homography.normalise(dst_shrink[:, None] * dst_homo_src / src_shrink)

    def to_full(self, dst_homo_src: Tensor) -> Tensor:
        """Undo `from_full`."""
        src_shrink, dst_shrink = self._shrinks(dst_homo_src)
        return homography.normalise(dst_homo_src / dst_shrink[:, None] * src_shrink)

    def _shrinks(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (3,) for src and for dst: what takes homogeneous full-size pixels to those of the level."""
        src, dst = (homography.shrink_to(level, like.dtype, like.device) for level in (self.src_level, self.dst_level))
        return src, dst


def match_levels(src: list[Level], dst: list[Level], *, zoom: int, side_px: int | None) -> MatchedLevels:
    """Choose levels of like pitch: dst's is `zoom` levels coarser than src's.

    Args:
        src: pyramid of the source images, full size first.
        dst: pyramid of the destination images.
        zoom: as from `zoom_octave`.
        side_px: geometric mean of both levels' sides that comes nearest; None: the finest levels.
    """
    src_side, dst_side = (math.sqrt(math.prod(image_size(pyramid[0].image))) for pyramid in (src, dst))
    level = 0 if side_px is None else round(math.log2(math.sqrt(src_side * dst_side / 2.0**zoom) / side_px))
    level = max(level, 0, -zoom)
    return MatchedLevels(min(level, len(src) - 1), min(level + zoom, len(dst) - 1))
