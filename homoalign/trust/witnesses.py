"""Whom to ask where a doubt is left: the structure of a pair's blocks, and whom else where that leaves one.

Where residuals are noise, images agree in every part, and no other shift does nearly as well, the blocks have nothing
to add, and are not asked. The few blocks of a thin strip could not answer: there the solver's own precision stands for
theirs.

Noise drowns gradients before it drowns intensities, and fine levels before coarse ones. So where residuals are no more
than noise, and the blocks' structure still leaves a doubt, the blocks are sought by their intensities too, there and on
the next coarser level; who knows best where the corners lie is believed. Where residuals are more than noise (depth,
other light, another sensor) intensities go astray, and structure is asked alone. What two sensors share is little: in
the few pixels of a coarse block chance correlates as well, on finer levels it does not. So there the blocks are sought
on those too.

Most pairs leave no doubt, and cost nothing here.

B pairs, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from homoalign import homography
from homoalign.homography import image_size
from homoalign.levels.box import box
from homoalign.levels.metrics import warp_level
from homoalign.levels.pyramid import Level
from homoalign.levels.structure import Structure
from homoalign.optimisation.schedule import HOMOGRAPHY
from homoalign.trust.evidence import Evidence
from homoalign.trust.footprint import measure_in_footprint
from homoalign.trust.parts import Box, Parts, measure_parts, seek_blocks

PLAIN_UNEXPLAINED = 1.1
PLAIN_CORRELATION = 0.9
PLAIN_RIVAL = 0.8
PLAIN_STD_480 = 0.5
PLAIN_OVERLAP = 0.2
"""Of 1520 drawn pairs, a third of them misled on purpose, 335 were as plain as this; two, repeats, were wrong."""

STRIP_OVERLAP = 1 / 3
STRIP_STD_480 = 2.0
"""Of a smaller overlap it is enough that the corners are known so far: of 900 drawn pairs that share 4 to 32 % of the
frame, half of them misled on purpose, 162 of these were as plain as that, none of them wrong."""

CLEAR_480 = 2.0
"""Blocks that leave the corners no more than this, pixels at 480..."""

CLEAR_HERE = 0.7
"""... and lie, so many of them, best where they are, leave no doubt."""

EXPLAINED = 1.5
"""Residuals below so many times the noise are taken for noise."""

FINER = 2
"""How many finer levels are asked at most, each if the one before leaves a doubt..."""

LEAST_HERE = 0.1
"""... and so many of its blocks lie best where they are: of pairs that show nothing in common fewer do."""

CLOSE_480 = 5.0
"""Finer levels are believed where they leave the corners less open than an answer may be off and right, pixels at 480:
they may dispel a doubt, and where they do not it stands."""

LEAST_SIDE_PX = 24
"""Levels of shorter sides have too few pixels for blocks."""

WINDOW = 9
"""Side of the neighbourhood whose mean is taken from intensities, pixels of the level."""


def is_plain(evidence: Evidence) -> Tensor:
    """Return (B,) bool, where the blocks need not be asked."""
    plain: Tensor = (
        _agrees(evidence) & (evidence.corner_std_480 < PLAIN_STD_480) & (_most_overlap(evidence) > PLAIN_OVERLAP)
    )
    return plain


def is_plain_strip(evidence: Evidence) -> Tensor:
    """Return (B,) bool, where the solver's precision has to do, and does, as so little overlaps."""
    strip: Tensor = (
        _agrees(evidence)
        & ~is_plain(evidence)
        & (evidence.corner_std_480 < STRIP_STD_480)
        & (_most_overlap(evidence) < STRIP_OVERLAP)
    )
    return strip


def _agrees(evidence: Evidence) -> Tensor:
    return (
        (evidence.unexplained < PLAIN_UNEXPLAINED)
        & (evidence.correlation > PLAIN_CORRELATION)
        & (evidence.local_correlation > 0)
        & (evidence.rival < PLAIN_RIVAL)
    )


def _most_overlap(evidence: Evidence) -> Tensor:
    return torch.fmax(evidence.overlap, evidence.src_overlap)


