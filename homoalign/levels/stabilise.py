"""Images whose noise grows with their brightness: few photons, speckle of radar, sonar or ultrasound.

What follows takes noise for the same everywhere. Where it is not, intensities are bent such that it is:

    f(I) = integral from 0 to I of dt / sigma(t)

(Bartlett, "The use of transformations", Biometrics 1947; for photons the square root of Anscombe, Biometrika 1948, for
speckle the logarithm), a pair's two images alike, so that a gain between them stays one for photons, and becomes a bias
for speckle. How noise follows brightness is told from both: sigma^2 = a + b I + c I^2, of a reader, photons and speckle
(Foi, Trimeche, Katkovnik and Egiazarian, "Practical Poissonian-Gaussian noise modeling and fitting for single-image
raw-data", IEEE TIP 2008, and Lee's multiplicative noise).

B pairs, H W rows and columns, K classes of brightness.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from homoalign.levels.pyramid import Level

LEAST_NOISE = 3 / 255
"""Of the noisier image: less of it needs no care."""

QUIET = 0.5
"""Of the other image's noise: an image with less adds so little to what is left that its own does not matter."""

CLASSES = 16
"""Of brightness, each with as many pixels."""

LEAST_IN_CLASS = 60
"""Pixels."""

SAMPLES = 2**14
"""Pixels, about, that noise is told from."""

LEAST_SIDE_PX = 16
"""Of images that are asked."""

AT_END = 0.5 / 255
"""Nearer than that to black or white, intensities are cut off, and their noise with them."""

FINE = 1.3
"""Noise is as strong between pixels two apart as between neighbours; up to so much stronger it may be noise."""

UNLIKE = 1.6
"""How many times the least the largest noise of the classes must be to be worth it."""

MISFIT = 0.15
"""Median share by which the classes' noise may be off the curve: beyond it the curve says nothing."""

ROUNDS = 5
"""Of telling the curve, and how much stronger dst's noise is than src's."""

FLOOR = 0.03
"""Least noise on the curve, as a share of the largest: near black no logarithm goes on forever."""

NODES = 2**16
"""Of the table that intensities are looked up in: far finer than noise that is worth it."""


@dataclass(frozen=True, slots=True)
class _Classes:
    """What one image shows of its noise, on the CPU.

    Attributes:
        brightness: (K,) float64, mean intensity of the classes.
        variance: (K,) float64, of the noise there.
    """

    brightness: Tensor
    variance: Tensor


def stabilise(src: Level, dst: Level) -> tuple[Level, Level, Tensor]:
    """Make the noise of both images the same at all intensities, where it grows with them in both alike.

    Args:
        src: full-size source images.
        dst: full-size destination images.

    Returns:
        src: whose images are bent where that is so.
        dst: likewise.
        is_bent: (B,) bool on the CPU, where that is so.
    """
    noisy = (torch.maximum(src.noise, dst.noise) > LEAST_NOISE).cpu()
    is_bent = torch.zeros_like(noisy)
    if not bool(noisy.any()):
        return src, dst, is_bent
    images = [src.image, dst.image]
    for i in torch.nonzero(noisy)[:, 0].tolist():
        one = torch.tensor([i], device=src.image.device)
        curve = _curve_of(src.select(one), dst.select(one))
        if curve is None:
            continue
        is_bent[i] = True
        images = [image.index_copy(0, one, _bend(image[one], curve)) for image in images]
    if not bool(is_bent.any()):
        return src, dst, is_bent
    return Level(images[0], src.mask), Level(images[1], dst.mask), is_bent


def _curve_of(src: Level, dst: Level) -> Tensor | None:
    """Return (3,) float64 a, b and c, of one pair's noise but for its strength; None where it is the same everywhere.

    The strength is each image's own: another exposure of the same sensor has another one.
    """
    noise = float(src.noise), float(dst.noise)
    of_images: list[_Classes] = []
    for level in [level for level, of_it in zip((src, dst), noise, strict=True) if of_it > QUIET * max(noise)]:
        classes = _classes_of(level)
        if classes is None:
            return None
        of_images.append(classes)
    brightness = torch.cat([classes.brightness for classes in of_images])
    strengths = [torch.ones((), dtype=torch.float64)] * len(of_images)
    for _ in range(ROUNDS):
        variance = [classes.variance / strength for classes, strength in zip(of_images, strengths, strict=True)]
        curve, misfit = _fit(brightness, torch.cat(variance))
        strengths = [(classes.variance / _variance(curve, classes.brightness)).median() for classes in of_images]
    least, largest = (_variance(curve, end) for end in brightness.aminmax())
    if misfit > MISFIT or not largest > UNLIKE**2 * least:
        return None
    return curve


