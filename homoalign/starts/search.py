"""An exhaustive coarse search over rotation, scale and translation: where the solver may start.

Every rotation and scale of a grid is tried at all translations at once: masked normalised cross-correlation by FFT
(Padfield, "Masked object registration in the Fourier domain", TIP 2012) of the structure channels, on canvases of
about 64 pixels a side. A rotated image's channels are the rotated channels of the image, turned by their harmonic of
the angle, so that they are computed once a scale.

B pairs, R rotations, M harmonics, H W rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool2d

from homoalign import kernels
from homoalign.config import AlignConfig
from homoalign.homography import image_size
from homoalign.levels.fourier import fast_length
from homoalign.levels.pyramid import Level
from homoalign.levels.structure import CHANNELS, HARMONICS, Structure, describe
from homoalign.optimisation.schedule import MOTION_PARAMETERS

CANVAS_SIDE_PX = 64
"""Geometric mean of the sides of both canvases; where one image shows less of the scene, its canvas is smaller."""

LONGEST_CANVAS_PX = 256
"""No side of a canvas is longer. Only strips ask for more, and those of 100 : 1 for gigabytes and minutes."""

ROTATION_STEP_DEG = 10.0
SCALE_STEP = 2**0.4

LEAST_OVERLAP = 0.15
"""Of the smaller canvas; a smaller overlap agrees too easily by chance."""

PEAKS_PER_ROTATION = 3
PEAK_RADIUS_PX = 2


@dataclass(frozen=True, slots=True)
class Canvas:
    """Images resampled for one scale of the search.

    Attributes:
        structure: their channels.
        full_homo_canvas: (3, 3) float64, canvas pixels to full-size pixels.
    """

    structure: Structure
    full_homo_canvas: Tensor


def search_similarities(src: list[Level], dst: list[Level], config: AlignConfig, *, keep: int) -> tuple[Tensor, Tensor]:
    """Find the similarities under which the structure of src agrees best with that of dst.

    Args:
        src: pyramid of the source images, full size first.
        dst: pyramid of the destination images.
        config: bounds the search; so does its model of motion.
        keep: how many to return a pair.

    Returns:
        dst_homo_src: (B, keep, 3, 3) float64, full-size pixels, best first.
        score: (B, keep) float64, correlation times the square root of the overlap in canvas pixels, over
            CANVAS_SIDE_PX; entries that the grid is too small to fill have -1.
    """
    matrices, scores = [], []
    may_turn, may_scale = (MOTION_PARAMETERS[config.model] >= MOTION_PARAMETERS[k] for k in ("euclidean", "similarity"))
    rotations = _rotations(config.search_max_rotation_deg if may_turn else 0.0, src[0].image.device)
    src_side, dst_side = (math.sqrt(math.prod(image_size(pyramid[0].image))) for pyramid in (src, dst))
    of_frames = dst_side / src_side if may_scale else 1.0
    for scale in _scales(config.search_max_scale if may_scale else 1.0):
        found, score = _search_scale(src, dst, scale * of_frames, rotations)
        matrices.append(found)
        scores.append(score)
    score, matrix = torch.cat(scores, dim=1), torch.cat(matrices, dim=1)
    score, order = score.topk(min(keep, score.shape[1]), dim=1)
    return matrix.gather(1, order[..., None, None].expand(-1, -1, 3, 3)), score.double()


def _scales(largest: float) -> list[float]:
    """Return scales from 1 / largest to largest, geometrically spaced and symmetric about 1."""
    steps = math.ceil(math.log(largest) / math.log(SCALE_STEP) - 1e-9)
    return [largest ** (k / steps) for k in range(-steps, steps + 1)] if steps else [1.0]


def _rotations(largest_deg: float, device: torch.device) -> Tensor:
    """Return (R,) angles from -largest to largest, radians; all of them once where it is 180 degrees or more."""
    largest_deg = min(largest_deg, 180.0)
    steps = math.ceil(largest_deg / ROTATION_STEP_DEG - 1e-9)
    if largest_deg >= 180:
        return torch.arange(-steps, steps, dtype=torch.float64, device=device) * (math.pi / steps)
    return torch.arange(-steps, steps + 1, dtype=torch.float64, device=device) * (
        math.radians(largest_deg) / max(steps, 1)
    )


def _search_scale(src: list[Level], dst: list[Level], dst_per_src: float, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Search all rotations and translations at one scale.

    Returns:
        dst_homo_src: (B, R * PEAKS_PER_ROTATION, 3, 3) float64, full-size pixels.
        score: (B, R * PEAKS_PER_ROTATION).
    """
    src_side, dst_side = (math.sqrt(math.prod(image_size(pyramid[0].image))) for pyramid in (src, dst))
    # No canvas is finer than its image.
    src_pitch = max(math.sqrt(src_side * dst_side / dst_per_src) / CANVAS_SIDE_PX, 1, 1 / dst_per_src)
    # A strip's is turned, and padded to a square, at every angle.
    src_longest, dst_longest = (max(image_size(pyramid[0].image)) for pyramid in (src, dst))
    src_pitch = max(src_pitch, src_longest / LONGEST_CANVAS_PX, dst_longest / dst_per_src / LONGEST_CANVAS_PX)
    from_src, onto_dst = _make_canvas(src, src_pitch), _make_canvas(dst, src_pitch * dst_per_src)
    channels, usable, turned_homo_src = _turn(from_src.structure, rotation)
    score, x, y = _best_shifts(channels, usable, onto_dst.structure, min_overlap=_min_overlap(from_src, onto_dst))

    batch, _, peaks = score.shape
    canvas_homo_canvas = turned_homo_src[None, :, None].repeat(batch, 1, peaks, 1, 1)
    canvas_homo_canvas[..., 0, 2] += x
    canvas_homo_canvas[..., 1, 2] += y
    canvas_homo_full = torch.linalg.inv_ex(from_src.full_homo_canvas).inverse
    matrix = onto_dst.full_homo_canvas @ canvas_homo_canvas @ canvas_homo_full
    return matrix.flatten(1, 2), score.flatten(1)


