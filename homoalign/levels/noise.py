"""How noisy an image is, and what it would show without the noise.

The noise-free gradient makes the most of noisy residuals: weights other than the true gradient, its noise among them,
widen the error of an alignment. So the template is split into bands, one a scale (the undecimated transform of Starck,
Murtagh and Bijaoui, "Image processing and data analysis", 1998), and each band is weighted by how much of its
local energy is not noise (Lee, "Digital image enhancement and noise filtering by use of local statistics", PAMI 1980).

B pairs, H W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from homoalign import kernels

BAND_NOISE = (0.7961, 0.0405, 0.00714)
"""Variance of each band of white noise of variance one, finest first."""

CERTAIN = 2.0
"""Local energy counts as signal beyond this many times that of the noise: flat parts must come out flat."""

QUANTISATION = 0.29 / 255
"""Least noise, the rounding of eight bits."""

UNEXPLAINED = 2.3
"""Residuals this many times the noise, with the light fitted, are blur, depth or another sensor, not noise."""

LEVEL_SAMPLES = 8192
"""Pixels, about, that a noise level is read from; its own error is then below 2 %."""


def noise_level(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Estimate the standard deviation of an image's white noise.

    From the median of a second difference along both axes, which slopes and straight edges do not enter (after
    Immerkaer, "Fast noise variance estimation", CVIU 1996); fine texture does, and counts as noise.

    Args:
        image: (B, 1, H, W) float, sides of at least 3.
        mask: (B, 1, H, W), 0 where a pixel is not to be looked at; None: all are, as where nothing is left.

    Returns:
        (B,) float64, in the image's units.
    """
    height, width = image.shape[-2:]
    step = max(1, (height - 2) * (width - 2) // LEVEL_SAMPLES)
    # Six is the norm of the kernel [1, -2, 1] x [1, -2, 1].
    to_deviation = 1.4826 / 6
    if mask is None and kernels.serves(image):
        return kernels.median_second_difference(image[:, 0], step) * to_deviation
    rows = torch.arange(0, height - 2, step, device=image.device)

    def three_rows(values: Tensor) -> list[Tensor]:
        return [values[:, 0].index_select(1, rows + i) for i in range(3)]

    above, here, below = three_rows(image)
    across = above + below - 2 * here
    second = across[..., :-2] + across[..., 2:] - 2 * across[..., 1:-1]
    magnitude = second.abs().flatten(1)
    if mask is not None:
        whole = torch.stack(three_rows(mask)).amin(0)
        counted = (torch.stack([whole[..., :-2], whole[..., 1:-1], whole[..., 2:]]).amin(0) > 0).flatten(1)
        counted |= ~counted.any(-1, keepdim=True)
        masked = torch.where(counted, magnitude, torch.nan).nanmedian(-1).values
        return masked.double() * to_deviation
    return magnitude.median(-1).values.double() * to_deviation


def residual_noise(src: Tensor, dst: Tensor, gain: Tensor) -> Tensor:
    """Return (B,) float64, the standard deviation that noise alone gives dst - gain * src.

    Args:
        src: (B,) noise of src.
        dst: (B,) noise of dst.
        gain: (B,).
    """
    return torch.hypot(gain * src.clamp_min(QUANTISATION), dst.clamp_min(QUANTISATION))


def denoise(image: Tensor, guide: Tensor, guide_sigma: Tensor, *, bands: int = len(BAND_NOISE)) -> Tensor:
    """Take white noise away, band by band, keeping what stands out of it locally.

    Args:
        image: (B, 1, H, W) float.
        guide: (B, 1, H, W), what the local energies are read from: the image itself, or one like it with less noise.
        guide_sigma: (B,) standard deviation of the guide's noise, in the image's units.
        bands: how many, from the finest on; the rest stays as it is.

    Returns:
        (B, 1, H, W).
    """
    variance = guide_sigma.square().to(image)
    kept = torch.zeros_like(image)
    for scale, gain in enumerate(BAND_NOISE[:bands]):
        hole = 2**scale
        if 4 * hole >= min(image.shape[-2:]):
            break
        coarser = smooth(image, hole)
        coarser_guide = coarser if guide is image else smooth(guide, hole)
        energy = smooth(smooth(_squared(guide, coarser_guide), hole), 2 * hole)
        _keep_band(image, coarser, energy, gain * variance, kept)
        image, guide = coarser, coarser_guide
    return kept.add_(image)


def _squared(fine: Tensor, coarse: Tensor) -> Tensor:
    """Return (fine - coarse)^2."""
    if kernels.serves(fine):
        return kernels.squared_difference(fine[:, 0], coarse[:, 0])[:, None]
    return (fine - coarse).square()


def _keep_band(image: Tensor, coarser: Tensor, energy: Tensor, noise_energy: Tensor, kept: Tensor) -> None:
    """Add to `kept` what of image - coarser is signal, by how precisely it tells the motion: signal over both.

    Args:
        image: (B, 1, H, W).
        coarser: likewise.
        energy: likewise, local mean square of the band.
        noise_energy: (B,) of noise, that is to be expected in it.
        kept: (B, 1, H, W).
    """
    noise = noise_energy.clamp_min(1e-20)
    if kernels.serves(image):
        kernels.keep_band(image[:, 0], coarser[:, 0], energy[:, 0], noise, CERTAIN, kept[:, 0])
        return
    noise = noise[:, None, None, None]
    signal = torch.sub(energy, noise, alpha=CERTAIN).clamp_min_(0)
    kept.addcmul_(image - coarser, signal.div_(signal + noise))


def smooth(image: Tensor, hole: int) -> Tensor:
    """Blur (B, 1, H, W) with [1, 4, 6, 4, 1] / 16 on every `hole`-th pixel, mirrored at the borders."""
    if kernels.serves(image):
        return kernels.smooth(image[:, 0], hole)[:, None]
    for dim in (-2, -1):
        ends = (2 * hole, 2 * hole, 0, 0) if dim == -1 else (0, 0, 2 * hole, 2 * hole)
        padded = pad(image, ends, mode="reflect")
        tap = [padded.narrow(dim, i * hole, image.shape[dim]) for i in range(5)]
        image = (tap[0] + tap[4]).add_(tap[1] + tap[3], alpha=4).add_(tap[2], alpha=6).mul_(1 / 16)
    return image
