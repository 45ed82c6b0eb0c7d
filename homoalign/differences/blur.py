"""Pairs of unlike sharpness: which image is the blurrier, by what kernel, and the other one blurred alike.

Defocus and motion leave a residual at every edge, far above noise, that pulls at an alignment by whatever edges there
happen to be. It goes where the sharper image is blurred as the other one is. The kernel is told from both, aligned, by
the normal equations of a linear filter (Wiener and Hopf; from correlations, as in Makhoul, "Linear prediction", Proc.
IEEE 1975). Only its even part is taken: that moves nothing, wherever the alignment is.

B pairs, N points, H W rows and columns, K taps a side.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from homoalign.differences.photometry import Light, apply_light
from homoalign.homography import image_size
from homoalign.levels.box import box
from homoalign.levels.fourier import fast_length
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.template import centred

REACHES = (2, 4, 8)
"""Details are what a pixel differs by from the mean of four pixels so far away; nearer ones drown in noise, or in what
compression leaves."""

POINTS = 2048
"""About how many pixels tell who is the blurrier."""

LEAST_LOST = 0.18
"""Share of its details that an image has to lose; a Gaussian of sigma 0.6 blurs as much, and less does no harm..."""

CERTAIN = 6.0
"""... and how many standard deviations of that share it is to be."""

RADIUS = 10
"""Of the kernel, pixels; sigma 4 has next to all of its weight in it."""

HIGH_PASS = 12
"""Slower changes than over about so many radii are light, not blur."""

ESTIMATION_SIDE_PX = 1024
"""Of larger images the middle tells the kernel."""

RIDGE = 1e-3
MOST_RIDGES = 5
"""The ridge grows tenfold, so many are tried at most, until the equations are positive: noise is taken out of them."""

OUTSIDE = 0.02
"""Share of the kernel's weight that may come from beyond the border, or from under a mask."""

ALL_OF_IT = 0.999
"""Of a mean over a square whose pixels all are 1."""

ROWS_AT_A_TIME = 512
"""Are blurred of larger images."""


def compare_sharpness(problem: DirectProblem, src: Level, light: Light, state: Alignment, gain: Tensor) -> Tensor:
    """Tell which image of a pair is the blurrier.

    To first order a blurred image is short of a share of its details, and the residual is that share. Noise in src is
    in both, and taken out. (Where src is the blurrier, its own details tell less.)

    Args:
        problem: of the full-size images, dst read by a spline: other ways blur it.
        src: source images.
        light: of dst, where it is more than a gain and a bias.
        state: alignments on top of it that are good to a fraction of a pixel.
        gain: (B,) of dst over src, on the whole.

    Returns:
        (B,) int64: 1 where dst is, -1 where src is, 0 where neither is for certain.
    """
    some = _on_grid(problem, src, light)
    residual, seen = some.evaluate(state)
    height, width = image_size(src.image)
    intensity, chosen = src.image.flatten(1), some.template.chosen
    x, y = chosen % width, torch.div(chosen, width, rounding_mode="floor")
    noise = (gain * src.noise).square()
    gain = gain[:, None].to(residual)
    blurrier, most = torch.zeros_like(chosen[:, 0]), torch.zeros_like(noise)
    for reach in REACHES:
        inside = seen * ((x >= reach) & (x < width - reach) & (y >= reach) & (y < height - reach))
        beside = [(chosen + reach * step).clamp(0, height * width - 1) for step in (1, -1, width, -width)]
        if src.mask is not None:
            inside = inside * torch.stack([src.mask.flatten(1).gather(1, at) for at in beside]).amin(0)
        around = torch.stack([intensity.gather(1, at) for at in beside]).mean(0)
        detail = gain * (intensity.gather(1, chosen) - around) * inside
        both = detail * residual
        lost = -both.sum(-1, dtype=torch.float64) - noise * inside.sum(-1)
        certainty = lost / both.square().sum(-1, dtype=torch.float64).sqrt()
        is_sure = (lost.abs() > LEAST_LOST * detail.square().sum(-1)) & (certainty.abs() > CERTAIN)
        better = is_sure & (certainty.abs() > most)
        blurrier = torch.where(better, certainty.sign().long(), blurrier)
        most = torch.where(better, certainty.abs(), most)
    return blurrier


