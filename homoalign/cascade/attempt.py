"""One attempt at a batch of pairs: from a start through the solver to metrics and verdict.

B pairs, H W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from homoalign import homography
from homoalign.arguments import Pairs
from homoalign.cascade import rivals
from homoalign.config import AlignConfig
from homoalign.descent.coarse_to_fine import solve_gauss_newton
from homoalign.descent.second_try import try_intensities
from homoalign.descent.structure_solver import solve_structure, solve_unexplained
from homoalign.descent.tutorial import solve_tutorial
from homoalign.descent.unlike_sharpness import solve_unlike_sharpness
from homoalign.homography import image_size
from homoalign.levels import metrics
from homoalign.levels.intensity import to_unit_range
from homoalign.levels.noise import residual_noise
from homoalign.levels.patterns import local_correlation, local_patterns
from homoalign.levels.pyramid import Level, noise_gain
from homoalign.levels.zoom import MatchedLevels, coarsest_shared, match_levels, zoom_octave
from homoalign.optimisation.precision import corner_covariance, corner_std
from homoalign.optimisation.residual import Alignment
from homoalign.optimisation.schedule import MOTION_PARAMETERS
from homoalign.optimisation.track import Solved, Track
from homoalign.result import AlignResult
from homoalign.starts.hypotheses import Hypotheses, agreement
from homoalign.status import Initialisation
from homoalign.trust import verdict
from homoalign.trust.evidence import UNDETERMINED_480, Evidence
from homoalign.trust.footprint import LEAST_SIDE_PX, is_template, measure_in_footprint
from homoalign.trust.goodness import needs_structure
from homoalign.trust.parts import measure_parts
from homoalign.trust.widening import widen_by_parts, widen_of_codec, widen_of_flat
from homoalign.trust.witnesses import ask_witnesses, is_plain, is_plain_strip, look_closer

SCORE_SIDE_PX = 256
"""The structure of two answers is compared on levels of about this side."""

MOST_SCENE_PIXELS = 2**20
"""Rivals of a template are sought on the first level of dst that has no more pixels; not at all where too few are left
of a tile there."""

Signal = Literal["intensity", "structure"]

NEAR_SIDE_PX = 64
"""A start that was refined already is solved from the level whose side is nearest to this."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs that can be tried.

    Attributes:
        pairs: the images and the truth as they came.
        src: pyramid of the gray source images, full size first.
        dst: pyramid of the gray destination images.
        config: what changes the answer.
        trace: whether `levels` is wanted.
    """

    pairs: Pairs
    src: list[Level]
    dst: list[Level]
    config: AlignConfig
    trace: bool

    def select(self, index: Tensor) -> Batch:
        """Return the pairs that `index` (int64, ascending, on the CPU) names; this batch itself where it names all."""
        if len(index) == len(self.src[0].image):
            return self
        here = index.to(self.src[0].image.device)
        src, dst = ([level.select(here) for level in pyramid] for pyramid in (self.src, self.dst))
        return Batch(self.pairs.select(index), src, dst, self.config, self.trace)

    @property
    def gt(self) -> Tensor | None:
        """(B, 3, 3) truth on the images' device, or None."""
        return None if self.pairs.gt is None else self.pairs.gt.to(self.pairs.src.device)


def attempt(
    batch: Batch, dst_homo_src: Tensor, initialisation: Sequence[Initialisation], *, is_near: bool, signal: Signal
) -> AlignResult:
    """Solve, measure and judge.

    Args:
        batch: the pairs.
        dst_homo_src: (B, 3, 3) float64 start, full-size pixels.
        initialisation: where each start came from.
        is_near: whether the starts were refined, so that the coarsest levels have nothing to add.
        signal: what is compared.
    """
    src_size = image_size(batch.src[0].image)
    dst_size, side_px = image_size(batch.dst[0].image), batch.config.min_level_side_px
    shared = coarsest_shared(dst_homo_src, src_size, dst_size, min_side_px=side_px).clamp_max(len(batch.dst) - 1)
    octave, deepest = torch.stack([zoom_octave(dst_homo_src, src_size), shared]).cpu()
    if batch.config.solver == "adam":  # it solves the images as they are
        octave, deepest = torch.zeros_like(octave), torch.full_like(deepest, len(batch.dst) - 1)
    parts, order = [], []
    for zoom, coarsest in sorted(set(zip(octave.tolist(), deepest.tolist(), strict=True))):
        index = torch.nonzero((octave == zoom) & (deepest == coarsest))[:, 0]
        part = _attempt_matched(
            batch.select(index),
            dst_homo_src[index.to(dst_homo_src.device)],
            [initialisation[i] for i in index.tolist()],
            zoom=zoom,
            coarsest=coarsest,
            is_near=is_near,
            signal=signal,
        )
        parts.append(part)
        order.append(index)
    back = torch.cat(order).argsort()
    return AlignResult.concatenate(parts).select(back)