def look_closer(
    src: Sequence[Level],
    dst: Sequence[Level],
    index: Tensor,
    dst_homo_src: Tensor,
    parts: Parts,
    free: int = HOMOGRAPHY,
) -> Parts:
    """Ask structure on finer levels about the pairs that need it.

    Args:
        src: source images of a batch, of all levels finer than the one that `parts` were measured on, finest first.
        dst: destination images of the same levels.
        index: (B,) int64, which of the batch the pairs are.
        dst_homo_src: (B, 3, 3) finite, pixels of the level of `parts`.
        parts: what the blocks' structure says there.
        free: how many parameters the model of motion has.

    Returns:
        The parts of the level that leaves the corners least open, for each pair.
    """
    closest = parts
    for finer in range(1, min(FINER, len(src)) + 1):
        is_open = ~_is_clear(closest) & (closest.here > LEAST_HERE)
        chosen = torch.nonzero(is_open)[:, 0]
        if len(chosen) == 0:
            break
        finer_src, finer_dst = (pyramid[-finer].select(index[chosen]) for pyramid in (src, dst))
        told = measure_in_footprint(
            measure_parts, finer_src, finer_dst, homography.rescale(dst_homo_src[chosen], -finer), free
        )
        closest = closest.put(chosen, _surest([closest.select(chosen), told]))
    is_close = torch.nonzero(error_480(closest) < CLOSE_480)[:, 0]
    return parts.put(is_close, closest.select(is_close))


def ask_witnesses(
    src: Sequence[Level],
    dst: Sequence[Level],
    dst_homo_src: Tensor,
    parts: Parts,
    unexplained: Tensor,
    free: int = HOMOGRAPHY,
) -> Parts:
    """Ask intensities, on two levels, about the pairs that need it.

    Args:
        src: source images, from the level that `parts` were measured on to coarser ones.
        dst: destination images of the same levels.
        dst_homo_src: (B, 3, 3), of the first level's pixels.
        parts: what the blocks' structure says on the first level.
        unexplained: (B,) float64, `Evidence.unexplained`.
        free: how many parameters the model of motion has.

    Returns:
        The parts of whoever leaves the corners least open, for each pair; those that were given where nobody was asked.
    """
    index = torch.nonzero(~_is_clear(parts) & (unexplained < EXPLAINED) & dst_homo_src.isfinite().flatten(1).all(-1))[
        :, 0
    ]
    if len(index) == 0:
        return parts
    told = [parts.select(index)]
    for coarser in range(2 if _has_coarser(src, dst) else 1):
        matrix = homography.rescale(dst_homo_src[index], coarser)
        images = src[coarser].select(index), dst[coarser].select(index)
        told.append(measure_in_footprint(measure_parts_by_intensity, *images, matrix, free))
    return parts.put(index, _surest(told))


def _is_clear(parts: Parts) -> Tensor:
    return (error_480(parts) < CLEAR_480) & (parts.here > CLEAR_HERE)


def error_480(parts: Parts) -> Tensor:
    """Return (B,) float64, how far the corners may be off, root mean square, pixels at 480."""
    return torch.hypot(parts.drift_480, parts.drift_std_480)


def measure_parts_by_intensity(
    src: Level, dst: Level, dst_homo_src: Tensor, free: int = HOMOGRAPHY, box: Box | None = None
) -> Parts:
    """Do as `measure_parts`, by intensities without their neighbourhoods' means instead of structure."""
    warped, covered = warp_level(src, dst, dst_homo_src)
    known = torch.ones_like(dst.image) if dst.mask is None else (dst.mask > 0.5).to(dst.image)
    from_src = _detail(warped[:, None], covered[:, None].to(warped))
    return seek_blocks(from_src, _detail(dst.image, known), dst_homo_src, image_size(src.image), free, box)


def _has_coarser(src: Sequence[Level], dst: Sequence[Level]) -> bool:
    """Return whether there is a coarser level than the first that has enough pixels for blocks."""
    coarser = [pyramid[1].image for pyramid in (src, dst) if len(pyramid) > 1]
    return len(coarser) == 2 and min(min(image_size(image)) for image in coarser) >= LEAST_SIDE_PX


def _surest(told: Sequence[Parts]) -> Parts:
    """Return, for each pair, the parts that leave its corners least open."""
    best = torch.stack([error_480(parts) for parts in told]).argmin(0)
    surest = told[0]
    for k, parts in enumerate(told[1:], start=1):
        index = torch.nonzero(best == k)[:, 0]
        surest = surest.put(index, parts.select(index))
    return surest


def _detail(image: Tensor, known: Tensor) -> Structure:
    """Take the neighbourhoods' means from intensities.

    Args:
        image: (B, 1, H, W) float32.
        known: (B, 1, H, W) float32, 1 where it counts and 0 where not.

    Returns:
        Two channels of a root mean square of 1, the second zero.
    """
    share = box(known, WINDOW // 2)
    mean = box(image * known, WINDOW // 2) / share.clamp_min(1e-6)
    detail = torch.where((known > 0) & (share > 0.5), image - mean, 0.0)
    power = detail.square().sum((-2, -1), keepdim=True) / known.sum((-2, -1), keepdim=True).clamp_min(1)
    detail = detail / power.sqrt().clamp_min(1e-6)
    return Structure(torch.cat([detail, torch.zeros_like(detail)], dim=1), known)
