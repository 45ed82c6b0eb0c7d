"""The last iterations at full size: dst read by a spline, and the template's gradient freed of noise.

With noise in both images the residual's own noise cannot be helped; what can is the gradient that the residual is
projected on. The error of an alignment is least, and meets the Cramer-Rao bound, for the gradient of the noise-free
image. The estimate of that image here is the mean of src and of the aligned dst, weighted such that its noise and the
residual's are uncorrelated, then denoised.

B pairs, H W rows and columns, N points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign import kernels
from homoalign.homography import image_size
from homoalign.levels.noise import denoise, smooth
from homoalign.levels.pyramid import Level, take
from homoalign.levels.spline import spline_coefficients
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.solver import SCALE_SAMPLES, cauchy_weight, robust_scale
from homoalign.optimisation.template import Template

WORTH_DENOISING = 0.02
"""Share of noise in the energy of the points' slopes from which denoising pays."""

WORTH_DENOISING_EARLY = 0.3
"""Likewise for the rough run before the last one."""

DROWNED = 0.3
"""Likewise from which the neighbours tell the gain better than the pixel."""

BANDS, BANDS_OF_DROWNED = 2, 3
"""Bands that are freed of noise; of little noise the third one holds nothing that matters, and takes as long."""

LEAST_TOLD = 0.02
"""Least covariance of pixels and their neighbours, as a share of the variance, that tells a gain."""

ENERGY_POINTS = 8192
"""Points, about, that the slopes' energy is read from."""

ALL_OF_IT = 0.999
"""Of a mask that was blurred over two pixels either way, which are what a spline is read from."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Source images that were denoised on their own.

    Attributes:
        noise_share: (B,) float64, of noise in the energy of the points' slopes; of all pairs.
        index: (b,) int64, the pairs that are noisy enough.
        image: (b, 1, H, W), theirs without the noise.
    """

    noise_share: Tensor
    index: Tensor
    image: Tensor

    def select(self, index: Tensor) -> Cleaned:
        """Return the pairs that `index` (int64) names."""
        among = self.index[:, None] == index  # (b, k)
        row, column = torch.nonzero(among, as_tuple=True)
        return Cleaned(self.noise_share[index], column, take(self.image, row))


def clean_source(template: Template, src: Level) -> Cleaned:
    """Denoise the source images of which `refine_template` or `refine_template_at` want it so.

    Args:
        template: of the full-size images, from src itself.
        src: source images.
    """
    share = noise_share(template, src.noise)
    # Of all pixels the last run takes what dst helps to tell.
    index = torch.nonzero(share > (WORTH_DENOISING_EARLY if template.is_whole else WORTH_DENOISING))[:, 0]
    image = take(src.image, index)
    clean = denoise_by_share(image, image, src.noise[index], share[index]) if len(index) else image
    return Cleaned(share, index, clean)


def refine_template(template: Template, cleaned: Cleaned) -> Template:
    """Return the template with the slopes of src without its noise, where it is noisy.

    Args:
        template: of the full-size images.
        cleaned: what `clean_source` made of src.
    """
    early = torch.nonzero(cleaned.noise_share[cleaned.index] > WORTH_DENOISING_EARLY)[:, 0]
    if len(early) == 0:
        return template
    return template.with_slopes_of(take(cleaned.image, early), cleaned.index[early])


def refine_template_at(
    template: Template,
    cleaned: Cleaned,
    problem: DirectProblem,
    src: Level,
    dst: Level,
    state: Alignment,
    *,
    loss_width: float,
) -> Template:
    """Return the template with the slopes of src without its noise, where it is noisy, told with dst's help.

    What stands out of the noise is told from the mean of src and the aligned dst. The gradient itself is src's alone:
    that of the mean contains dst's noise, which is found again in the residual and holds the alignment where it is.

    Args:
        template: of the full-size images.
        cleaned: what `clean_source` made of src.
        problem: of the same points, dst read by a spline.
        src: source images.
        dst: destination images.
        state: an alignment that is good to a fraction of a pixel.
        loss_width: of the robust loss, in standard deviations of the residual.
    """
    index = torch.nonzero(cleaned.noise_share > WORTH_DENOISING)[:, 0]
    if len(index) == 0:
        return template
    image, clean = take(src.image, index), cleaned.image
    if template.is_whole:
        dst_noise = dst.noise / state.gain.abs().clamp_min(1e-3)
        guide, sigma = _merge(problem, src.image, state, src.noise, dst_noise, loss_width)
        clean = denoise_by_share(image, take(guide, index), sigma[index], cleaned.noise_share[index])
    drowned = torch.nonzero(cleaned.noise_share[index] > DROWNED)[:, 0]
    told = clean.index_copy(0, drowned, _neighbours(image[drowned])) if len(drowned) else clean
    return template.with_slopes_of(clean, index, told)


def denoise_by_share(image: Tensor, guide: Tensor, guide_sigma: Tensor, share: Tensor) -> Tensor:
    """Do what `noise.denoise` does, on all bands where noise drowns the slopes: (B,) its `share` in their energy."""
    is_drowned = share > DROWNED
    clean = image
    for bands, chosen in ((BANDS, ~is_drowned), (BANDS_OF_DROWNED, is_drowned)):
        index = torch.nonzero(chosen)[:, 0]
        if len(index) == 0:
            continue
        of_guide = take(guide, index)
        of_image = of_guide if guide is image else take(image, index)  # which saves half of the work
        found = denoise(of_image, of_guide, guide_sigma[index], bands=bands)
        clean = found if len(index) == len(image) else clean.index_copy(0, index, found)
    return clean


