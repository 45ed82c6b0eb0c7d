"""Rivals: other places where src lies as well on dst as it does where it was put.

Bricks, windows and lines of text lie almost as well one course further, and many of them upside down.

B pairs, K hypotheses, H W rows and columns.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from homoalign import homography, kernels
from homoalign.config import AlignConfig
from homoalign.homography import image_size
from homoalign.levels.fourier import fast_length
from homoalign.levels.metrics import warp_level
from homoalign.levels.patterns import Patterns, local_correlation, local_patterns
from homoalign.levels.pyramid import Level
from homoalign.levels.sampling import is_inside
from homoalign.levels.zoom import match_levels, zoom_octave
from homoalign.result import AlignResult
from homoalign.starts.hypotheses import Hypotheses
from homoalign.trust import verdict
from homoalign.trust.evidence import Evidence

LEAST_SHIFTED = 0.4
"""Share of what both show together that a rival must show too: less agrees by chance."""

LEAST_OWN = 0.3
"""Where images correlate less, rivals are compared with this: what is alike there is not intensity."""

SAME_PLACE = 0.02
"""Answers that put what they show less than this share of dst's side apart are the same."""

PLACES = 12
"""Of src, along each side, at which answers are compared."""

LOBE_PX = 3
"""Shifts up to this long are the same answer."""

RIDGE_PX = 10
"""So much further off, what lies nearly as well as the answer does without being a peak lies on a ridge: texture in one
direction only, a fence or a barcode, tells nothing of how far along it."""

RIDGE = 0.95
"""Of the answer's correlation. A smooth scene's own lobe is lower, that far out."""


