"""Pairs of which one image is blurrier: the full size solved again with the other one blurred alike.

B pairs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from homoalign import homography
from homoalign.descent.full_size import finish
from homoalign.differences.blur import blur_level, even_kernel
from homoalign.differences.refinement import spline_level
from homoalign.homography import image_size
from homoalign.levels.metrics import warp_onto
from homoalign.levels.noise import residual_noise
from homoalign.levels.sampling import inverse
from homoalign.optimisation.residual import Alignment, build_problem
from homoalign.optimisation.solver import cauchy
from homoalign.optimisation.track import Descent, Solved, Track

FURTHEST = 0.03
"""Of the shorter side: so far at most an answer may be moved."""

CLEARLY = 0.7
"""Share of the loss, or of the residual in units of its noise, that may be left: by less, a zoom that changes over the
frame passes for a blur."""

PROMISING = 0.97
"""Share of the loss that blurring alone may leave, before anything is solved again: where it leaves more, the images
differ by something else. Where an answer was kept in the end it had left at most 0.95 (218 answers of the
blur benchmark)."""

MOST_LEFT = 1.2
"""How many times its noise a residual may be, that of compression with it."""

MOSTLY = 1 / 3
"""Share of the loss that may be left where the residual is more than that, as where a blur changes over the frame."""


def solve_unlike_sharpness(track: Track, solved: Solved) -> Solved:
    """Solve pairs of unlike sharpness again, and keep what leaves less, where it does.

    Args:
        track: the pairs.
        solved: on intensities.
    """
    told = solved.blurrier.cpu()
    for blurrier in (1, -1):
        index = torch.nonzero(told == blurrier)[:, 0]
        if len(index) > 0:
            solved = _solve_blurred(track, solved, index.to(solved.blurrier.device), is_src=blurrier == 1)
    return solved


def _solve_blurred(track: Track, solved: Solved, index: Tensor, *, is_src: bool) -> Solved:
    """Solve the pairs that `index` names again with src, or else dst, blurred."""
    part = replace(track.select(index), start=solved.alignment.select(index), coarsest=0, is_near=True)
    kernel = _kernel_between(part, is_src=is_src)
    told = torch.nonzero(kernel.isfinite().flatten(1).all(-1))[:, 0]
    if len(told) == 0:
        return solved
    index, part = index[told], part.select(told)
    alike_part = _made_alike(part, kernel[told], is_src=is_src)
    noise_before = _noise(part)
    width = track.config.loss_width * noise_before
    before = _cost(part, part.start, width)
    promising = torch.nonzero(_cost(alike_part, part.start, width) < PROMISING * before)[:, 0]
    if len(promising) == 0:
        return solved
    index, part, alike_part = index[promising], part.select(promising), alike_part.select(promising)
    noise_before, width, before = noise_before[promising], width[promising], before[promising]
    none = torch.zeros(len(index), dtype=torch.int32, device=index.device)
    again = finish(alike_part, Descent(part.start, none, none.bool(), [[] for _ in index]))
    found, src_size, dst_size = again.alignment, image_size(part.src[0].image), image_size(part.dst[0].image)
    moved = homography.corner_errors(found.dst_homo_src, part.start.dst_homo_src, *src_size).mean(-1)
    left = _cost(alike_part, found, width) / before
    better = left < CLEARLY
    # Of another light the loss tells nothing; most of the residual, with that light fitted, may.
    shown = _noise(replace(alike_part, start=found))
    better |= again.fitted_scale / shown < CLEARLY * solved.fitted_scale[index] / noise_before
    # Relief blurs as well, but not by a kernel: what is left has the image in it, and is not heard as noise.
    noise = residual_noise(again.noise[:, 0], again.noise[:, 1], found.gain)
    better &= (again.fitted_scale < MOST_LEFT * noise) | (left < MOSTLY)
    better &= moved < FURTHEST * min(dst_size)
    chosen = torch.nonzero(better)[:, 0]
    index, again = index[chosen], again.select(chosen)
    return replace(
        solved.put(index, again),
        fitted_scale=solved.fitted_scale.index_copy(0, index, again.fitted_scale),
        noise=solved.noise.index_copy(0, index, again.noise.maximum(solved.noise[index])),  # a blur wipes it away
    )


def _kernel_between(part: Track, *, is_src: bool) -> Tensor:
    """Return (B, K, K) float64, the kernel by which src, or else dst, becomes as blurred as the other image."""
    src, dst, matrix = part.src[0], part.dst[0], part.start.dst_homo_src
    sharp, other, onto_sharp = (src, dst, inverse(matrix)) if is_src else (dst, src, matrix)
    warped, covered = warp_onto(other, onto_sharp, image_size(sharp.image), sharp.mask)
    return even_kernel(sharp.image, warped[:, None], covered[:, None].to(warped), sharp.noise)


def _made_alike(part: Track, kernel: Tensor, *, is_src: bool) -> Track:
    """Return the pairs with src, or else dst, blurred by (B, K, K) kernels."""
    if is_src:
        return replace(part, src=[blur_level(part.src[0], kernel), *part.src[1:]])
    return replace(part, dst=[blur_level(part.dst[0], kernel), *part.dst[1:]])


def _noise(track: Track) -> Tensor:
    """Return (B,) float64, of the residual at the start."""
    return residual_noise(track.src[0].noise, track.dst[0].noise, track.start.gain)


def _cost(track: Track, state: Alignment, width: Tensor) -> Tensor:
    """Return (B,) float64 mean loss of the full-size images, of `width` (B,)."""
    src, dst, config = track.src[0], track.dst[0], track.config
    problem = build_problem(src, dst, level=0, max_points=config.points_per_level, fit_photometric=False)
    residual, seen = replace(problem, dst=spline_level(dst), interpolation="spline").evaluate(state)
    cost = cauchy(residual, width)[0] * seen
    return cost.sum(-1, dtype=torch.float64) / seen.sum(-1, dtype=torch.float64)