def _neighbours(image: Tensor) -> Tensor:
    """Return the mean of each pixel's neighbourhood without the pixel itself, whose noise it does not share.

    What gain is told from the noisy pixel itself comes out too small, by the noise's share of its variance. The
    neighbours are an instrumental variable (Fuller, "Measurement error models", 1987, section 1.4).
    """
    centre = (6 / 16) ** 2
    return (smooth(image, 1) - centre * image) / (1 - centre)


def on_all_pixels(problem: DirectProblem, src: Level, state: Alignment) -> tuple[DirectProblem, Alignment]:
    """Return a problem on all pixels of src for pairs that drown in noise, and the state with their gain.

    The steepest pixels of noisy images are steep by their noise, and tell too small a gain.

    Args:
        problem: of a part of the pixels.
        src: source images of the pairs.
        state: an alignment that is good to a fraction of a pixel.
    """
    whole = problem.on_all_pixels(src)
    if not problem.freedom.light:
        return whole, state
    told = replace(whole.template, brightness=_neighbours(src.image).flatten(1))
    return whole, undo_attenuation(replace(whole, template=told), src, state)


def undo_attenuation(problem: DirectProblem, src: Level, state: Alignment) -> Alignment:
    """Return the state with the gain and bias that noise in src does not lessen, for the pairs that drown in it.

    The least cost is at too small a gain, which leaves a part of src itself in the residual.

    Args:
        problem: whose template `refine_template_at` made.
        src: source images of the pairs.
        state: an alignment that is good to a fraction of a pixel.
    """
    index = torch.nonzero(noise_share(problem.template, src.noise) > DROWNED)[:, 0]
    if len(index) == 0:
        return state
    part, start = problem.select(index), state.select(index)
    value, seen = part.read_dst(start.dst_homo_src)
    count = seen.sum(-1).clamp_min(1)

    def centred(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.where(seen, values, 0.0).sum(-1, dtype=torch.float64) / count
        return torch.where(seen, values - mean[:, None].to(values), 0.0), mean

    (around, _), (src_value, src_mean), (dst_value, dst_mean) = map(
        centred, (part.template.brightness, part.template.value, value)
    )
    told = (around * src_value).sum(-1, dtype=torch.float64)
    gain = (around * dst_value).sum(-1, dtype=torch.float64) / told
    known = (told > LEAST_TOLD * src_value.square().sum(-1, dtype=torch.float64)) & (gain > start.gain)
    gain = torch.where(known, gain, start.gain)
    bias = torch.where(known, dst_mean - gain * src_mean, start.bias)
    return state.put(index, Alignment(start.dst_homo_src, gain, bias))


def noise_share(template: Template, sigma: Tensor) -> Tensor:
    """Return (B,) float64, the share of noise of (B,) `sigma` in the energy of the template's slopes."""
    stride = max(1, template.slope.shape[-1] // ENERGY_POINTS) | 1
    if kernels.serves(template.slope):
        energy = kernels.mean_square(template.slope.flatten(0, 1), stride).view(-1, 2).mean(-1)
    else:
        energy = template.slope[..., ::stride].flatten(1).square().mean(-1).double()
    return sigma.square() / (2 * energy / template.half_side**2)


def _merge(
    problem: DirectProblem, image: Tensor, state: Alignment, src_noise: Tensor, dst_noise: Tensor, loss_width: float
) -> tuple[Tensor, Tensor]:
    """Average src and the aligned dst where they agree.

    Returns:
        image: (B, 1, H, W).
        sigma: (B,) its noise.
    """
    # Half the squared step of 8-bit rounding keeps noise-free images finite.
    src_variance, dst_variance = src_noise.square() + 1e-6, dst_noise.square() + 1e-6
    share = src_variance / (src_variance + dst_variance)
    if kernels.serves(image):
        value, seen = problem.read_dst(state.dst_homo_src)
        light = torch.stack([state.gain, state.bias, share, problem.scale_floor], dim=-1)
        merged, scale = kernels.merge(
            image.flatten(1), problem.template.value, value, seen, light, loss_width=loss_width, samples=SCALE_SAMPLES
        )
    else:
        residual, seen = problem.evaluate(state)
        scale = robust_scale(residual, seen, problem.scale_floor)
        weight = cauchy_weight(residual, loss_width * scale)
        correction = weight.mul_(residual) * (share / state.gain)[:, None].to(residual)
        merged = image.flatten(1) + correction
    # A texture that looks like noise to `noise_level` is the same in both images.
    seen_noise = (scale / state.gain).square() * share * (1 - share)
    sigma = torch.fmin(share * dst_variance, seen_noise).sqrt()
    return merged.view_as(image), sigma


def spline_level(dst: Level) -> Level:
    """Return a level of spline coefficients; masked pixels do not ring into the others."""
    if dst.mask is None:
        return Level(spline_coefficients(dst.image), None)
    near = smooth(dst.mask, 1)
    share = smooth(near, 2) if min(image_size(dst.image)) > 8 else dst.mask
    around = smooth(smooth(dst.image * dst.mask, 1), 2) / share.clamp_min(1e-3) if share is not dst.mask else dst.image
    mask = (near > ALL_OF_IT).to(dst.mask.dtype)
    return Level(spline_coefficients(torch.where(dst.mask > 0.5, dst.image, around)), mask)
