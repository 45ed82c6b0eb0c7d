"""Turned images correlated with dst at all shifts, and the best few of these.

Masked normalised cross-correlation by FFT (Padfield, "Masked object registration in the Fourier domain", TIP 2012). An
image turned by 180 degrees has the spectrum of the image at opposite frequencies, but for a shift, so that half a round
of rotations is transformed and not a whole one; and two real maps come of one complex transform.

B pairs, R rotations, M harmonics, H W rows and columns of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from homoalign import kernels
from homoalign.homography import image_size
from homoalign.levels.fourier import fast_length
from homoalign.levels.structure import Structure

CANVAS_SIDE_PX = 64
"""Geometric mean of the sides of both canvases; where one image shows less of the scene, its canvas is smaller."""

PEAK_RADIUS_PX = 2


@dataclass(frozen=True, slots=True)
class Turned:
    """Structure of the source images, turned.

    Attributes:
        channels: (B, R, M, H, W) complex64, one of each harmonic; their squares' mean is about 1.
        usable: (B, R, H, W) float32 in [0, 1].
        with_half_turns: whether each stands for itself turned by 180 degrees, too. Harmonics are even: that moves
            their pixels, and changes nothing else.
    """

    channels: Tensor
    usable: Tensor
    with_half_turns: bool


def best_shifts(
    src: Turned, dst: Structure, *, min_overlap: float, least_side: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Correlate at all shifts, and find the best few of each rotation.

    Args:
        src: turned.
        dst: not turned.
        min_overlap: canvas pixels.
        least_side: share of a side; shifts that overlap by less along it may wrap around. `min_overlap` should rule
            most of them out.
        count: K, of each rotation.

    Returns:
        score, x, y: (B, R, K) each, with half turns (B, 2 R, K), these last; x and y are shifts of the turned src,
            canvas pixels.
    """
    src_size, dst_size = image_size(src.usable), image_size(dst.usable)
    size = tuple(fast_length(a + b - int(least_side * min(a, b))) for a, b in zip(src_size, dst_size, strict=True))
    dst_channels = as_complex(dst.channels)
    of_src, of_dst = (torch.fft.fft2(channels, s=size) for channels in (src.channels, dst_channels))
    agreement = torch.fft.ifft2(cross_spectra(of_src, of_dst, with_half_turns=src.with_half_turns))
    src_windows, dst_windows = (
        torch.fft.fft2(torch.complex(_energy(channels), usable), s=size)
        for channels, usable in ((src.channels, src.usable), (dst_channels, dst.usable[:, 0]))
    )
    windows = window_spectra(src_windows, dst_windows, with_half_turns=src.with_half_turns)
    energies, overlap = (torch.fft.ifft2(spectra) for spectra in windows)
    score, at = best_of_maps(agreement, overlap, energies, min_overlap=min_overlap, count=count)
    y, x = torch.div(at, size[1], rounding_mode="floor"), at % size[1]
    if src.with_half_turns:  # a spectrum at opposite frequencies is that of an image turned about its first pixel
        y[:, len(src.usable[0]) :] -= src_size[0] - 1
        x[:, len(src.usable[0]) :] -= src_size[1] - 1
    x, y = (_unwrapped(shift, dst_size[k], size[k]) for shift, k in ((x, 1), (y, 0)))
    return score, x, y


def _unwrapped(shift: Tensor, extent: int, period: int) -> Tensor:
    """Return the shifts, up to a period, that are less than the extent of dst."""
    unwrapped: Tensor = (shift - extent) % period + (extent - period)
    return unwrapped


def as_complex(channels: Tensor) -> Tensor:
    """Join the cosines and sines of (..., C, H, W) to (..., C / 2, H, W) complex64."""
    return torch.complex(channels[..., 0::2, :, :], channels[..., 1::2, :, :])


def _energy(channels: Tensor) -> Tensor:
    """Return (..., H, W), the sum of squares of (..., M, H, W) complex64 channels."""
    both = torch.view_as_real(channels).square().sum(-4)  # five times as fast as by `abs`
    return both[..., 0] + both[..., 1]