def _attempt_matched(
    batch: Batch,
    dst_homo_src: Tensor,
    initialisation: Sequence[Initialisation],
    *,
    zoom: int,
    coarsest: int,
    is_near: bool,
    signal: Signal,
) -> AlignResult:
    """Attempt pairs of one zoom, on levels of like pitch, from dst's level `coarsest` on at the coarsest."""
    matched = match_levels(batch.src, batch.dst, zoom=zoom, side_px=None)
    src, dst = batch.src[matched.src_level :], batch.dst[matched.dst_level :]
    count = min(len(src), len(dst))
    near = match_levels(src, dst, zoom=0, side_px=NEAR_SIDE_PX).src_level
    one = torch.ones(len(dst_homo_src), dtype=torch.float64, device=dst_homo_src.device)
    track = Track(
        src=src[:count],
        dst=dst[:count],
        pairs=batch.pairs,
        start=Alignment(matched.from_full(dst_homo_src), one, torch.zeros_like(one)),
        gt=None if batch.gt is None else matched.from_full(batch.gt),
        config=batch.config,
        trace=batch.trace,
        coarsest=min(near if is_near else count - 1, count - 1, max(0, coarsest - matched.dst_level)),
        is_near=is_near,
    )
    if batch.config.solver == "adam":
        solved = solve_tutorial(track)
    elif signal == "structure":
        solved = solve_structure(track)
    else:
        solved = solve_gauss_newton(track)
        solved = solve_unlike_sharpness(track.with_noise(solved.noise), solved)
        track = track.with_noise(solved.noise)
        if batch.config.signal == "auto":
            solved = solve_unexplained(track, solved)
    if batch.config.solver != "adam" and batch.config.signal == "auto":
        solved = try_intensities(track, solved)
        track = track.with_noise(solved.noise)
    return _measure(batch, track, solved, matched, initialisation)


def structure_score(batch: Batch, dst_homo_src: Tensor) -> Tensor:
    """Return (B,) float64, how well the structure of both images agrees: the yardstick for unlike attempts at a pair.

    Args:
        batch: the pairs.
        dst_homo_src: (B, 3, 3) float64, full-size pixels; NaN scores -1.
    """
    found = Hypotheses(
        pair=torch.arange(len(dst_homo_src), device=dst_homo_src.device),
        dst_homo_src=dst_homo_src,
        score=torch.zeros_like(dst_homo_src[:, 0, 0]),
    )
    return agreement(batch.src, batch.dst, found, side_px=SCORE_SIDE_PX, config=batch.config)


def _look_around(evidence: Evidence, src: Sequence[Level], dst: Sequence[Level], dst_homo_src: Tensor) -> Evidence:
    """Look for rivals all over dst where src, or nearly all of it, covers a small part of it.

    Args:
        evidence: so far.
        src: source images, from the level that it is of to coarser ones.
        dst: destination images of the same levels.
        dst_homo_src: (B, 3, 3), of the first level's pixels.
    """
    index = torch.nonzero(is_template(evidence))[:, 0]
    coarser = [k for k, level in enumerate(dst) if math.prod(image_size(level.image)) <= MOST_SCENE_PIXELS]
    if len(index) == 0 or not coarser:
        return evidence
    level, here = coarser[0], index.to(dst_homo_src.device)
    if level > 0 and min(image_size(src[level].image)) < LEAST_SIDE_PX:
        return evidence
    images = src[level].select(here), dst[level].select(here)
    found = rivals.rival_in_scene(*images, homography.rescale(dst_homo_src[here], level)).cpu()
    return replace(evidence, rival=evidence.rival.index_copy(0, index, torch.fmax(evidence.rival[index], found)))