def _on_grid(problem: DirectProblem, src: Level, light: Light) -> DirectProblem:
    """Return the problem of an even grid of pixels, in dst's light: the steepest ones are steep by their noise, too."""
    height, width = image_size(src.image)
    step = max(1, int((height * width / POINTS) ** 0.5))
    rows, columns = (torch.arange(step // 2, side, step, device=src.image.device) for side in (height, width))
    at = (rows[:, None] * width + columns).flatten()
    value = src.image.flatten(1)[:, at]
    usable = torch.ones_like(value, dtype=torch.bool) if src.mask is None else src.mask.flatten(1)[:, at] > 0.5
    chosen = at.expand(len(value), -1)
    u = centred(chosen, height, width)
    template = replace(
        problem.template,
        chosen=chosen,
        u=u,
        value=value,
        slope=torch.zeros_like(u),
        brightness=value,
        usable=usable,
        is_whole=False,
        grid=None,
    )
    return replace(problem, template=apply_light(template, light))


def even_kernel(sharp: Tensor, blurred: Tensor, usable: Tensor, noise: Tensor) -> Tensor:
    """Tell by what kernel a sharp image becomes a blurred one.

    Args:
        sharp: (B, 1, H, W).
        blurred: (B, 1, H, W), aligned to it.
        usable: (B, 1, H, W) float, 1 where both count.
        noise: (B,) standard deviation of sharp's noise.

    Returns:
        (B, K, K) float64, even, of sum 1; NaN where nothing tells it.
    """
    images = [_middle(image) for image in (sharp, blurred, usable)]
    # One by one: transforms of many may round otherwise.
    pairs = [[values[i : i + 1] for values in (*images, noise)] for i in range(len(sharp))]
    return torch.cat([_even_kernel(*pair) for pair in pairs])


def _even_kernel(sharp: Tensor, blurred: Tensor, usable: Tensor, noise: Tensor) -> Tensor:
    """Do what `even_kernel` does, of the middle of one pair."""
    radius = max(1, min(RADIUS, (min(image_size(sharp)) - 3) // 4))
    # What a kernel would take from beyond says nothing; a soft edge has no details of its own.
    inner = (box(usable, radius) > ALL_OF_IT).to(usable)
    window = box(inner, radius)
    at, given = (_high_passed(image, usable) * window for image in (sharp, blurred))
    size = [fast_length(side + 2 * radius + 1, step=2) for side in image_size(sharp)]
    of_sharp, of_blurred, of_window = (torch.fft.rfft2(image[:, 0].double(), s=size) for image in (at, given, window))

    def correlation(a: Tensor, b: Tensor, reach: int) -> Tensor:  # (B, 2 reach + 1, 2 reach + 1)
        found: Tensor = torch.fft.irfft2(a.conj() * b, s=size)
        return found.roll((reach, reach), dims=(-2, -1))[:, : 2 * reach + 1, : 2 * reach + 1]

    counts = correlation(of_window, of_window, 2 * radius).clamp_min(1.0)
    own = correlation(of_sharp, of_sharp, 2 * radius) / counts
    centre = counts[:, radius : 3 * radius + 1, radius : 3 * radius + 1]
    both = correlation(of_sharp, of_blurred, radius) / centre
    both = (both + both.flip(-2, -1)) / 2
    own[:, 2 * radius, 2 * radius] -= noise.square()
    kernel = _solve(own, both)
    whole: Tensor = kernel.sum((-2, -1), keepdim=True)
    return kernel / whole


def blur_level(level: Level, kernel: Tensor) -> Level:
    """Blur images by even (B, K, K) kernels; what these would need from beyond the border or a mask is masked."""
    known = torch.ones_like(level.image) if level.mask is None else (level.mask > 0.5).to(level.image)
    pairs = range(len(kernel))
    inside = torch.cat([box(known[i : i + 1], _reach(kernel[i])) for i in pairs]) > ALL_OF_IT
    image = torch.cat([_convolved(level.image[i : i + 1], kernel[i].to(level.image)) for i in pairs])
    noise = level.noise * kernel.square().sum((-2, -1)).sqrt()
    return Level(image, inside.to(known), noise)


def _reach(kernel: Tensor) -> int:
    """Return the radius of the square that all but `OUTSIDE` of a (K, K) kernel's weight lies in."""
    middle, weight = kernel.shape[-1] // 2, kernel.abs()
    inside = [float(weight[middle - r : middle + r + 1, middle - r : middle + r + 1].sum()) for r in range(middle + 1)]
    return next(r for r, share in enumerate(inside) if share >= (1 - OUTSIDE) * inside[-1])


def _convolved(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolve (1, 1, H, W) with (K, K), mirrored at the borders, so many rows at a time as memory is glad of."""
    radius, (height, width) = kernel.shape[-1] // 2, image_size(image)
    around = pad(image, (radius,) * 4, mode="reflect")[:, 0]
    rows = min(ROWS_AT_A_TIME, height)
    size = [fast_length(side + 4 * radius, step=2) for side in (rows, width)]
    of_kernel = torch.fft.rfft2(kernel, s=size)
    parts = []
    for top in range(0, height, rows):
        part = torch.fft.rfft2(around[:, top : top + rows + 2 * radius], s=size)
        found = torch.fft.irfft2(part * of_kernel, s=size)[:, 2 * radius :, 2 * radius : 2 * radius + width]
        parts.append(found[:, : min(rows, height - top)])
    return torch.cat(parts, dim=1)[:, None]


def _solve(own: Tensor, both: Tensor) -> Tensor:
    """Return (B, K, K) even kernels, of the autocorrelation (B, 2K - 1, 2K - 1) and the even (B, K, K) correlation.

    In the even kernels' orthonormal basis: a tap and its opposite, by the root of two, and the middle one.
    """
    side = both.shape[-1]
    at = torch.arange(side, device=own.device)
    half = side * side // 2 + 1  # up to the middle one
    y, x = (index.flatten()[:half] for index in torch.meshgrid(at, at, indexing="ij"))
    down, across = y[:, None] - y, x[:, None] - x
    up, back = y[:, None] - (side - 1 - y), x[:, None] - (side - 1 - x)
    size = both.new_full((half,), 2**0.5)
    size[-1] = 1
    matrix = own[:, down + side - 1, across + side - 1] + own[:, up + side - 1, back + side - 1]
    matrix = matrix * (size[:, None] * size) / 2
    asked = (both.flatten(1)[:, :half] * size)[..., None]
    eye, energy = torch.eye(half, dtype=own.dtype, device=own.device), own[:, side - 1, side - 1].abs()
    found = torch.full_like(asked, torch.nan)
    for power in range(MOST_RIDGES):
        ridge = (RIDGE * 10**power * energy)[:, None, None]
        factor, info = torch.linalg.cholesky_ex(matrix + ridge * eye)
        is_first = (info == 0) & found.isnan().any(1)[:, 0]
        found = torch.where(is_first[:, None, None], torch.cholesky_solve(asked, factor), found)
        if not bool(found.isnan().any()):
            break
    taps = found[..., 0] / size
    return torch.cat([taps, taps[:, :-1].flip(-1)], dim=-1).view_as(both)


def _middle(image: Tensor) -> Tensor:
    """Return the middle of (B, 1, H, W) images."""
    starts = [max(0, side - ESTIMATION_SIDE_PX) // 2 for side in image_size(image)]
    return image[..., starts[0] : starts[0] + ESTIMATION_SIDE_PX, starts[1] : starts[1] + ESTIMATION_SIDE_PX]


def _high_passed(image: Tensor, usable: Tensor) -> Tensor:
    """Take the neighbourhoods' means from what is usable of (B, 1, H, W) images; the rest is 0."""
    share = box(usable, HIGH_PASS).clamp_min(1e-3)
    return (image - box(image * usable, HIGH_PASS) / share) * usable
