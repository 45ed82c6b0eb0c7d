"""Several starts a pair, refined on the structure of ever finer levels; the bad ones are dropped on the way.

Every hypothesis is a row of one batch, whatever pair it belongs to. Where one image is a zoom of the other, levels of
about the same pitch are compared.

B pairs, K hypotheses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from homoalign import homography
from homoalign.config import AlignConfig
from homoalign.homography import image_size
from homoalign.pyramid import Level
from homoalign.schedule import AFFINE, HOMOGRAPHY, MOTION_PARAMETERS, SIMILARITY
from homoalign.structure_problem import LevelRefiner
from homoalign.zoom import match_levels, zoom_octave


@dataclass(frozen=True, slots=True)
class Stage:
    """One round of refining.

    Attributes:
        side_px: geometric mean of both images' sides at the levels that are used.
        keep: hypotheses a pair that are refined.
        max_points: about how many pixels of src they are refined on.
        motion: parameters of motion of each run of the solver.
    """

    side_px: int
    keep: int
    max_points: int
    motion: tuple[int, ...]


STAGES = (
    Stage(64, 24, 4096, (SIMILARITY, AFFINE, HOMOGRAPHY, HOMOGRAPHY, HOMOGRAPHY)),
    Stage(128, 6, 8192, (HOMOGRAPHY, HOMOGRAPHY)),
    Stage(256, 2, 16384, (HOMOGRAPHY, HOMOGRAPHY)),
)

SAME_CORNERS = 0.04
"""Hypotheses whose corners differ by less than this share of dst's side, on average, are one."""


@dataclass(frozen=True, slots=True)
class Hypotheses:
    """Candidates for `dst_homo_src`, those of a pair in falling order of score.

    Attributes:
        pair: (K,) int64, whose.
        dst_homo_src: (K, 3, 3) float64, full-size pixels.
        score: (K,) float64: correlation of structure times the square root of the overlap's share of the frame.
    """

    pair: Tensor
    dst_homo_src: Tensor
    score: Tensor

    def select(self, index: Tensor) -> Hypotheses:
        """Return those that `index` (int64) names."""
        return Hypotheses(self.pair[index], self.dst_homo_src[index], self.score[index])

    def best_first(self) -> Hypotheses:
        """Return them sorted by pair, then by falling score."""
        by_score = self.score.argsort(descending=True, stable=True)
        return self.select(by_score[self.pair[by_score].argsort(stable=True)])


def refine(
    src: list[Level], dst: list[Level], start: Hypotheses, config: AlignConfig, stages: tuple[Stage, ...] = STAGES
) -> Hypotheses:
    """Refine and prune, stage by stage as far as the images go.

    Args:
        src: pyramid of the source images of B pairs, full size first.
        dst: pyramid of the destination images.
        start: at least one a pair.
        config: the loss's width.
        stages: coarse to fine.

    Returns:
        The survivors, best first; each pair has at least one.
    """
    sides = [math.sqrt(math.prod(image_size(pyramid[0].image))) for pyramid in (src, dst)]
    src_size = image_size(src[0].image)
    found = start.best_first()
    for number, stage in enumerate(stages):
        if number and stage.side_px > 1.3 * math.sqrt(sides[0] * sides[1]):
            break
        found = keep_distinct(found, src_size, tolerance_px=SAME_CORNERS * sides[1], keep=stage.keep)
        octave = zoom_octave(found.dst_homo_src, src_size)
        refined, score = found.dst_homo_src.clone(), found.score.clone()
        for zoom in sorted(set(octave.tolist())):
            chosen = torch.nonzero(octave == zoom)[:, 0]
            matched = match_levels(src, dst, zoom=zoom, side_px=stage.side_px)
            part = matched.from_full(found.dst_homo_src[chosen])
            levels = src[matched.src_level], dst[matched.dst_level]
            level = LevelRefiner(*levels, found.pair[chosen], stage.max_points, config)
            for motion in stage.motion:
                part, _ = level.refine(part, min(motion, MOTION_PARAMETERS[config.model]))
            refined[chosen], score[chosen] = matched.to_full(part), level.score(part, stage.side_px)
        found = Hypotheses(found.pair, refined, score).best_first()
    return found


def agreement(src: list[Level], dst: list[Level], found: Hypotheses, *, side_px: int, config: AlignConfig) -> Tensor:
    """Score hypotheses as they are, as `refine` scores them at a stage of this side.

    Returns:
        (K,) float64; -1 for matrices that are not finite or send a corner behind the horizon.
    """
    octave = zoom_octave(found.dst_homo_src, image_size(src[0].image))
    score = torch.full_like(found.score, -1.0)
    for zoom in sorted(set(octave.tolist())):
        chosen = torch.nonzero(octave == zoom)[:, 0]
        matched = match_levels(src, dst, zoom=zoom, side_px=side_px)
        level = LevelRefiner(src[matched.src_level], dst[matched.dst_level], found.pair[chosen], 1, config)
        score[chosen] = level.score(matched.from_full(found.dst_homo_src[chosen]), side_px)
    return score


def keep_distinct(found: Hypotheses, src_size: tuple[int, int], *, tolerance_px: float, keep: int) -> Hypotheses:
    """Return the first `keep` of each pair that differ from one another; `found` is sorted best first."""
    corners = homography.image_corners(*src_size, device=found.pair.device)
    places = homography.warp_points(found.dst_homo_src, corners.expand(len(found.pair), 4, 2)).nan_to_num(1e9)
    kept: list[int] = []
    for pair in sorted(set(found.pair.tolist())):
        rows = torch.nonzero(found.pair == pair)[:, 0]
        distance = (places[rows, None] - places[None, rows]).norm(dim=-1).mean(-1)  # (K, K)
        near = (distance < tolerance_px).cpu()
        chosen: list[int] = []
        for i in range(len(rows)):
            if len(chosen) < keep and not any(near[i, j] for j in chosen):
                chosen.append(i)
        kept += rows[chosen].tolist()
    return found.select(torch.tensor(kept, dtype=torch.int64, device=found.pair.device))