def _ask_blocks(
    track: Track,
    level: int,
    matrix: Tensor,
    level_matrix: Tensor,
    covariance: Tensor,
    evidence: Evidence,
    dst_size: tuple[int, int],
) -> tuple[Tensor, Evidence, Tensor]:
    """Ask the blocks of the overlap about the pairs that are not plain.

    Args:
        track: the pairs.
        level: to ask at.
        matrix: (B, 3, 3) answers, full-size pixels.
        level_matrix: (B, 3, 3), pixels of the level.
        covariance: (B, 4, 2, 2) of the corners, full-size pixels of dst.
        evidence: so far.
        dst_size: (height, width) of full-size dst, pixels.

    Returns:
        covariance: with what the blocks leave open.
        evidence: with what they say.
        second_opinion: (B, 3, 3), `AlignResult.second_opinion`.
    """
    second_opinion = torch.full_like(matrix, torch.nan)
    is_strip = is_plain_strip(evidence)
    evidence = evidence.with_precision(torch.nonzero(is_strip)[:, 0])
    asked = torch.nonzero(~is_plain(evidence) & ~is_strip & evidence.is_finite)[:, 0]
    if len(asked) == 0:
        return covariance, evidence, second_opinion
    here = asked.to(matrix.device)
    unexplained = evidence.unexplained.to(matrix.device)[here]
    src, dst = ([of_level.select(here) for of_level in pyramid[level:]] for pyramid in (track.src, track.dst))
    free = MOTION_PARAMETERS[track.config.model]
    parts = measure_in_footprint(measure_parts, src[0], dst[0], level_matrix[here], free)
    # By what this level leaves open, not finer ones: of right real pairs 86 % of the corners lie in their 95 % ellipses
    # so, and 74 % would otherwise.
    widened = widen_by_parts(covariance[here], parts, unexplained, 480 / min(dst_size))
    parts = look_closer(track.src[:level], track.dst[:level], here, level_matrix[here], parts, free)
    parts = ask_witnesses(src, dst, level_matrix[here], parts, unexplained, free)
    moved = homography.move(matrix[here], parts.motion, *dst_size)
    return (
        covariance.index_copy(0, here, widened),
        evidence.with_parts(asked, parts),
        second_opinion.index_copy(0, here, moved),
    )


