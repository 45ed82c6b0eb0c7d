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


def to_unit_range(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Convert to float32 intensities in [0, 1].

    Unsigned integers are divided by their largest value. Float images are taken as they are where they lie in
    [0, 1], else shifted and scaled by their own finite range, each image on its own.

    Args:
        image: (B, C, H, W), unsigned integers or floats.

    Returns:
        image: (B, C, H, W) float32, 0 where it was not finite.
        finite: (B, 1, H, W) bool, False where a channel was NaN or infinite; None where all are finite.

    Raises:
        TypeError: another dtype.
    """
    if kernels.serves(image, torch.uint8):
        return kernels.unit_of_bytes(image), None
    if image.dtype in FULL_SCALE:
        return image.float() / FULL_SCALE[image.dtype], None
    if not image.dtype.is_floating_point:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FULL_SCALE)
        raise TypeError(f"image dtype {str(image.dtype).removeprefix('torch.')} is neither {names} nor a float")
    image = image.float()
    finite = image.isfinite()
    all_finite = bool(finite.all())
    if not all_finite:
        image = torch.where(finite, image, 0.0)
    low = torch.where(finite, image, torch.inf).flatten(1).amin(-1).clamp_max(0.0)
    high = torch.where(finite, image, -torch.inf).flatten(1).amax(-1).clamp_min(1.0)
    outside = (low < 0) | (high > 1)
    if outside.any():
        low = torch.where(outside, torch.where(finite, image, torch.inf).flatten(1).amin(-1), 0.0)
        high = torch.where(outside, high, 1.0)
        spread = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
        image = torch.where(finite, (image - low[:, None, None, None]) / spread[:, None, None, None], 0.0)
    return image, None if all_finite else finite.all(1, keepdim=True)


def to_gray(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Reduce to one channel in [0, 1]: luma of red, green, blue for three or more channels, the mean for two.

    Args:
        image: (B, C, H, W), as for `to_unit_range`; a fourth and further channels are ignored.

    Returns:
        gray: (B, 1, H, W) float32.
        finite: as from `to_unit_range`.

    Raises:
        TypeError: as `to_unit_range`.
    """
    channels = image.shape[1]
    finite = None
    full_scale = FULL_SCALE.get(image.dtype)
    if full_scale is None or channels == 1:
        image, finite = to_unit_range(image)
        full_scale = 1
    if channels == 1:
        return image, finite
    weights = LUMA if channels >= 3 else (0.5, 0.5)
    if channels >= 3 and kernels.serves(image, torch.uint8):
        return kernels.gray_of_bytes(image, tuple(weight / full_scale for weight in weights))[:, None], finite
    # Integers are weighted as they are: a pass over the colours saved.
    gray = image[:, 0:1].float() * (weights[0] / full_scale)
    for channel, weight in enumerate(weights[1:], start=1):
        gray.add_(image[:, channel : channel + 1].float(), alpha=weight / full_scale)
    return gray, finite
