"""Whether what an alignment leaves is noise, or has something of the image in it.

Lossy compression, sensors and their cameras' filters leave more than white noise does, and the finest scale, from which
the noise of an image is told, shows it least. But unlike what blur, depth or another sensor leaves, it does not follow
from the image: in no block of the frame is it a combination of src's intensities (another light or sensor), its slopes
(a motion that the model lacks) and its details (another sharpness). Noise in src is in these too, and so tells a part
of itself; that part is known, and taken out.

B pairs, N points, K blocks, F features.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from homoalign import kernels
from homoalign.differences.photometry import sample
from homoalign.levels.coding import residual_coding_noise
from homoalign.levels.noise import QUANTISATION, residual_noise, smooth
from homoalign.levels.pyramid import Level, take
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.solver import cauchy_weight, robust_scale
from homoalign.optimisation.track import Track

MORE = 1.1
"""Residuals of so many times the noise that the images show are more than that noise."""

BLOCKS = 12
"""Along either side of the frame."""

POINTS = 2**14
"""Of larger images every so many rows are looked at that about as many pixels are."""

FEATURES = {"intensities": (0, 1), "slopes": (0, 1, 2, 3), "details": (0, 1, 4)}
MOST = {"intensities": 0.08, "slopes": 0.04, "details": 0.06}
"""Of the residual's energy, as a share: what they may tell beyond chance and what noise tells of itself. For slopes and
details it is what they tell beyond intensities. Of 38 pairs under heavy compression, half of them in another light too,
one had more; of 76 that blur, relief or another sensor changed three had no more, and none of 53 real ones."""

INTENSITY, DETAIL = 1, 4
OF_DETAIL = 1 - (6 / 16) ** 2
"""Of a pixel's own noise, what is in its detail."""

MOST_OF_ITSELF = 0.3
"""Where noise tells more of itself, of a half at most, the blocks have too little texture to tell it from the image."""

LEAST_CODED = 0.5
"""Where the blocks of a codec show, and tell of at least this share of the residual, it is what the codec lost..."""

OF_CODEC = 3.0
"""... and may have so many times as much of the image in it: a codec's errors follow edges and texture."""

MOST_ENERGY = 0.25
"""Of dst's variance: where more is left, outliers and all, the images are hardly alike, or not where they should be."""

BY_CHANCE = 0.73
"""What a feature takes by chance of a residual's energy, over the points, counted by their weight: less than one part,
as points that count less are those whose residual is large."""

RIDGE = 1e-6


def hear(
    track: Track,
    problem: DirectProblem,
    state: Alignment,
    among: Tensor | None = None,
    is_rich: Tensor | None = None,
) -> Track:
    """Return the pairs with as much noise as there is in what is left, where that is noise, and more than they show.

    Args:
        track: the pairs.
        problem: of their full-size images.
        state: alignments that are good to a fraction of a pixel.
        among: (B,) bool, which pairs are listened to, so that no pair's answer depends on which others it comes with;
            None: all.
        is_rich: (B,) bool, whose light is more than a gain and a bias: it takes up much of what a wrong alignment
            leaves, so that these are given no leave for a codec's errors; None: none is.
    """
    if among is not None and not bool(among.any()):
        return track
    src, dst = track.src[0], track.dst[0]
    shown = residual_noise(src.noise, dst.noise, state.gain)
    factor = loudness(problem, state, shown, (src, dst), track.config.loss_width, is_rich)
    factor = factor if among is None else torch.where(among, factor, 1.0)
    if not bool((factor > 1).any()):
        return track
    factor = factor[:, None]
    return track.with_noise(torch.where(factor > 1, factor * track.noise.clamp_min(QUANTISATION), track.noise))


def loudness(
    problem: DirectProblem,
    state: Alignment,
    shown: Tensor,
    sides: tuple[Level, Level],
    loss_width: float,
    is_rich: Tensor | None = None,
) -> Tensor:
    """Return (B,) float64, how many times the noise that the images show the residual is, where it is noise; else 1.

    Args:
        problem: of the full-size images, on a grid of points.
        state: an alignment that is good to a fraction of a pixel.
        shown: (B,) standard deviation that the images' noise gives the residual.
        sides: src and dst at full size.
        loss_width: of the robust loss, in standard deviations of the residual.
        is_rich: see `hear`.
    """
    factor, contrast = torch.ones_like(shown), sides[1].contrast
    if problem.template.grid is None:
        return factor
    some = sample(problem)
    residual, seen = some.evaluate(state)
    scale = robust_scale(residual, seen, some.scale_floor)
    energy = residual.square().sum(-1, dtype=torch.float64) / seen.sum(-1).clamp_min(1)
    index = torch.nonzero((scale > MORE * shown) & (energy < MOST_ENERGY * contrast.square()))[:, 0]
    if len(index) == 0:
        return factor
    coded = residual_coding_noise(sides[0].image, sides[1].image, state.gain, index)
    is_coded = coded > LEAST_CODED * scale[index]
    leave = torch.where(is_coded if is_rich is None else is_coded & ~is_rich[index], OF_CODEC, 1.0)
    is_noise = _is_noise(*_some_rows(problem, index), state.select(index), loss_width * scale[index], leave)
    return factor.index_copy(0, index, torch.where(is_noise, (scale / shown)[index], 1.0))