def _to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return (B, ...) tensors as float64 on the CPU, all of them in one copy: the host waits for each."""
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return {name: tensor.double() for name, tensor in tensors.items()}
    columns = [tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in tensors.values()]
    table = torch.cat([column.double() for column in columns], dim=1).cpu()
    parts = torch.split(table, [column.shape[1] for column in columns], dim=1)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _measure(
    batch: Batch,
    track: Track,
    solved: Solved,
    matched: MatchedLevels,
    initialisation: Sequence[Initialisation],
) -> AlignResult:
    """Measure what the solver found, and judge it."""
    config = track.config
    matched_matrix = solved.alignment.dst_homo_src
    matrix = matched.to_full(matched_matrix)
    finite = matrix.isfinite().flatten(1).all(-1)
    matrix = torch.where(finite[:, None, None], matrix, torch.nan)
    matched_matrix = torch.where(finite[:, None, None], matched_matrix, torch.nan)
    src_full, dst_full = batch.src[0], batch.dst[0]
    src_size, dst_size = image_size(src_full.image), image_size(dst_full.image)
    scale = solved.scale
    if bool(scale.isnan().any()):  # not every solver estimates one
        scale = torch.where(scale.isnan(), metrics.residual_scale(src_full, dst_full, matrix), scale)
    fitted_scale = torch.where(solved.fitted_scale.isnan(), scale, solved.fitted_scale)
    explained = residual_noise(track.src[0].noise, track.dst[0].noise, solved.alignment.gain)
    fit = metrics.measure_fit(
        src_full,
        dst_full,
        matrix,
        gain=solved.alignment.gain,
        bias=solved.alignment.bias,
        loss_width=config.loss_width * scale,
    )
    level = verdict.evidence_level([image_size(track.src[0].image), image_size(track.dst[0].image)], len(track.src))
    src_level, dst_level = track.src[level], track.dst[level]
    level_matrix = homography.rescale(matched_matrix, level)
    noise_src, noise_dst = (noise_gain(level) * pyramid[0].noise.square() for pyramid in (track.src, track.dst))
    patterns = local_patterns(src_level, dst_level, level_matrix)
    whole, weak = local_correlation(patterns, (noise_src, noise_dst))
    covariance = corner_covariance(solved.covariance, matrix, *src_size)
    at_480 = 480 / min(dst_size)
    corner_std_480 = at_480 * corner_std(covariance)
    if config.solver != "adam":  # which predicts none
        corner_std_480 = corner_std_480.nan_to_num(UNDETERMINED_480)
    unexplained = fitted_scale / explained
    unknown = torch.full((len(matrix),), torch.nan, dtype=torch.float64)
    figures = {
        "local_correlation": whole,
        "weak_correlation": weak,
        "overlap": fit.overlap,
        "src_overlap": metrics.share_of_src_seen(src_level, dst_level, level_matrix, fit.overlap),
        "rival": rivals.rival_correlation(patterns),
        "unexplained": unexplained,
        "corner_std_480": corner_std_480,
        "is_finite": finite,
    }
    figures = _to_host(figures)
    evidence = Evidence(
        **(figures | {"is_finite": figures["is_finite"] > 0}),
        structure=unknown,
        parts_here=unknown,
        drift_480=unknown,
        drift_std_480=unknown,
    )
    evidence = _look_around(evidence, track.src[level:], track.dst[level:], level_matrix)
    covariance, evidence, second_opinion = _ask_blocks(
        track, level, matrix, level_matrix, covariance, evidence, dst_size
    )
    covariance = widen_of_flat(covariance, unexplained)
    shown = torch.stack([batch.src[matched.src_level].noise, batch.dst[matched.dst_level].noise], dim=-1)
    covariance = widen_of_codec(covariance, (track.noise > shown).any(-1))
    asked = torch.nonzero(needs_structure(evidence))[:, 0]
    if len(asked) > 0:
        score = structure_score(batch.select(asked), matrix[asked.to(matrix.device)])
        evidence = evidence.with_structure(asked, score.cpu())
    confidence, status, detail = verdict.judge(evidence, solved.stop_reason, config)
    nan = torch.full_like(fit.zncc, torch.nan)
    errors, reprojection = nan[:, None].expand(-1, 4), nan
    if batch.gt is not None:
        src_colour = to_unit_range(batch.pairs.src, batch.pairs.src_mask)[0]
        errors = homography.corner_errors(matrix, batch.gt, *src_size)
        reprojection = metrics.reprojection_l1(src_colour, matrix, batch.gt, dst_size)
    answers = {
        "dst_homo_src": matrix,
        "corner_std_px": corner_std(covariance),
        "corner_covariance": covariance,
        "photometric_l1": fit.photometric_l1,
        "zncc": fit.zncc,
        "overlap": fit.overlap,
        "inlier_ratio": fit.inlier_ratio,
        "forward_backward_px": nan,
        "gain": torch.where(finite, solved.alignment.gain, torch.nan),
        "bias": torch.where(finite, solved.alignment.bias, torch.nan),
        "num_iterations": solved.num_iterations,
        "gt_corner_error_px": errors.mean(-1),
        "gt_corner_error_max_px": errors.amax(-1),
        "gt_reprojection_l1": reprojection,
        "second_opinion": second_opinion,
    }
    answers = _to_host(answers)
    return AlignResult(
        status=status,
        status_detail=detail,
        confidence=confidence,
        initialisation=list(initialisation),
        stop_reason=solved.stop_reason,
        levels=solved.levels,
        evidence=evidence.table(),
        **(answers | {"num_iterations": answers["num_iterations"].int()}),
    )
