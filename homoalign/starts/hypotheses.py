"""Several starts a pair, refined on the structure of ever finer levels; the bad ones are dropped on the way.

Every hypothesis is a row of one batch, whatever pair it belongs to. Where one image is a zoom of the other, levels of
about the same pitch are compared.

B pairs, K hypotheses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign import homography
from homoalign.config import AlignConfig
from homoalign.homography import image_size
from homoalign.levels.pyramid import Level
from homoalign.levels.zoom import match_levels, zoom_octave
from homoalign.optimisation.schedule import AFFINE, HOMOGRAPHY, MOTION_PARAMETERS, SIMILARITY, TRANSLATION
from homoalign.optimisation.structure_problem import LevelRefiner


@dataclass(frozen=True, slots=True)
class Stage:
    """One round of refining.

    Attributes:
        side_px: geometric mean of both images' sides at the levels that are used.
        keep: hypotheses a pair that are refined.
        max_points: about how many pixels of src they are refined on.
        motion: parameters of motion of each run of the solver.
        states: the runs after which each is a hypothesis of its own. On few pixels of little detail eight parameters
            may go astray where four do not.
    """

    side_px: int
    keep: int
    max_points: int
    motion: tuple[int, ...]
    states: tuple[int, ...]


STAGES = (
    Stage(64, 24, 4096, (SIMILARITY, AFFINE, HOMOGRAPHY, HOMOGRAPHY, HOMOGRAPHY), (0, 1, 4)),
    Stage(128, 6, 8192, (HOMOGRAPHY, HOMOGRAPHY), (1,)),
    Stage(256, 2, 16384, (HOMOGRAPHY, HOMOGRAPHY), (1,)),
)

UPRIGHT_STAGES = (Stage(256, 4, 16384, (TRANSLATION, SIMILARITY), (1,)),)
"""Of shifts that were told at that pitch: coarser levels may not show what a narrow overlap has in common."""

SAME_CORNERS = 0.04
"""Hypotheses whose corners differ by less than this share of dst's side, on average, are one."""


@dataclass(frozen=True, slots=True)
class Hypotheses:
    """Candidates for `dst_homo_src`, those of a pair in falling order of score.

    Attributes:
        pair: (K,) int64, whose.
        dst_homo_src: (K, 3, 3) float64, full-size pixels.
        score: (K,) float64, by which they are ranked: from `refine` on the correlation of structure times the square
            root of the overlap's share of the frame.
    """

    pair: Tensor
    dst_homo_src: Tensor
    score: Tensor

    def select(self, index: Tensor) -> Hypotheses:
        """Return those that `index` (int64) names."""
        return Hypotheses(self.pair[index], self.dst_homo_src[index], self.score[index])

    @staticmethod
    def none(device: torch.device) -> Hypotheses:
        """Return no hypotheses."""
        matrix = torch.empty(0, 3, 3, dtype=torch.float64, device=device)
        return Hypotheses(torch.empty(0, dtype=torch.int64, device=device), matrix, matrix[:, 0, 0])

    @staticmethod
    def concatenate(parts: Sequence[Hypotheses]) -> Hypotheses:
        """Return those of all parts, in their order; at least one part."""
        return Hypotheses(
            torch.cat([part.pair for part in parts]),
            torch.cat([part.dst_homo_src for part in parts]),
            torch.cat([part.score for part in parts]),
        )

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
        found = _refine_stage(src, dst, found, stage, config).best_first()
    return found


def _refine_stage(
    src: list[Level], dst: list[Level], found: Hypotheses, stage: Stage, config: AlignConfig
) -> Hypotheses:
    """Return what a stage makes of its hypotheses, in any order: one of each, or several where it is not sure."""
    octave = zoom_octave(found.dst_homo_src, image_size(src[0].image))
    states: list[Hypotheses] = []
    for zoom in sorted(set(octave.tolist())):
        chosen = torch.nonzero(octave == zoom)[:, 0]
        matched = match_levels(src, dst, zoom=zoom, side_px=stage.side_px)
        pair, state = found.pair[chosen], matched.from_full(found.dst_homo_src[chosen])
        level = LevelRefiner(src[matched.src_level], dst[matched.dst_level], pair, stage.max_points, config)
        for run, motion in enumerate(stage.motion):
            state, _ = level.refine(state, min(motion, MOTION_PARAMETERS[config.model]))
            if run in stage.states:
                states.append(Hypotheses(pair, matched.to_full(state), level.score(state, stage.side_px)))
    made = Hypotheses.concatenate(states)
    if len(stage.states) == 1:
        return made
    # More freedom always agrees better where it was fitted: the next stage's level is the judge.
    return replace(made, score=agreement(src, dst, made, side_px=2 * stage.side_px, config=config))


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
