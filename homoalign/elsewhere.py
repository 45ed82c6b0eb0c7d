"""Answers as they would lie elsewhere: shifted to where their patterns correlate too, and refined there.

Under perspective a repeated texture lies on its next course only once the motion follows: a shift alone tells little.

B pairs, K hypotheses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign import rivals, verdict
from homoalign.config import AlignConfig
from homoalign.homography import image_size
from homoalign.hypotheses import Hypotheses
from homoalign.metrics import local_patterns
from homoalign.pyramid import Level
from homoalign.residual import Alignment, build_problem
from homoalign.schedule import HOMOGRAPHY, MOTION_PARAMETERS, SIMILARITY, Run, solve_run
from homoalign.zoom import match_levels, zoom_octave

SIDE_PX = 80
"""Shifted answers are refined on the level whose shorter side is nearest to this."""

MAX_POINTS = 4096


def shift_answers(src: list[Level], dst: list[Level], answer: Tensor, keep: int) -> Hypotheses:
    """Return the answers shifted to where their patterns correlate best elsewhere.

    Args:
        src: pyramid of the source images, full size first.
        dst: pyramid of the destination images.
        answer: (B, 3, 3) float64, full-size pixels, finite.
        keep: how many shifts a pair, at most.

    Returns:
        Hypotheses with that correlation as their score; none of a pair that has no other peak.
    """
    octave = zoom_octave(answer, image_size(src[0].image))
    found = []
    for zoom in sorted(set(octave.tolist())):
        chosen = torch.nonzero(octave == zoom)[:, 0]
        matched = match_levels(src, dst, zoom=zoom, side_px=verdict.LOCAL_LEVEL_SIDE_PX)
        level = matched.from_full(answer[chosen])
        patterns = local_patterns(src[matched.src_level].select(chosen), dst[matched.dst_level].select(chosen), level)
        height, width = image_size(patterns.src)
        peaks, _ = rivals.other_peaks(*rivals.correlation_by_shift(patterns), (height // 2, width // 2))
        score, place = peaks.flatten(1).topk(keep)
        pair, rank = torch.nonzero(score > 0, as_tuple=True)
        place = place[pair, rank]
        shift = torch.eye(3, dtype=answer.dtype, device=answer.device).repeat(len(pair), 1, 1)
        shift[:, 0, 2] = rivals.shifts(peaks.shape[2], peaks.device)[place % peaks.shape[2]].to(shift)
        shift[:, 1, 2] = rivals.shifts(peaks.shape[1], peaks.device)[place // peaks.shape[2]].to(shift)
        shifted = matched.to_full(shift @ level[pair])
        found.append(Hypotheses(chosen[pair], shifted, score[pair, rank].double()))
    return Hypotheses.concatenate(found)


def refine_shifted(src: list[Level], dst: list[Level], shifted: Hypotheses, config: AlignConfig) -> Hypotheses:
    """Solve for the motion from where answers were shifted to, on intensities of a coarse level.

    Args:
        src: pyramid of the source images, full size first.
        dst: pyramid of the destination images.
        shifted: of `shift_answers`.
        config: the model of motion, and the loss.

    Returns:
        As many hypotheses, by pair, with the scores they came with.
    """
    octave = zoom_octave(shifted.dst_homo_src, image_size(src[0].image))
    found = []
    for zoom in sorted(set(octave.tolist())):
        part = shifted.select(torch.nonzero(octave == zoom)[:, 0])
        matched = match_levels(src, dst, zoom=zoom, side_px=SIDE_PX)
        problem = build_problem(
            src[matched.src_level].select(part.pair),
            dst[matched.dst_level].select(part.pair),
            level=0,  # the levels' own pixels
            max_points=MAX_POINTS,
            fit_photometric=config.photometric != "none",
        )
        matrix = matched.from_full(part.dst_homo_src)
        state = Alignment(matrix, *problem.matched_moments(matrix))
        for motion in (SIMILARITY, HOMOGRAPHY):
            run = Run(1, min(motion, MOTION_PARAMETERS[config.model]), config.coarse_step_tol_px)
            state = solve_run(problem, state, run, config).state
        found.append(Hypotheses(part.pair, matched.to_full(state.dst_homo_src), part.score))
    return Hypotheses.concatenate(found).best_first()