def _some_rows(problem: DirectProblem, index: Tensor) -> tuple[DirectProblem, Tensor]:
    """Return the problem of some rows of the pairs that `index` (int64) names, and (B, N) the points' details."""
    template = problem.template
    if template.grid is None:
        raise ValueError("a part of the points makes no grid")
    value = take(template.value, index)
    image = value.view(-1, 1, *template.grid)
    details = image - smooth(image, 1)
    stride = max(1, value.shape[-1] // POINTS)
    rows = replace(problem, template=template.every_row(stride)).select(index)
    return rows, details[:, 0, ::stride].flatten(1)


def _is_noise(problem: DirectProblem, details: Tensor, state: Alignment, width: Tensor, leave: Tensor) -> Tensor:
    """Return (B,) bool, where the residual has nothing of the image in it.

    Args:
        problem: the pairs.
        details: (B, N) of the points.
        state: alignments.
        width: (B,) of the loss.
        leave: (B,) how many times `MOST` it may have.
    """
    sums = _products(problem, details, state, width)
    shares = {name: _shares(sums, features) for name, features in FEATURES.items()}
    excess = {name: told - of_itself for name, (told, of_itself) in shares.items()}
    found: Tensor = (
        (shares["intensities"][1] < MOST_OF_ITSELF)
        & (excess["intensities"] < leave * MOST["intensities"])
        & (excess["slopes"] - excess["intensities"] < leave * MOST["slopes"])
        & (excess["details"] - excess["intensities"] < leave * MOST["details"])
    )
    return found


def _products(problem: DirectProblem, details: Tensor, state: Alignment, width: Tensor) -> Tensor:
    """Return (B, K, F + 1, F + 1) float64, products of all features and the residual, summed over blocks."""
    residual, seen = problem.evaluate(state)
    weight = cauchy_weight(residual, width) * seen
    template, (rows, columns) = problem.template, problem.template.grid or (1, 1)
    value, slope = template.value, template.slope / template.half_side
    features = (torch.ones_like(value), value, slope[:, 0], slope[:, 1], details, residual)
    sides = -(-rows // BLOCKS), -(-columns // BLOCKS)
    if kernels.serves(value):
        planes = tuple(feature.view(-1, rows, columns) for feature in features)
        return kernels.block_products(planes, weight.view(-1, rows, columns), sides)
    basis = torch.stack(features, dim=1)
    products = (basis[:, :, None] * (basis * weight[:, None])[:, None]).view(len(value), -1, rows, columns)
    sums = avg_pool2d(products, sides, ceil_mode=True, divisor_override=1).flatten(2).double()
    return sums.view(len(value), len(features), len(features), -1).permute(0, 3, 1, 2)


def _shares(sums: Tensor, features: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Regress the residual on some features, block by block.

    Noise in src is in the residual, where it counts against src, and in the features: with the pixel's own intensity
    it goes together, with the slopes, which are taken from its neighbours, it does not.

    Returns:
        told: (B,) the share of the residual's energy that this takes, but for what it takes of anything by chance.
        of_itself: (B,) the share that it takes of a residual that is noise, half of it src's.
    """
    count, energy = sums[..., 0, 0].clamp_min(1), sums[..., -1, -1]
    of_features = {INTENSITY: 0.5, DETAIL: 0.5 * OF_DETAIL}
    of_noise = torch.stack([-of_features.get(feature, 0.0) * energy for feature in features], dim=-1)
    chosen = list(features)
    products = torch.stack([sums[..., chosen, -1], of_noise], dim=-1)  # (B, K, F, 2)
    normal = sums[..., chosen, :][..., chosen]
    normal = normal + torch.diag_embed(RIDGE * normal.diagonal(dim1=-2, dim2=-1) + 1e-12)
    taken = (products * torch.linalg.solve_ex(normal, products).result).sum(-2)
    # No more than all of src's noise can be told.
    of_itself = taken[..., 1].minimum(0.5 * energy)
    told = taken[..., 0] - BY_CHANCE * len(features) * energy / count
    total = energy.sum(-1)
    return told.sum(-1) / total, of_itself.sum(-1) / total