def cross_spectra(src: Tensor, dst: Tensor, *, with_half_turns: bool) -> Tensor:
    """Multiply spectra.

    Args:
        src: (B, R, M, H, W) complex64, of turned channels.
        dst: (B, M, H, W) complex64.
        with_half_turns: whether src stands for itself at opposite frequencies, too.

    Returns:
        (B, R, H, W) complex64, the spectrum of maps whose real part is the sum of products at every shift; with half
        turns the imaginary part is that for these.
    """
    if kernels.serves(src, torch.complex64):
        return kernels.turned_cross_spectra(src, dst, with_half_turns=with_half_turns)
    dst = dst[:, None]
    products = (src.conj() * dst).sum(2)
    if not with_half_turns:
        return products
    turned = (_opposite(src).conj() * dst).sum(2)
    return _of_real_part(products) + 1j * _of_real_part(turned)


def window_spectra(src: Tensor, dst: Tensor, *, with_half_turns: bool) -> tuple[Tensor, Tensor]:
    """Multiply spectra of what is seen where both images are.

    Args:
        src: (B, R, H, W) complex64, of maps whose real part is the energy, and whose imaginary part is what is usable.
        dst: (B, H, W) complex64, likewise.
        with_half_turns: whether src stands for itself at opposite frequencies, too.

    Returns:
        energies: (B, R, H, W) complex64, the spectrum of maps whose real part is the energy of src under dst, and whose
            imaginary part that of dst under src; with half turns (B, 2 R, H, W), these last.
        overlap: (B, R, H, W) complex64, of maps whose real part is the overlap in pixels; with half turns the imaginary
            part is that for these.
    """
    if kernels.serves(src, torch.complex64):
        return kernels.window_spectra(src, dst, with_half_turns=with_half_turns)
    energy, usable, dst_energy, dst_usable = (
        _of_real_part(part) for windows in (src, dst[:, None]) for part in (windows, -1j * windows)
    )
    energies = energy.conj() * dst_usable + 1j * usable.conj() * dst_energy
    overlap = usable.conj() * dst_usable
    if with_half_turns:
        energies = torch.cat([energies, energy * dst_usable + 1j * usable * dst_energy], dim=1)
        overlap = overlap + 1j * usable * dst_usable
    return energies, overlap


def _opposite(spectrum: Tensor) -> Tensor:
    """Return the values at opposite frequencies."""
    return spectrum.flip((-2, -1)).roll((1, 1), (-2, -1))


def _of_real_part(spectrum: Tensor) -> Tensor:
    """Return the spectrum of the real part of what has this spectrum."""
    return (spectrum + _opposite(spectrum).conj()) / 2


def best_of_maps(
    agreement: Tensor, overlap: Tensor, energies: Tensor, *, min_overlap: float, count: int
) -> tuple[Tensor, Tensor]:
    """Find the highest peaks of correlation maps, which go on at their other end.

    Args:
        agreement: (B, R, H, W) complex64, whose real part is the sum of products at every shift.
        overlap: (B, R, H, W) complex64, whose real part is the overlap, canvas pixels.
        energies: (B, R, H, W) complex64, of src and of dst where they overlap; or (B, 2 R, H, W), and the imaginary
            parts of the others belong to the second half.
        min_overlap: canvas pixels.
        count: K, of each map.

    Returns:
        score: (B, R or 2 R, K), best first; -1 where there are not as many peaks.
        at: likewise, int64 flat indices into the maps.
    """
    if kernels.serves(overlap, torch.complex64):
        settings = {"unit": CANVAS_SIDE_PX, "radius": PEAK_RADIUS_PX, "count": count}
        return kernels.best_shifts(agreement, overlap, energies, min_overlap=min_overlap, **settings)
    if energies.shape[1] > overlap.shape[1]:
        agreement, overlap = (torch.cat([maps.real, maps.imag], dim=1) for maps in (agreement, overlap))
    energy = energies.real.clamp_min(kernels.LEAST_ENERGY) * energies.imag.clamp_min(kernels.LEAST_ENERGY)
    score = agreement.real * (overlap.real.clamp_min(0) / energy).sqrt() / CANVAS_SIDE_PX
    score = torch.where(overlap.real > min_overlap, score, -1.0)
    around = max_pool2d(pad(score, (PEAK_RADIUS_PX,) * 4, mode="circular"), 2 * PEAK_RADIUS_PX + 1, stride=1)
    best = torch.where(score >= around, score, -1.0).flatten(2).topk(count, dim=-1)
    return best.values, best.indices
