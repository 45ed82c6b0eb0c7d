"""The second solver: level by level on the images' structure, where intensities do not tell what is the same.

B pairs.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from homoalign import homography
from homoalign.homography import image_size
from homoalign.levels.noise import UNEXPLAINED, residual_noise
from homoalign.levels.zoom import match_levels
from homoalign.optimisation.precision import measure_precision
from homoalign.optimisation.residual import Alignment, DirectProblem, build_problem
from homoalign.optimisation.schedule import MOTION_PARAMETERS
from homoalign.optimisation.structure_problem import LevelRefiner, standing_still
from homoalign.optimisation.template import steep_points
from homoalign.optimisation.trace import LevelTrace
from homoalign.optimisation.track import Solved, Track, append_trace
from homoalign.status import StopReason

RUNS = 3
"""Times a level's structure is described anew."""

TOL_PX = 0.25
"""Structure is solved when the last run moves no corner further than this."""

FINEST_SIDE_PX = 512
"""The finest level has sides of at most this, in the geometric mean: beyond it structure gains nothing but noise."""

YARDSTICK_SIDE_PX = 256
"""Coarser levels are judged by how well the structure agrees on the level of about this side..."""

MOST_LOSS = 0.04
"""... and what it agrees less well by more is not taken: on few pixels of little detail, or in a light that explains
too much, the solver may go astray."""

MOST_LEFT = 1.3
"""Times what is left along edges that an answer on structure may leave. On no real pair is it above 1.15."""

FURTHEST = 0.03
"""Of the shorter side: structure may correct an answer on intensities by no more."""


def solve_unexplained(track: Track, solved: Solved) -> Solved:
    """Solve on structure the pairs whose intensities differ by more than noise, from where intensities end.

    Intensities are the more precise where they say the same of both images, and biased where they do not.
    """
    alignment = solved.alignment
    explained = residual_noise(track.src[0].noise, track.dst[0].noise, alignment.gain)
    index = torch.nonzero(solved.fitted_scale > UNEXPLAINED * explained)[:, 0]
    if len(index) == 0:
        return solved
    part = replace(track.select(index), start=alignment.select(index), coarsest=0, is_near=True)
    again = solve_structure(part)
    # The light that was fitted on intensities stays.
    light = Alignment(again.alignment.dst_homo_src, part.start.gain, part.start.bias)
    again = replace(again, alignment=light)
    size = image_size(track.src[0].image)
    moved = homography.corner_errors(again.alignment.dst_homo_src, part.start.dst_homo_src, *size).mean(-1)
    is_close = moved < FURTHEST * min(image_size(track.dst[0].image))
    close = torch.nonzero(is_close & ~_is_refuted(part, again.alignment.dst_homo_src))[:, 0]
    return solved.put(index[close], again.select(close))


def _is_refuted(track: Track, dst_homo_src: Tensor) -> Tensor:
    """Return (B,) bool, where intensities along edges say that answers are clearly worse than where they start.

    Unlike light, relief or another sensor leaves as much either way; but what structure takes for edges may be the
    grid of a codec's blocks or the stairs of sharp lines, and then it goes astray.
    """
    src, dst, config = track.src[0], track.dst[0], track.config
    problem = build_problem(src, dst, level=0, max_points=config.points_per_level, fit_photometric=True)
    found, before = (left_along_edges(problem, matrix) for matrix in (dst_homo_src, track.start.dst_homo_src))
    return found > MOST_LEFT * before


def left_along_edges(problem: DirectProblem, dst_homo_src: Tensor) -> Tensor:
    """Return (B,) float64, the mean size of the residual where src is steep, gain and bias such that moments match."""
    state = Alignment(dst_homo_src, *problem.matched_moments(dst_homo_src))
    residual, seen = problem.evaluate(state)
    is_steep = steep_points(problem.template, seen)
    return (residual.abs() * is_steep).sum(-1, dtype=torch.float64) / is_steep.sum(-1).clamp_min(1)


def solve_structure(track: Track) -> Solved:
    """Solve the levels from where structure is worth describing, for starts that are near.

    What a coarse level makes worse is left as it was.

    Structure has no photometric model: gain and bias are those that match the moments, where the config wants any.
    """
    config, matrix = track.config, track.start.dst_homo_src
    pair = torch.arange(len(matrix), device=matrix.device)
    total = torch.zeros(len(matrix), dtype=torch.int32, device=matrix.device)
    levels: list[list[LevelTrace]] = [[] for _ in range(len(matrix))]
    still = standing_still(matrix)
    finest = _finest_level(track)
    yardstick = Yardstick(track)
    score = yardstick.score(matrix)
    for level in range(max(track.coarsest, finest), finest - 1, -1):
        refiner = LevelRefiner(track.src[level], track.dst[level], pair, config.points_per_level, config)
        found, taken = homography.rescale(matrix, level), torch.zeros_like(total)
        for _ in range(RUNS):
            before, (found, steps) = found, refiner.refine(found, MOTION_PARAMETERS[config.model])
            taken += steps
        found, total = homography.rescale(found, -level), total + taken
        if level > yardstick.level:
            found_score = yardstick.score(found)
            is_astray = found_score < score - MOST_LOSS
            found = torch.where(is_astray[:, None, None], matrix, found)
            score = torch.where(is_astray, score, found_score)
        matrix = found
        append_trace(levels, track, level, Alignment(matrix, still.gain, still.bias), taken)
    found = homography.rescale(matrix, finest)
    size = image_size(track.src[finest].image)
    moved = homography.corner_errors(found, before, *size).amax(-1)
    stop = [StopReason.CONVERGED if px <= TOL_PX else StopReason.MAX_ITERATIONS for px in moved.tolist()]
    _, covariance = measure_precision(refiner.build_problem(found), still, config.loss_width)
    intensities = build_problem(
        track.src[0], track.dst[0], level=0, max_points=config.points_per_level, fit_photometric=False
    )
    alignment = Alignment(matrix, still.gain, still.bias)
    if config.photometric != "none":
        alignment = Alignment(matrix, *intensities.matched_moments(matrix))
    unknown = torch.full_like(alignment.gain, math.nan)
    return Solved(alignment, stop, total, unknown, unknown, covariance, levels, track.noise, torch.zeros_like(pair))


class Yardstick:
    """How well the structure of pairs agrees, on one level for all answers."""

    def __init__(self, track: Track) -> None:
        self.level = match_levels(track.src, track.dst, zoom=0, side_px=YARDSTICK_SIDE_PX).src_level
        src, dst = track.src[self.level], track.dst[self.level]
        pair = torch.arange(len(src.image), device=src.image.device)
        self._judge = LevelRefiner(src, dst, pair, 1, track.config)

    def score(self, dst_homo_src: Tensor) -> Tensor:
        """Return (B,) float64, `LevelRefiner.score` of (B, 3, 3) answers, full-size pixels."""
        return self._judge.score(homography.rescale(dst_homo_src, self.level), YARDSTICK_SIDE_PX)


def _finest_level(track: Track) -> int:
    for level, (src, dst) in enumerate(zip(track.src, track.dst, strict=True)):
        if math.prod(image_size(src.image)) * math.prod(image_size(dst.image)) <= FINEST_SIDE_PX**4:
            return level
    return len(track.src) - 1