def _min_overlap(a: Canvas, b: Canvas) -> float:
    return LEAST_OVERLAP * min(math.prod(image_size(canvas.structure.channels)) for canvas in (a, b))


def _make_canvas(pyramid: list[Level], pitch: float) -> Canvas:
    """Resample images such that a canvas pixel is `pitch` full-size pixels wide, and describe them."""
    height, width = image_size(pyramid[0].image)
    rows, columns = max(6, round(height / pitch)), max(6, round(width / pitch))
    level = min(len(pyramid) - 1, math.floor(math.log2(pitch) + 1e-6))
    image, mask = pyramid[level].image, pyramid[level].mask
    left, top = (width - 1 - pitch * (columns - 1)) / 2, (height - 1 - pitch * (rows - 1)) / 2
    device = image.device
    x = (torch.arange(columns, dtype=image.dtype, device=device) * pitch + left) / 2**level
    y = (torch.arange(rows, dtype=image.dtype, device=device) * pitch + top) / 2**level
    unit_x, unit_y = (2 * v / (side - 1) - 1 for v, side in ((x, image.shape[-1]), (y, image.shape[-2])))
    grid = torch.stack(torch.meshgrid(unit_x, unit_y, indexing="xy"), dim=-1).expand(len(image), -1, -1, -1)

    def resample(values: Tensor) -> Tensor:
        return grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=True)

    canvas = Level(resample(image), None if mask is None else (resample(mask) > 0.999).to(image))
    full_homo_canvas = torch.tensor([[pitch, 0, left], [0, pitch, top], [0, 0, 1]], dtype=torch.float64, device=device)
    return Canvas(describe(canvas), full_homo_canvas)


