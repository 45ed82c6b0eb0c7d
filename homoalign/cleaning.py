"""Pairs are not solved as they were recorded where that shows what is not the scene.

    holes of masks filled -> stripes taken away -> few gray levels smoothed -> noise made even -> pyramids -> cascade

Figures of intensities are told of what was recorded. Whose the stripes are, a sensor's or the scene's, motion tells:
where the lines go along with it, they are the scene's, and stay.

B pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign.arguments import Pairs
from homoalign.backward import measure_backward
from homoalign.cascade.attempt import Batch
from homoalign.cascade.cascade import run_cascade
from homoalign.config import AlignConfig
from homoalign.homography import corner_errors, image_size
from homoalign.levels.holes import fill_small_holes
from homoalign.levels.metrics import measure_fit
from homoalign.levels.pyramid import Level, build_pyramid, num_levels
from homoalign.levels.quantised import smooth_quantised
from homoalign.levels.stabilise import stabilise
from homoalign.levels.stripes import move_along, spread, take_stripes_away
from homoalign.optimisation.residual import build_problem
from homoalign.result import AlignResult
from homoalign.status import Initialisation, Status

SAME_PX, SAME_STD = 1.0, 3.0
"""Answers are about the same up to so many pixels, and so many times the error that is predicted, at the corners."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """Pairs that can be aligned, as they came.

    Attributes:
        pairs: the images and the truth.
        src: full-size gray source images.
        dst: full-size gray destination images.
        start: (B, 3, 3) float64, full-size pixels.
        initialisation: where each start came from.
        config: what changes the answer.
        trace: whether `levels` is wanted.
    """

    pairs: Pairs
    src: Level
    dst: Level
    start: Tensor
    initialisation: list[Initialisation]
    config: AlignConfig
    trace: bool

    def select(self, index: Tensor) -> Recorded:
        """Return the pairs that `index` (int64, on the CPU) names."""
        here = index.to(self.start.device)
        return replace(
            self,
            pairs=self.pairs.select(index),
            src=self.src.select(here),
            dst=self.dst.select(here),
            start=self.start[here],
            initialisation=[self.initialisation[i] for i in index.tolist()],
        )


def align_recorded(recorded: Recorded) -> AlignResult:
    """Solve and judge pairs, cleaned of what is not the scene; the tutorial takes them as they are."""
    src, dst = recorded.src, recorded.dst
    if recorded.config.solver == "adam":
        return _solve(recorded, src, dst, torch.zeros(len(src.image), dtype=torch.bool))
    src, dst = fill_small_holes(src), fill_small_holes(dst)
    recorded = replace(recorded, src=src, dst=dst)
    freed_src, freed_dst, strength = take_stripes_away(src, dst)
    is_freed = strength.amax(-1) > 0
    result = _clean_and_solve(recorded, freed_src, freed_dst, is_freed)
    striped = torch.nonzero(is_freed)[:, 0]
    if len(striped) == 0:
        return result
    kept = striped[_are_the_scenes(recorded.select(striped), strength[striped], result.select(striped))]
    return result if len(kept) == 0 else result.put(kept, _solve_with_stripes(recorded.select(kept)))


def _are_the_scenes(recorded: Recorded, strength: Tensor, freed: AlignResult) -> Tensor:
    """Say whose the stripes of pairs are.

    Args:
        recorded: pairs that are striped.
        strength: (B, 2) as `take_stripes_away` has it.
        freed: their answers without stripes.

    Returns:
        (B,) bool on the CPU: they go along with the motion that is found with them, without a search. Lines of even
        distance go along with many motions: an answer without them that can be trusted has to be about the same.
    """
    near = replace(recorded, config=replace(recorded.config, use_search=False, use_features=False))
    found = _solve_with_stripes(near)
    left = spread(near.dst) * (1 - found.zncc.square()).clamp_min(0).sqrt()
    size = image_size(near.src.image)
    apart_px = corner_errors(found.dst_homo_src, freed.dst_homo_src, *size).mean(-1)
    is_doubted = torch.tensor([status is not Status.OK for status in freed.status])
    is_same = apart_px <= SAME_PX + SAME_STD * freed.corner_std_px
    return move_along(strength, left, found.dst_homo_src, size) & (is_doubted | is_same)


def _solve_with_stripes(recorded: Recorded) -> AlignResult:
    return _clean_and_solve(recorded, recorded.src, recorded.dst, torch.zeros(len(recorded.start), dtype=torch.bool))


def _clean_and_solve(recorded: Recorded, src: Level, dst: Level, is_new: Tensor) -> AlignResult:
    """Smooth few gray levels, make noise even, and solve; where `is_new` images are others than were recorded."""
    src, dst, is_smoothed = smooth_quantised(src, dst)
    src, dst, is_bent = stabilise(src, dst)
    return _solve(recorded, src, dst, is_new | is_smoothed | is_bent)


def _solve(recorded: Recorded, src: Level, dst: Level, is_new: Tensor) -> AlignResult:
    """Run the cascade on images, and tell figures of intensities of those that were recorded."""
    config = recorded.config
    count = num_levels(
        [image_size(src.image), image_size(dst.image)],
        min_side_px=config.min_level_side_px,
        max_levels=config.max_levels,
    )
    batch = Batch(
        pairs=recorded.pairs,
        src=build_pyramid(src, count),
        dst=build_pyramid(dst, count),
        config=config,
        trace=recorded.trace,
    )
    found = run_cascade(batch, recorded.start, recorded.initialisation)
    if config.forward_backward:
        found = replace(found, forward_backward_px=measure_backward(batch, found))
    return _as_recorded(found, recorded.src, recorded.dst, is_new, config)


def _as_recorded(result: AlignResult, src: Level, dst: Level, is_new: Tensor, config: AlignConfig) -> AlignResult:
    """Tell figures of intensities anew, of the images as they were recorded, where `is_new`."""
    index = torch.nonzero(is_new)[:, 0]
    if len(index) == 0:
        return result
    here = index.to(src.image.device)
    src, dst, part = src.select(here), dst.select(here), result.select(index)
    matrix = part.dst_homo_src.to(src.image.device)
    gain, bias = torch.ones_like(matrix[:, 0, 0]), torch.zeros_like(matrix[:, 0, 0])
    if config.photometric != "none":
        gain, bias = _matched_light(src, dst, matrix, config)
    fit = measure_fit(src, dst, matrix, gain=gain, bias=bias, loss_width=torch.ones_like(gain))
    gain, bias, l1, zncc = torch.stack([gain, bias, fit.photometric_l1, fit.zncc]).cpu()
    return result.put(index, replace(part, gain=gain, bias=bias, photometric_l1=l1, zncc=zncc))


def _matched_light(src: Level, dst: Level, matrix: Tensor, config: AlignConfig) -> tuple[Tensor, Tensor]:
    """Return gain and bias, (B,) float64, at (B, 3, 3) answers; NaN where there is none.

    They are told on the finest level on which all pixels can be points: its noise is little, and chooses none of them.
    """
    sizes = image_size(src.image), image_size(dst.image)
    count = num_levels(list(sizes), min_side_px=config.min_level_side_px, max_levels=config.max_levels)
    pixels = math.prod(sizes[0])
    level = next((i for i in range(1, count) if pixels >> 2 * i <= config.points_per_level), count - 1)
    some_src, some_dst = (build_pyramid(image, level + 1)[level] for image in (src, dst))
    points = math.prod(image_size(some_src.image))
    problem = build_problem(some_src, some_dst, level=level, max_points=points, fit_photometric=True)
    gain, bias = problem.matched_moments(matrix)
    known = matrix.isfinite().flatten(1).all(-1)
    return torch.where(known, gain, torch.nan), torch.where(known, bias, torch.nan)
