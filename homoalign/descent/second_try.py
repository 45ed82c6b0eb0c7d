"""Pairs that structure solved, on intensities again: beside something in the way, or in another light.

On the way down from the coarsest level either leads intensities astray, a vignette over a smooth background as much as
a hand before the scene. Structure minds neither, but is less precise; from its answer both can be told.

B pairs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from homoalign import homography
from homoalign.descent.earned import is_unsupported
from homoalign.descent.full_size import finish
from homoalign.descent.structure_solver import MOST_LOSS, Yardstick
from homoalign.differences.clearing import NEARLY, look_beside
from homoalign.differences.explained import explained_share, explains_more
from homoalign.differences.leftover import hear
from homoalign.differences.photometry import apply_light, fit_light, has_contrast
from homoalign.homography import image_size
from homoalign.levels.noise import UNEXPLAINED, residual_noise
from homoalign.optimisation.residual import Alignment, build_problem
from homoalign.optimisation.solver import robust_scale
from homoalign.optimisation.track import Descent, Solved, Track

FURTHEST = 0.04
"""Of the shorter side: so far from structure's answer what intensities find may be, where it explains no more."""

MOST_LIT = 1.3
"""How many times its noise a residual may be once light explains it: rich light can pass for much that is none, so less
than `UNEXPLAINED`."""


def try_intensities(track: Track, solved: Solved) -> Solved:
    """Solve on intensities again what they did not explain, but do beside something in the way or in another light.

    Args:
        track: the pairs.
        solved: by intensities, and by structure where these left more than noise.
    """
    before = solved.alignment
    noise = residual_noise(track.src[0].noise, track.dst[0].noise, before.gain)
    known = before.dst_homo_src.isfinite().flatten(1).all(-1)
    index = torch.nonzero(~(solved.fitted_scale <= UNEXPLAINED * noise) & known)[:, 0]
    if len(index) == 0:
        return solved
    part = replace(track.select(index), start=before.select(index), coarsest=0, is_near=True)
    is_beside, beside = look_beside(part)
    is_lit = _light_may_explain(part) & ~is_beside
    for is_cover, chosen, state in ((True, is_beside, beside), (False, is_lit, part.start)):
        hopeful = torch.nonzero(chosen)[:, 0]
        if len(hopeful) > 0:
            there = state.select(hopeful)
            solved = _try(part.select(hopeful), index[hopeful], there, solved, is_beside=is_cover)
    return solved


def _light_may_explain(track: Track) -> Tensor:
    """Return (B,) bool, whether noise and rich light explain pairs where they start, near enough to try."""
    src, dst, config = track.src[0], track.dst[0], track.config
    if config.photometric != "auto":
        return torch.zeros_like(track.start.gain, dtype=torch.bool)
    problem = build_problem(src, dst, level=0, max_points=config.points_per_level, fit_photometric=True)
    noise = residual_noise(src.noise, dst.noise, track.start.gain)
    light, state = fit_light(problem, track.start, src_noise=src.noise, noise=noise, loss_width=config.loss_width)
    problem = replace(problem, template=apply_light(problem.template, light))
    scale = robust_scale(*problem.evaluate(state), problem.scale_floor)
    heard = hear(track, problem, state, light.is_rich, light.is_rich)
    heard_noise = residual_noise(heard.src[0].noise, heard.dst[0].noise, track.start.gain)
    is_explained = scale < NEARLY * UNEXPLAINED * heard_noise
    is_lit: Tensor = light.is_rich & has_contrast(src) & is_explained
    return is_lit


def _try(track: Track, index: Tensor, before: Alignment, solved: Solved, *, is_beside: bool) -> Solved:
    """Solve the full size on intensities, and keep what these explain now.

    Args:
        track: some of the pairs.
        index: (b,) int64, which of `solved` they are.
        before: where they start, gain and bias as what is in sight there has them.
        solved: of all pairs.
        is_beside: whether something is in their way; else it is the light.
    """
    none = torch.zeros(len(index), dtype=torch.int32, device=index.device)
    lit_first = torch.full_like(none, not is_beside, dtype=torch.bool)
    again = finish(track, Descent(track.start, none, lit_first, [[] for _ in index]), is_beside=is_beside)
    src, dst, found = track.src[0], track.dst[0], again.alignment
    moved = homography.corner_errors(found.dst_homo_src, track.start.dst_homo_src, *image_size(src.image)).mean(-1)
    share, share_before = (explained_share(track.src, track.dst, state) for state in (found, before))
    is_right = (moved < FURTHEST * min(image_size(dst.image))) | explains_more(share, share_before)
    most = UNEXPLAINED if is_beside else MOST_LIT
    is_right &= again.fitted_scale < most * residual_noise(again.noise[:, 0], again.noise[:, 1], found.gain)
    # What passes for noise may be texture that only one of the images has: then any answer explains it.
    yardstick = Yardstick(track)
    is_right &= yardstick.score(found.dst_homo_src) > yardstick.score(before.dst_homo_src) - MOST_LOSS
    chosen = torch.nonzero(is_right & ~is_unsupported(again.covariance, found.dst_homo_src, src, dst))[:, 0]
    index, again = index[chosen], again.select(chosen)
    return replace(
        solved.put(index, again),
        scale=solved.scale.index_copy(0, index, again.scale),
        fitted_scale=solved.fitted_scale.index_copy(0, index, again.fitted_scale),
        noise=solved.noise.index_copy(0, index, again.noise),
    )