def rival_correlation(patterns: Patterns) -> Tensor:
    """Say how well src would lie on dst elsewhere: the best of all other shifts, over what it is unshifted.

    Bricks, windows and lines of text lie almost as well one course further. All shifts at once, by masked normalised
    cross-correlation (Padfield, "Masked object registration in the Fourier domain", TIP 2012).

    Returns:
        (B,) float64, at least 0; above 1 where another shift is better. NaN where there is nothing to compare.
    """
    products = correlation_by_shift(patterns)
    height, width = image_size(patterns.src)
    best, here = _second_best(*products, (height // 2, width // 2))
    rival = best / here.clamp_min(LEAST_OWN)
    return torch.where(patterns.counted.any(-1).any(-1), rival, torch.nan).double()


def rival_in_scene(src: Level, dst: Level, dst_homo_src: Tensor) -> Tensor:
    """Say how well src would lie elsewhere in a scene of which it covers a part: the best of all places in dst.

    What lies beside src has no say in `rival_correlation`; another copy of a template lies just there.

    Args:
        src: source images of a level.
        dst: destination images of the same level.
        dst_homo_src: (B, 3, 3), of that level's pixels.

    Returns:
        (B,) float64, as `rival_correlation` has it; 0 where there is nothing to compare.
    """
    products = correlation_in_scene(src, dst, dst_homo_src)
    peaks, here = other_peaks(*products, image_size(products[0]))
    return (peaks.amax((-2, -1)) / here.clamp_min(LEAST_OWN)).nan_to_num(0.0).double()


def correlation_in_scene(src: Level, dst: Level, dst_homo_src: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `correlation_by_shift` does, for every shift of the warped source all over dst.

    Args:
        src: source images of a level.
        dst: destination images of the same level.
        dst_homo_src: (B, 3, 3), of that level's pixels.
    """
    warped, covered = warp_level(src, dst, dst_homo_src)
    (a, in_a), (b, in_b) = (_even(level) for level in (Level(warped[:, None], covered[:, None].to(warped)), dst))
    size = tuple(fast_length(2 * side) for side in image_size(a))
    spectra = torch.fft.rfft2(torch.stack([a, a * a, in_a, b, b * b, in_b], dim=1), s=size)
    of_a, of_aa, of_in_a, of_b, of_bb, of_in_b = spectra.unbind(1)
    products = torch.stack([of_a.conj() * of_b, of_aa.conj() * of_in_b, of_in_a.conj() * of_bb], dim=1)
    both, energy_a, energy_b = torch.fft.irfft2(products, s=size).unbind(1)
    return both, energy_a, energy_b


def _even(level: Level) -> tuple[Tensor, Tensor]:
    """Return (B, H, W) patterns of one image, of a like contrast everywhere, and where they are known, 1 or 0."""
    identity = torch.eye(3, dtype=torch.float64, device=level.image.device).expand(len(level.image), 3, 3)
    patterns = local_patterns(level, level, identity)
    return patterns.weight.sqrt() * patterns.src, patterns.counted.to(patterns.src)


def correlation_by_shift(patterns: Patterns) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for every shift by up to half a side either way, (B, h, w) each.

    Returns:
        both: sums of products.
        energy_a: sums of squares of src under dst.
        energy_b: of dst under src.
    """
    height, width = image_size(patterns.src)
    size = (fast_length(3 * height // 2), fast_length(3 * width // 2))
    if kernels.serves(patterns.src):
        parts = (patterns.src, patterns.dst, patterns.weight, patterns.counted)
        products = kernels.products_of_spectra(torch.fft.rfft2(kernels.weighted_patterns(*parts, size)))
    else:
        root = patterns.weight.sqrt()
        a, b = root * patterns.src, root * patterns.dst
        inside = patterns.counted.to(a)
        spectra = torch.fft.rfft2(torch.stack([a, a * a, b, b * b, inside], dim=1), s=size)
        of_a, of_aa, of_b, of_bb, of_inside = spectra.unbind(1)
        products = torch.stack([of_a.conj() * of_b, of_aa.conj() * of_inside, of_inside.conj() * of_bb], dim=1)
    both, energy_a, energy_b = torch.fft.irfft2(products, s=size).unbind(1)
    return both, energy_a, energy_b


def _second_best(both: Tensor, energy_a: Tensor, energy_b: Tensor, reach: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return (B,) the highest other peak, or ridge, of `correlation_by_shift`, and (B,) what it is unshifted.

    Args:
        both, energy_a, energy_b: as returned there.
        reach: largest shift along y and x, pixels.
    """
    if kernels.serves(both):
        limits = (*reach, LOBE_PX, RIDGE_PX)
        return kernels.second_best(both, energy_a, energy_b, limits, (LEAST_SHIFTED, RIDGE))
    found, distance = _correlation_elsewhere(both, energy_a, energy_b, reach)
    here = found[:, 0, 0]
    is_ridge = (distance > RIDGE_PX) & (found >= RIDGE * here[:, None, None])
    return torch.where((distance > LOBE_PX) & (_is_peak(found) | is_ridge), found, 0.0).amax((-2, -1)), here


def other_peaks(both: Tensor, energy_a: Tensor, energy_b: Tensor, reach: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return (B, h, w) the correlation at its other peaks, 0 elsewhere, and (B,) what it is unshifted.

    Args:
        both, energy_a, energy_b: of `correlation_by_shift`.
        reach: largest shift along y and x, pixels.
    """
    found, distance = _correlation_elsewhere(both, energy_a, energy_b, reach)
    return torch.where((distance > LOBE_PX) & _is_peak(found), found, 0.0), found[:, 0, 0]


def _correlation_elsewhere(
    both: Tensor, energy_a: Tensor, energy_b: Tensor, reach: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the correlation of every shift, and how far off that is.

    Returns:
        found: (B, h, w), its size; 0 where too little is left.
        distance: (h, w), pixels; 0 out of reach.
    """
    whole_a, whole_b = energy_a[:, :1, :1], energy_b[:, :1, :1]
    enough = (energy_a > LEAST_SHIFTED * whole_a) & (energy_b > LEAST_SHIFTED * whole_b)
    found = torch.where(enough, both / (energy_a * energy_b).clamp_min(1e-12).sqrt(), 0.0)
    y, x = (shifts(side, found.device).abs() for side in found.shape[-2:])
    possible = (y <= reach[0])[:, None] & (x <= reach[1])
    # One sensor may see bright what the other sees dark.
    return found.abs(), torch.where(possible, torch.maximum(y[:, None], x), 0)


def _is_peak(found: Tensor) -> Tensor:
    wrapped = torch.nn.functional.pad(found[:, None], (1, 1, 1, 1), mode="circular")
    return found >= max_pool2d(wrapped, 3, stride=1)[:, 0]


def shifts(side: int, device: torch.device) -> Tensor:
    """Return (side,) the shift of each entry of a correlation by FFT."""
    k = torch.arange(side, device=device)
    return torch.where(k > side // 2, k - side, k)


def doubt_rivalled(result: AlignResult, rival: Tensor, config: AlignConfig) -> AlignResult:
    """Doubt answers that another hypothesis rivals: turned, zoomed, refined, or further away than the shifts above.

    Args:
        result: the answers.
        rival: (B,) float64, of `strongest_rival`.
        config: the threshold of the verdict.

    Returns:
        `result`, with `evidence`, `confidence`, `status` and its detail of the pairs that have a stronger rival than
        was known.
    """
    evidence, rival = Evidence.of_table(result.evidence), rival.cpu()
    stronger = torch.nonzero(evidence.is_finite & (rival > evidence.rival.nan_to_num(0.0)))[:, 0]
    if len(stronger) == 0:
        return result
    part = result.select(stronger)
    doubted = replace(Evidence.of_table(part.evidence), rival=rival[stronger])
    confidence, status, detail = verdict.judge(doubted, part.stop_reason, config)
    part = replace(part, evidence=doubted.table(), confidence=confidence, status=status, status_detail=detail)
    return result.put(stronger, part)


def strongest_rival(src: list[Level], dst: list[Level], answer: Tensor, found: Hypotheses) -> tuple[Tensor, Tensor]:
    """Look for the other hypothesis under which the patterns of a pair correlate best.

    Args:
        src: pyramid of the source images, full size first.
        dst: pyramid of the destination images.
        answer: (B, 3, 3) float64, full-size pixels.
        found: refined hypotheses about the pairs; those at the answers' own places do not count.

    Returns:
        rival: (B,) float64, its correlation over that of the answer; 0 without one.
        index: (B,) int64, which of `found` it is; any where there is none.
    """
    answer = answer.to(found.pair.device)
    own, own_share = _correlate(src, dst, torch.arange(len(answer), device=answer.device), answer)
    value, share = _correlate(src, dst, found.pair, found.dst_homo_src)
    sizes = image_size(src[0].image), image_size(dst[0].image)
    distance = _distance_over_overlap(answer[found.pair], found.dst_homo_src, *sizes)
    is_other = ~(distance < SAME_PLACE * min(sizes[1])) & (share > LEAST_SHIFTED * own_share[found.pair])
    rival = torch.where(is_other, value / own.clamp_min(LEAST_OWN)[found.pair], 0.0)
    of_pair = torch.arange(len(answer), device=answer.device)[:, None] == found.pair  # (B, K)
    best, index = torch.where(of_pair, rival, -1.0).max(-1)
    return best.clamp_min(0.0), index


def _distance_over_overlap(
    answer: Tensor, other: Tensor, src_size: tuple[int, int], dst_size: tuple[int, int]
) -> Tensor:
    """Return (K,) how far apart two (K, 3, 3) matrices put what the first shows, pixels of dst on average.

    NaN where it shows nothing. Not at the corners: those of a small overlap lie far from all that either knows.
    """
    y, x = (torch.linspace(0, side - 1, PLACES, dtype=answer.dtype, device=answer.device) for side in src_size)
    xy = torch.cartesian_prod(y, x).flip(-1).expand(len(answer), -1, -1)
    place = homography.warp_points(answer, xy)
    is_shown = is_inside(place, dst_size)
    distance = (homography.warp_points(other, xy) - place).norm(dim=-1).nan_to_num(torch.inf)
    return torch.where(is_shown, distance, 0.0).sum(-1) / is_shown.sum(-1)


def _correlate(src: list[Level], dst: list[Level], pair: Tensor, dst_homo_src: Tensor) -> tuple[Tensor, Tensor]:
    """Correlate the patterns of pairs under each of (K, 3, 3) matrices.

    Returns:
        (K,) float64 size of the correlation, 0 where there is nothing to compare, and (K,) share of dst compared.
    """
    octave = zoom_octave(dst_homo_src, image_size(src[0].image))
    correlation, share = torch.zeros_like(dst_homo_src[:, 0, 0]), torch.zeros_like(dst_homo_src[:, 0, 0])
    for zoom in sorted(set(octave.tolist())):
        chosen = torch.nonzero(octave == zoom)[:, 0]
        matched = match_levels(src, dst, zoom=zoom, side_px=verdict.LOCAL_LEVEL_SIDE_PX)
        of_src, of_dst = (level.select(pair[chosen]) for level in (src[matched.src_level], dst[matched.dst_level]))
        patterns = local_patterns(of_src, of_dst, matched.from_full(dst_homo_src[chosen]))
        # One sensor may see bright what the other sees dark.
        correlation[chosen] = local_correlation(patterns)[0].abs().nan_to_num(0.0)
        share[chosen] = patterns.counted.double().mean((-2, -1))
    return correlation, share
