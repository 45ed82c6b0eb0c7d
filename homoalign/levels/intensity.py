"""From what a caller hands over to what the solver works on: float32 intensities in [0, 1], gray, with a mask.

B pairs, C channels, H W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign import kernels

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601), as decoders use them."""

FULL_SCALE = {torch.uint8: 255, torch.uint16: 65_535, torch.uint32: 4_294_967_295}


def to_unit_range(image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Convert to float32 intensities in [0, 1].

    Unsigned integers are divided by their largest value. Float images are taken as they are where they lie in
    [0, 1], else shifted and scaled by their own finite range, each image on its own, doubles before they are rounded.
    What a mask leaves out has no part in the range.

    Args:
        image: (B, C, H, W), unsigned integers or floats.
        mask: (B, 1, H, W) bool, which pixels are used; None where all are.

    Returns:
        image: (B, C, H, W) float32, 0 where float32 does not hold it: NaN, infinite, a double beyond its range.
        usable: (B, 1, H, W) bool, the mask without pixels of which a channel is such; None where all are used.

    Raises:
        TypeError: another dtype.
    """
    if kernels.serves(image, torch.uint8):
        return kernels.unit_of_bytes(image), mask
    if image.dtype in FULL_SCALE:
        return image.float() / FULL_SCALE[image.dtype], mask
    if not image.dtype.is_floating_point:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FULL_SCALE)
        raise TypeError(f"image dtype {str(image.dtype).removeprefix('torch.')} is neither {names} nor a float")
    given, image = image, image.float()
    finite = image.isfinite()
    all_finite = bool(finite.all())
    if not all_finite:
        image = torch.where(finite, image, 0.0)
    counted = finite if mask is None else finite & mask
    lowest = torch.where(counted, image, torch.inf).flatten(1).amin(-1)
    highest = torch.where(counted, image, -torch.inf).flatten(1).amax(-1)
    outside = (lowest < 0) | (highest > 1)
    if outside.any():
        image = torch.where(outside[:, None, None, None], _stretched(given, counted), image)
        image = torch.where(finite, image, 0.0)
    if mask is not None:
        image = image.clamp(0, 1)  # where it is left out it may be anything
    if not all_finite:
        of_all = finite.all(1, keepdim=True)
        mask = of_all if mask is None else mask & of_all
    return image, mask


def _stretched(image: Tensor, counted: Tensor) -> Tensor:
    """Shift and scale (B, C, H, W) floats by the range, with 1, of what counts; float32."""
    image = image if image.dtype == torch.float64 else image.float()
    low = torch.where(counted, image, torch.inf).flatten(1).amin(-1)[:, None, None, None]
    high = torch.where(counted, image, -torch.inf).flatten(1).amax(-1).clamp_min(1.0)[:, None, None, None]
    # Halves round as the wholes do, and the range of halves does not overflow.
    low, spread = low / 2, (high / 2 - low / 2).clamp_min(torch.finfo(torch.float32).tiny)
    return ((image / 2 - low) / spread).float()


def to_gray(image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Reduce to one channel in [0, 1]: luma of red, green, blue for three or more channels, the mean for two.

    Args:
        image: (B, C, H, W), as for `to_unit_range`; a fourth and further channels are ignored.
        mask: likewise.

    Returns:
        gray: (B, 1, H, W) float32.
        usable: as from `to_unit_range`.

    Raises:
        TypeError: as `to_unit_range`.
    """
    channels = image.shape[1]
    if image.dtype != torch.uint8 or channels == 1:
        image, mask = to_unit_range(image[:, :3], mask)
    if channels == 1:
        return image, mask
    weights: tuple[float, ...] = LUMA if channels >= 3 else (0.5, 0.5)
    if image.dtype == torch.uint8:  # weighted as they are: a pass over the colours saved
        weights = tuple(weight / FULL_SCALE[torch.uint8] for weight in weights)
    if channels >= 3 and kernels.serves(image, torch.uint8):
        return kernels.gray_of_bytes(image, weights)[:, None], mask
    gray = image[:, 0:1].float() * weights[0]
    for channel, weight in enumerate(weights[1:], start=1):
        gray.add_(image[:, channel : channel + 1].float(), alpha=weight)
    return gray, mask
