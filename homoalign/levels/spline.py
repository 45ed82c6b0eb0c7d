"""Cubic B-splines: images read between pixels without the loss of bilinear or Keys' cubic interpolation.

An image is turned into spline coefficients once (Unser, Aldroubi and Eden, "B-spline signal processing", IEEE Trans.
Signal Processing 1993) and read as often as needed, each time by four bilinear reads (Sigg and Hadwiger, "Fast
third-order texture filtering", GPU Gems 2, chapter 20).

B pairs, C channels, H W rows and columns, N points.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from homoalign import kernels
from homoalign.kept import kept

POLE = 3**0.5 - 2
"""Of the recursive filter that turns pixels into coefficients."""

DOUBLINGS = 3
"""The recursion is cut after 2^3 terms: the eighth power of the pole is 3e-5."""

REACH = 2**DOUBLINGS - 1

TAPS = tuple(
    (1 - POLE) ** 2 * sum(POLE ** (i + j) for i in range(REACH + 1) for j in range(REACH + 1) if i - j == shift)
    for shift in range(-REACH, REACH + 1)
)
"""Of the filter and its mirror image in one."""


def spline_coefficients(image: Tensor) -> Tensor:
    """Return the cubic B-spline coefficients of an image that is mirrored at its outermost pixels' centres.

    Args:
        image: (B, C, H, W) float.

    Returns:
        (B, C, H + 2, W + 2): one coefficient beyond each border, for `read_spline`.
    """
    if kernels.serves(image):
        batch, channels, height, width = image.shape
        found = kernels.convolve(image.flatten(0, 1), TAPS, 1)
        return found.view(batch, channels, height + 2, width + 2)
    height, width = image.shape[-2:]
    ends = (REACH + 1, REACH + 1)
    # Narrow images are mirrored again and again.
    image = (
        image[..., _mirrored(width, REACH + 1, image.device)]
        if width <= ends[0]
        else pad(image, (*ends, 0, 0), mode="reflect")
    )
    image = _filter(image, -1)
    if height <= ends[0]:
        image = image[..., _mirrored(height, REACH + 1, image.device), :]
    else:
        image = pad(image, (0, 0, *ends), mode="reflect")
    # A constant image is its own spline.
    return _filter(image, -2).mul_((1 - POLE) ** 4)


def _mirrored(side: int, ends: int, device: torch.device) -> Tensor:
    """Return the indices of a row of `side` pixels and of `ends` more on either side, mirrored."""
    period = max(1, 2 * (side - 1))
    index = torch.arange(-ends, side + ends, device=device).remainder(period)
    return torch.minimum(index, period - index)


def _filter(values: Tensor, dim: int) -> Tensor:
    """Run 1 / (1 - z S) forwards and backwards along a dimension; 2 * REACH values shorter.

    The sum over z^n S^n is the product of 1 + z^(2^j) S^(2^j): a few whole-image passes, none of them sequential.
    """
    for j in range(DOUBLINGS):
        shift, factor = 2**j, POLE ** (2**j)
        size = values.shape[dim] - shift
        values = torch.add(values.narrow(dim, shift, size), values.narrow(dim, 0, size), alpha=factor)
    for j in range(DOUBLINGS):
        shift, factor = 2**j, POLE ** (2**j)
        size = values.shape[dim] - shift
        values = torch.add(values.narrow(dim, 0, size), values.narrow(dim, shift, size), alpha=factor)
    return values


@kept(64)
def _half_sides(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (2, 1), from the middle of an image to its outermost pixels' centres; kept, as copies to a GPU wait."""
    return torch.tensor([[(width - 1) / 2], [(height - 1) / 2]], dtype=dtype, device=device)


def read_spline(coefficients: Tensor, unit: Tensor) -> Tensor:
    """Read a spline at points; beyond the image's border its border's coefficients.

    Args:
        coefficients: (B, C, H + 2, W + 2) from `spline_coefficients`.
        unit: (B, 2, N) same dtype, unit coordinates of the image (`sampling.unit_from_pixels`): -1 and 1 are the
            outermost pixels' centres.

    Returns:
        (B, C, N).
    """
    height, width = coefficients.shape[-2:]
    half = _half_sides(height - 2, width - 2, unit.dtype, unit.device)
    xy = torch.addcmul(half + 1, half, unit)  # pixels of the coefficients
    t = xy.frac()
    first = xy.sub_(t)
    s = 1 - t
    # Weights of the four coefficients of a row: s^3/6, 2/3 - t^2 (1 + s)/2, its mirror image, t^3/6.
    squared = t * t
    outer = (squared * t).mul_(1 / 6)
    inner = (squared * s.add(1)).mul_(-0.5).add_(2 / 3)  # of the nearer coefficient to the left
    s.mul_(s)
    upper = (s * t.add_(1)).mul_(-0.5).add_(2 / 3).add_(outer)  # of both coefficients to the right
    # A bilinear read between two coefficients weights them as wanted when it is this far along; in unit coordinates.
    scale = 1 / (half + 1)
    first.sub_(half + 1)
    far = outer.div_(upper).add_(first).add_(1).mul_(scale)
    near = inner.div_(1 - upper).add_(first).sub_(1).mul_(scale)
    grid = unit.new_empty(len(unit), 2, 2, 2, unit.shape[-1])  # x and y, rows, columns, points: as grid_sample likes it
    grid[:, 0, :, 0] = near[:, :1]
    grid[:, 0, :, 1] = far[:, :1]
    grid[:, 1, 0] = near[:, 1:]
    grid[:, 1, 1] = far[:, 1:]
    read = grid_sample(
        coefficients, grid.flatten(2).mT[:, None], mode="bilinear", padding_mode="border", align_corners=True
    ).view(*coefficients.shape[:2], 2, 2, -1)  # (B, C, rows, columns, N)
    rows = torch.lerp(read[:, :, :, 0], read[:, :, :, 1], upper[:, None, None, 0])  # (B, C, 2, N)
    return torch.lerp(rows[:, :, 0], rows[:, :, 1], upper[:, None, 1])