def _turn(structure: Structure, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate images about their centres onto square canvases that hold them at any angle.

    Returns:
        channels: (B, R, M, side, side) complex64, one a harmonic.
        usable: (B, R, side, side) float32 in [0, 1].
        turned_homo_src: (R, 3, 3) float64, pixels of the images to those of the square ones.
    """
    height, width = image_size(structure.usable)
    side = math.ceil(math.hypot(height, width))
    middle = (side - 1) / 2
    offset = torch.arange(side, dtype=structure.channels.dtype, device=rotation.device) - middle
    y, x = offset[:, None], offset
    cos, sin = rotation.cos(), rotation.sin()
    c, s = cos.to(offset)[:, None, None], sin.to(offset)[:, None, None]
    grid = torch.stack([(c * x + s * y) / ((width - 1) / 2), (c * y - s * x) / ((height - 1) / 2)], dim=-1)
    batch, rotations = len(structure.usable), len(rotation)
    # All rotations below one another, as one image: else each would need a copy to be read from.
    grid = grid.flatten(0, 1)[None].expand(batch, -1, -1, -1)
    images = torch.cat([structure.channels, structure.usable], dim=1)
    turned = grid_sample(images, grid, padding_mode="zeros", align_corners=True)
    turned = turned.view(batch, CHANNELS + 1, rotations, side, side).transpose(1, 2)
    harmonic = torch.tensor(HARMONICS, device=rotation.device)
    angle = (rotation[:, None] * harmonic).to(turned)  # (R, M)
    channels = _as_complex(turned[:, :, :CHANNELS]) * torch.polar(torch.ones_like(angle), angle)[..., None, None]
    turned_homo_src = torch.eye(3, dtype=torch.float64, device=rotation.device).repeat(rotations, 1, 1)
    turned_homo_src[:, 0, 0], turned_homo_src[:, 0, 1] = cos, -sin
    turned_homo_src[:, 1, 0], turned_homo_src[:, 1, 1] = sin, cos
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64, device=rotation.device)
    turned_homo_src[:, :2, 2] = middle - turned_homo_src[:, :2, :2] @ centre
    return channels, turned[:, :, CHANNELS], turned_homo_src


def _as_complex(channels: Tensor) -> Tensor:
    """Join the cosines and sines of (..., C, H, W) to (..., C / 2, H, W) complex64."""
    return torch.complex(channels[..., 0::2, :, :], channels[..., 1::2, :, :])


def _energy(channels: Tensor) -> Tensor:
    """Return (B, R, H, W), the sum of squares of (B, R, M, H, W) complex64 channels."""
    both = torch.view_as_real(channels).square().sum(2)  # five times as fast as by `abs`
    return both[..., 0] + both[..., 1]


def _best_shifts(
    channels: Tensor, usable: Tensor, dst: Structure, *, min_overlap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Correlate at all shifts, and find the best few of each rotation.

    Args:
        channels: (B, R, M, side, side) complex64 of turned src.
        usable: (B, R, side, side) of turned src.
        dst: not turned.
        min_overlap: canvas pixels.

    Returns:
        score, x, y: (B, R, PEAKS_PER_ROTATION) each; x and y are shifts of the turned src, canvas pixels.
    """
    side = channels.shape[-1]
    dst_size = image_size(dst.usable)
    # Shifts that overlap by less than a sixth of a side may wrap around: `min_overlap` rules most of them out.
    rows, columns = (fast_length(side + extent - min(side, extent) // 6, step=2) for extent in dst_size)

    def spectrum(values: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.rfft2(values, s=(rows, columns))
        return spectrum

    def correlate(a: Tensor, b: Tensor) -> Tensor:
        product: Tensor = torch.fft.irfft2(a.conj() * b, s=(rows, columns))
        return product

    dst_channels = _as_complex(dst.channels)[:, None]  # (B, 1, M, H, W)
    products = torch.fft.fft2(channels, s=(rows, columns)).conj_physical_()
    products *= torch.fft.fft2(dst_channels, s=(rows, columns))
    agreement = torch.fft.ifft2(products.sum(2))
    src_energy = spectrum(_energy(channels))
    dst_energy = spectrum(_energy(dst_channels))
    src_usable, dst_usable = spectrum(usable), spectrum(dst.usable)
    overlap = correlate(src_usable, dst_usable)
    energies = correlate(src_energy, dst_usable), correlate(src_usable, dst_energy)
    score, at = best_of_maps(agreement, overlap, energies, min_overlap=min_overlap)
    y, x = torch.div(at, columns, rounding_mode="floor"), at % columns
    y = torch.where(y >= dst_size[0], y - rows, y)
    x = torch.where(x >= dst_size[1], x - columns, x)
    return score, x, y


def best_of_maps(
    agreement: Tensor, overlap: Tensor, energies: tuple[Tensor, Tensor], *, min_overlap: float
) -> tuple[Tensor, Tensor]:
    """Find the highest peaks of correlation maps.

    Args:
        agreement: (B, R, H, W) complex64, whose real part is the sum of products at every shift.
        overlap: (B, R, H, W) canvas pixels.
        energies: of src and of dst where they overlap, (B, R, H, W) each.
        min_overlap: canvas pixels.

    Returns:
        score: (B, R, PEAKS_PER_ROTATION), best first; -1 where there are not as many peaks.
        at: likewise, int64 flat indices into the maps.
    """
    if kernels.serves(overlap):
        settings = {"unit": CANVAS_SIDE_PX, "radius": PEAK_RADIUS_PX, "count": PEAKS_PER_ROTATION}
        return kernels.best_shifts(agreement, overlap, energies, min_overlap=min_overlap, **settings)
    energy = energies[0].clamp_min(kernels.LEAST_ENERGY) * energies[1].clamp_min(kernels.LEAST_ENERGY)
    score = agreement.real * (overlap.clamp_min(0) / energy).sqrt() / CANVAS_SIDE_PX
    score = torch.where(overlap > min_overlap, score, -1.0)
    around = max_pool2d(score, 2 * PEAK_RADIUS_PX + 1, stride=1, padding=PEAK_RADIUS_PX)
    best = torch.where(score >= around, score, -1.0).flatten(2).topk(PEAKS_PER_ROTATION, dim=-1)
    return best.values, best.indices
