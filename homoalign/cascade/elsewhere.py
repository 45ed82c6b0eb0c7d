"""Answers as they would lie elsewhere: shifted to where their patterns correlate too, and refined there.

Under perspective a repeated texture lies on its next course only once the motion follows: a shift alone tells little.

B pairs, K hypotheses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign import homography
from homoalign.cascade.rivals import correlation_by_shift, correlation_in_scene, other_peaks, shifts
from homoalign.config import AlignConfig
from homoalign.homography import image_size
from homoalign.levels.patterns import local_patterns
from homoalign.levels.pyramid import Level
from homoalign.levels.sampling import inverse
from homoalign.levels.zoom import match_levels, zoom_octave
from homoalign.optimisation.residual import Alignment, build_problem
from homoalign.optimisation.schedule import HOMOGRAPHY, MOTION_PARAMETERS, SIMILARITY, Run, solve_run
from homoalign.starts.hypotheses import Hypotheses
from homoalign.trust import verdict

SIDE_PX = 80
"""Shifted answers are refined on levels whose sides come nearest to this, as `match_levels` measures them."""

MAX_POINTS = 4096
"""About how many of their pixels they are refined on."""


def shift_answers(
    src: list[Level], dst: list[Level], answer: Tensor, keep: int, is_template: Tensor | None = None
) -> Hypotheses:
    """Return the answers with src shifted to where its patterns correlate best elsewhere.

    Args:
        src: pyramid of the source images, full size first.
        dst: pyramid of the destination images.
        answer: (B, 3, 3) float64, full-size pixels, finite.
        keep: how many shifts a pair, at most.
        is_template: (B,) bool, whose src may lie anywhere in dst; that of others, and of all where None, by up to half
            a frame away.

    Returns:
        Hypotheses with that correlation as their score; none of a pair that has no other peak.
    """
    octave = zoom_octave(answer, image_size(src[0].image))
    is_free = torch.zeros_like(octave, dtype=torch.bool) if is_template is None else is_template.to(octave.device)
    found = []
    for zoom, anywhere in sorted(set(zip(octave.tolist(), is_free.tolist(), strict=True))):
        chosen = torch.nonzero((octave == zoom) & (is_free == anywhere))[:, 0]
        matched = match_levels(src, dst, zoom=zoom, side_px=verdict.LOCAL_LEVEL_SIDE_PX)
        level = matched.from_full(answer[chosen])
        images = src[matched.src_level].select(chosen), dst[matched.dst_level].select(chosen)
        patterns = local_patterns(*images, level)
        height, width = image_size(patterns.src)
        if anywhere:
            peaks, _ = other_peaks(*correlation_in_scene(*images, level), (height, width))
        else:
            peaks, _ = other_peaks(*correlation_by_shift(patterns), (height // 2, width // 2))
        score, place = peaks.flatten(1).topk(keep)
        pair, rank = torch.nonzero(score > 0, as_tuple=True)
        place, (rows, columns) = place[pair, rank], peaks.shape[1:]
        x, y = shifts(columns, place.device)[place % columns], shifts(rows, place.device)[place // columns]
        shifted = _move_src(level, _centre(patterns.counted), pair, torch.stack([x, y], dim=-1).to(level))
        there = torch.nonzero(shifted.isfinite().flatten(1).all(-1))[:, 0]
        found.append(Hypotheses(chosen[pair], matched.to_full(shifted), score[pair, rank].double()).select(there))
    return Hypotheses.concatenate(found)


def _centre(counted: Tensor) -> Tensor:
    """Return (B, 2) float64, the mean x and y of what (B, H, W) bool `counted` names; NaN where that is nothing."""
    x, y = (torch.arange(side, dtype=torch.float64, device=counted.device) for side in reversed(counted.shape[1:]))
    of_columns, of_rows = counted.sum(1).double(), counted.sum(2).double()
    return torch.stack([(of_columns * x).sum(-1), (of_rows * y).sum(-1)], dim=-1) / of_rows.sum(-1, keepdim=True)


def _move_src(answer: Tensor, centre: Tensor, pair: Tensor, shift: Tensor) -> Tensor:
    """Return (K, 3, 3) answers after a shift of src: beside a prior, that is all a lower model may do.

    Args:
        answer: (B, 3, 3).
        centre: (B, 2), of what both images show, in dst.
        pair: (K,) int64, whose answer.
        shift: (K, 2), by how much that centre moves in dst.
    """
    here = centre[pair]
    places = homography.warp_points(inverse(answer)[pair], torch.stack([here, here + shift], dim=1))  # (K, 2, 2)
    move = torch.eye(3, dtype=answer.dtype, device=answer.device).repeat(len(pair), 1, 1)
    move[:, :2, 2] = places[:, 1] - places[:, 0]
    return answer[pair] @ move


def refine_shifted(src: list[Level], dst: list[Level], shifted: Hypotheses, config: AlignConfig) -> Hypotheses:
    """Solve for the motion from where answers were shifted to, on intensities of a coarse level.

    Args:
        src: pyramid of the source images, full size first.
        dst: pyramid of the destination images.
        shifted: of `shift_answers`.
        config: the model of motion, the light, the loss and the steps.

    Returns:
        As many hypotheses, by pair, with the scores they came with.
    """
    octave = zoom_octave(shifted.dst_homo_src, image_size(src[0].image))
    found = []
    for zoom in sorted(set(octave.tolist())):
        part = shifted.select(torch.nonzero(octave == zoom)[:, 0])
        matched = match_levels(src, dst, zoom=zoom, side_px=SIDE_PX)
        fit = config.photometric != "none"
        problem = build_problem(
            src[matched.src_level].select(part.pair),
            dst[matched.dst_level].select(part.pair),
            level=0,  # the levels' own pixels
            max_points=MAX_POINTS,
            fit_photometric=fit,
        )
        matrix, one = matched.from_full(part.dst_homo_src), torch.ones_like(part.score)
        state = Alignment(matrix, *(problem.matched_moments(matrix) if fit else (one, torch.zeros_like(one))))
        for motion in (SIMILARITY, HOMOGRAPHY):
            run = Run(1, min(motion, MOTION_PARAMETERS[config.model]), config.coarse_step_tol_px)
            state = solve_run(problem, state, run, config).state
        found.append(Hypotheses(part.pair, matched.to_full(state.dst_homo_src), part.score))
    return Hypotheses.concatenate(found).best_first()
