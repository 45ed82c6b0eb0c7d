"""Where this project comes from: kornia's tutorial "Image Alignment by Homography Optimization".

Adam on the 3x3 matrix in normalised coordinates, L1 over the pixels whose warped mask of ones exceeds 0.9, from the
coarsest level of a Gaussian pyramid (`kornia.geometry.pyrdown`) to the finest. `pyrdown` keeps the image's outline,
not its corner pixels' centres, so normalised coordinates are those of the outline (`align_corners=False`) throughout:
one matrix then means the same motion at every level.

B pairs, C channels, H W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from homoalign import homography
from homoalign.levels.intensity import to_unit_range
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment
from homoalign.optimisation.trace import LevelTrace, append_level
from homoalign.optimisation.track import Solved, Track
from homoalign.status import StopReason


@dataclass(frozen=True, slots=True)
class AdamLevel:
    """One finished level.

    Attributes:
        level: 0 is full size.
        src: (B, C, H, W) source images of this level.
        dst: (B, C, H, W) destination images of this level.
        dst_homo_src: (B, 3, 3) float64, of the full-size images.
        level_homo_full_src: (3, 3) float64, full-size src pixels to this level's.
        level_homo_full_dst: (3, 3) float64, full-size dst pixels to this level's.
        num_iterations: steps taken at this level.
    """

    level: int
    src: Tensor
    dst: Tensor
    dst_homo_src: Tensor
    level_homo_full_src: Tensor
    level_homo_full_dst: Tensor
    num_iterations: int


def unit_from_pixels(height: int, width: int, *, device: torch.device) -> Tensor:
    """Return (3, 3) float64: pixels to [-1, 1] from outline to outline."""
    return torch.tensor(
        [[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]],
        dtype=torch.float64,
        device=device,
    )


def adam_levels(
    src: Tensor, dst: Tensor, dst_homo_src_init: Tensor, *, levels: int, steps: int, learning_rate: float
) -> Iterator[AdamLevel]:
    """Run the tutorial, yielding after every level, coarse to fine.

    Args:
        src: (B, C, h, w) float32.
        dst: (B, C, H, W) float32, as many channels.
        dst_homo_src_init: (B, 3, 3) float64 start, full-size pixels.
        levels: pyramid levels; fewer where a side would fall below two pixels.
        steps: Adam steps a level.
        learning_rate: of Adam.
    """
    from kornia.geometry.transform import pyrdown

    pyramid = [(src, dst)]
    while len(pyramid) < levels and min(min(image.shape[-2:]) for image in pyramid[-1]) >= 4:
        pyramid.append((pyrdown(pyramid[-1][0]), pyrdown(pyramid[-1][1])))

    full_src = unit_from_pixels(*src.shape[-2:], device=src.device)
    full_dst = unit_from_pixels(*dst.shape[-2:], device=dst.device)
    start = full_dst @ dst_homo_src_init @ torch.linalg.inv(full_src)
    matrix = homography.normalise(start).float().clone().requires_grad_()
    for level in range(len(pyramid) - 1, -1, -1):
        level_src, level_dst = pyramid[level]
        optimizer = torch.optim.Adam([matrix], lr=learning_rate)
        with torch.enable_grad():
            for _ in range(steps):
                optimizer.zero_grad()
                tutorial_loss(level_src, level_dst, matrix).sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        found = homography.normalise(matrix.detach().double())
        yield AdamLevel(
            level=level,
            src=level_src,
            dst=level_dst,
            dst_homo_src=homography.normalise(torch.linalg.inv(full_dst) @ found @ full_src),
            level_homo_full_src=_level_from_full(level_src, full_src),
            level_homo_full_dst=_level_from_full(level_dst, full_dst),
            num_iterations=steps,
        )


def tutorial_loss(src: Tensor, dst: Tensor, dst_homo_src: Tensor) -> Tensor:
    """Return (B,) mean absolute difference of src warped onto dst, where a warped image of ones exceeds 0.9.

    Args:
        src: (B, C, h, w) float32.
        dst: (B, C, H, W) float32.
        dst_homo_src: (B, 3, 3) float32, normalised coordinates.
    """
    height, width = dst.shape[-2:]
    src_homo_dst = torch.linalg.inv_ex(dst_homo_src / dst_homo_src[:, 2:, 2:]).inverse
    x = (2 * torch.arange(width, device=dst.device, dtype=dst.dtype) + 1) / width - 1
    y = (2 * torch.arange(height, device=dst.device, dtype=dst.dtype) + 1) / height - 1
    xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(1, -1, 2).expand(len(dst), -1, -1)
    # Not `warp_points`: a NaN behind the horizon would spoil the gradient of every other pixel.
    xyw = torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1) @ src_homo_dst.mT
    in_front = xyw[..., 2:] > 1e-6
    grid = torch.where(in_front, xyw[..., :2] / torch.where(in_front, xyw[..., 2:], 1.0), 2.0)
    grid = grid.view(len(dst), height, width, 2)
    warped = grid_sample(src, grid, align_corners=False)
    ones = grid_sample(torch.ones_like(src[:, :1]), grid.detach(), align_corners=False)
    counted = (ones > 0.9).expand_as(warped)
    total = torch.where(counted, (warped - dst).abs(), 0.0).flatten(1).sum(-1)
    return total / counted.flatten(1).sum(-1).clamp_min(1)


def _level_from_full(level_image: Tensor, unit_from_full: Tensor) -> Tensor:
    unit_from_level = unit_from_pixels(*level_image.shape[-2:], device=level_image.device)
    level_from_unit: Tensor = torch.linalg.inv(unit_from_level)
    return level_from_unit @ unit_from_full


@torch.inference_mode(False)
@torch.no_grad()
def solve_tutorial(track: Track) -> Solved:
    """Run kornia's tutorial on all channels; masks are not used, as it knows none."""
    config = track.config
    src, dst = track.src[0].image, track.dst[0].image
    if track.pairs.src.shape[1] == track.pairs.dst.shape[1]:
        pairs = track.pairs
        src, dst = to_unit_range(pairs.src, pairs.src_mask)[0], to_unit_range(pairs.dst, pairs.dst_mask)[0]
    src, dst = src.clone(), dst.clone()  # what inference made cannot be differentiated through
    batch = len(src)
    levels: list[list[LevelTrace]] = [[] for _ in range(batch)]
    total = torch.zeros(batch, dtype=torch.int32, device=src.device)
    dst_homo_src = track.start.dst_homo_src
    for done in adam_levels(
        src,
        dst,
        dst_homo_src,
        levels=config.adam_levels,
        steps=config.adam_steps,
        learning_rate=config.adam_learning_rate,
    ):
        dst_homo_src = done.dst_homo_src
        total += done.num_iterations
        if track.trace:
            full_src = torch.linalg.inv(done.level_homo_full_src)
            matrix = done.level_homo_full_dst @ dst_homo_src @ full_src
            truth = None if track.gt is None else done.level_homo_full_dst @ track.gt @ full_src
            taken = torch.full_like(total, done.num_iterations)
            append_level(levels, done.level, Level(done.src, None), Level(done.dst, None), matrix, truth, taken)
    nan = torch.full((batch,), math.nan, dtype=torch.float64, device=src.device)
    return Solved(
        alignment=Alignment(dst_homo_src, torch.ones_like(nan), torch.zeros_like(nan)),
        stop_reason=[StopReason.MAX_ITERATIONS] * batch,
        num_iterations=total,
        scale=nan,
        fitted_scale=nan,
        covariance=nan[:, None, None].expand(-1, 8, 8),
        levels=levels,
        noise=track.noise,
        blurrier=torch.zeros(batch, dtype=torch.int64, device=src.device),
    )