def _classes_of(level: Level) -> _Classes | None:
    """Return what one image shows of its noise, None where that is little, or no white noise."""
    image = level.image[0, 0]
    height, width = image.shape
    if min(height, width) < LEAST_SIDE_PX:
        return None
    rows = torch.arange(2, height - 2, max(1, height * width // SAMPLES), device=image.device)
    strips = torch.stack([image[rows + i] for i in range(-2, 3)])
    usable = (strips > AT_END) & (strips < 1 - AT_END)
    if level.mask is not None:
        usable &= torch.stack([level.mask[0, 0, rows + i] for i in range(-2, 3)]) > 0
    counted = torch.nonzero(_five_columns(usable.all(0)).all(0).flatten())[:, 0]
    size = len(counted) // CLASSES
    if size < LEAST_IN_CLASS:
        return None
    shown = _five_columns(strips.mean(0)).mean(0).flatten()[counted]
    near, far = _second_difference(strips, 1), _second_difference(strips, 2)
    order = shown.argsort()[: size * CLASSES].view(CLASSES, size)
    variance, of_far = (_variance_of(some.flatten()[counted][order]) for some in (near, far))
    least, largest = variance.aminmax()
    if not least > 0 or largest < UNLIKE**2 * least or (of_far / variance).sqrt().median() > FINE:
        return None
    return _Classes(shown[order].double().mean(-1).cpu(), variance.cpu())


def _five_columns(values: Tensor) -> Tensor:
    """Return (5, R, W - 4), each pixel's neighbours in a row of (R, W), and itself."""
    return torch.stack([values[:, i : values.shape[1] - 4 + i] for i in range(5)])


def _second_difference(strips: Tensor, hole: int) -> Tensor:
    """Return (R, W - 4), [1, -2, 1] x [1, -2, 1] of every `hole`-th pixel about the middle of strips (5, R, W)."""
    columns = _five_columns(strips[2 - hole] + strips[2 + hole] - 2 * strips[2])
    return columns[2 - hole] + columns[2 + hole] - 2 * columns[2]


def _variance_of(second: Tensor) -> Tensor:
    """Return (K,) float64, the variance of white noise whose second differences along both axes are (K, N)."""
    return (second.abs().median(-1).values.double() * (1.4826 / 6)).square()


def _powers(brightness: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(brightness), brightness, brightness.square()], dim=-1)


def _variance(curve: Tensor, brightness: Tensor) -> Tensor:
    """Return (...) what a curve says of the noise's variance at a brightness."""
    return _powers(brightness) @ curve


def _fit(brightness: Tensor, variance: Tensor) -> tuple[Tensor, float]:
    """Fit a curve none of whose coefficients is negative; by shares, as large variances are told less well.

    Returns:
        curve: (3,) float64.
        misfit: median share by which the variances are off it.
    """
    rows, best = _powers(brightness) / variance[:, None], None
    for count in (1, 2, 3):
        for chosen in map(list, combinations(range(3), count)):
            part = rows[:, chosen]
            found = torch.linalg.lstsq(part, torch.ones(len(part), 1, dtype=part.dtype)).solution[:, 0]
            off = (part @ found - 1).abs()
            if bool((found >= 0).all()) and (best is None or off.square().sum() < best[0]):
                curve = torch.zeros(3, dtype=part.dtype)
                curve[chosen] = found
                best = (off.square().sum(), curve, float(off.median()))
    if best is None:
        return torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), torch.inf
    return best[1], best[2]


def _bend(image: Tensor, curve: Tensor) -> Tensor:
    """Return an image in [0, 1] whose noise is the same everywhere, in [0, 1] again."""
    nodes = torch.linspace(0, 1, NODES + 1, dtype=torch.float64)
    variance = _variance(curve, (nodes[1:] + nodes[:-1]) / 2)
    slope = variance.clamp_min(FLOOR**2 * float(variance.max())).rsqrt()
    table = torch.cat([nodes[:1], slope.cumsum(0)])
    table = (table / table[-1]).to(image)
    return table[(image.clamp(0, 1) * NODES).round_().int()]
