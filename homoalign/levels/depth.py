"""Deep images of which the scene uses a small part of the range: 12 bits kept in 16, raw counts, radiometric values.

Their contrast is low by the file's format alone. So it is stretched, a pair's two images alike where both are of one
kind and lie in one narrow range, which keeps their gain; images of 8 bits show every step that they have. The range of
floats beyond [0, 1] is their own, each image's, so that only hot pixels and nodata make a scene use little of it.

B pairs, C channels, H W rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign.arguments import Pairs
from homoalign.levels.intensity import FULL_SCALE

NARROW = 1 / 8
"""Share of its range below which an image is stretched."""

TAIL = 1e-3
"""Share of the pixels at either end that do not tell what range the scene uses: hot and dead pixels, nodata."""

SAMPLES = 8192
"""Pixels of an image, about, that its range is told from."""

LOW, HIGH = 0.25, 0.5
"""Where the range comes to lie; what is beyond it (a star, say) may be three times as far above as it is wide."""


@dataclass(frozen=True, slots=True)
class _Used:
    """What images use of their range, (B,) float64 each, in their own units.

    Attributes:
        low: end of what the scene uses, but for tails; infinite where nothing is known.
        high: the other end, likewise.
        whole: width of the range that there is.
    """

    low: Tensor
    high: Tensor
    whole: Tensor

    @property
    def is_narrow(self) -> Tensor:
        """(B,) bool, whether that is little of it."""
        width = self.high - self.low
        return (width > 0) & (width < NARROW * self.whole)


def stretch_narrow(pairs: Pairs) -> Pairs:
    """Stretch the images that use little of their range to float32 in [0, 1]; the others stay as they are.

    Args:
        pairs: the pairs, as they came.

    Returns:
        Them; where any image of a side is stretched, the others of that side are floats too.
    """
    images = (pairs.src, pairs.dst)
    if all(image.dtype == torch.uint8 for image in images) or not all(map(_holds_images, images)):
        return pairs
    of_src, of_dst = _used_range(pairs.src, pairs.src_mask), _used_range(pairs.dst, pairs.dst_mask)
    both = _Used(of_src.low.minimum(of_dst.low), of_src.high.maximum(of_dst.high), of_src.whole.maximum(of_dst.whole))
    # Ranges of floats beyond [0, 1] are each image's own, and say nothing of the other's.
    alike = (of_src.whole == of_dst.whole) & both.is_narrow & (pairs.src.dtype == pairs.dst.dtype)
    if not bool((alike | of_src.is_narrow | of_dst.is_narrow).any()):
        return pairs
    src, dst = (_stretch(image, _chosen(alike, both, own)) for image, own in ((pairs.src, of_src), (pairs.dst, of_dst)))
    return replace(pairs, src=src, dst=dst)


def stretch_narrow_image(image: Tensor) -> Tensor:
    """Do the same to (B, C, H, W) images that a person looks at: each on its own, to black and white."""
    return image if image.dtype == torch.uint8 else _stretch(image, _used_range(image, None), to=(0.0, 1.0))


def _holds_images(image: Tensor) -> bool:
    """Return whether the dtype is one that `to_unit_range` takes: it says what is wrong with the others."""
    return image.dtype in FULL_SCALE or image.dtype.is_floating_point


def _chosen(first: Tensor, one: _Used, other: _Used) -> _Used:
    """Return `one` where `first` (B,) holds, else `other`."""
    values = zip((one.low, one.high, one.whole), (other.low, other.high, other.whole), strict=True)
    return _Used(*(torch.where(first, a, b) for a, b in values))


def _used_range(image: Tensor, mask: Tensor | None) -> _Used:
    """Return what the pixels of (B, C, H, W) images that a mask leaves, and that are finite, use of their range."""
    if image.dtype == torch.uint8:
        none = torch.zeros(len(image), dtype=torch.float64, device=image.device)
        return _Used(none, none, none + FULL_SCALE[torch.uint8])
    height, width = image.shape[-2:]
    step = max(1, int((height * width / SAMPLES) ** 0.5))
    some = image[:, :3, ::step, ::step].double()
    counted = some.isfinite()
    if mask is not None:
        counted = counted & mask[..., ::step, ::step]
    some = torch.where(counted, some, torch.inf).flatten(1).sort(-1).values
    count = counted.flatten(1).count_nonzero(dim=-1)
    last = (count - 1).clamp_min(0).double()
    low, high = (some.gather(1, at.long()[:, None])[:, 0] for at in ((TAIL * last).floor(), ((1 - TAIL) * last).ceil()))
    is_known = count > 0
    low, high = torch.where(is_known, low, torch.inf), torch.where(is_known, high, -torch.inf)
    return _Used(low, high, _whole_range(image, mask))


def _whole_range(image: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B,) float64, how wide the range is that (B, C, H, W) images are taken to lie in: see `to_unit_range`."""
    if image.dtype in FULL_SCALE:
        return torch.full((len(image),), FULL_SCALE[image.dtype], dtype=torch.float64, device=image.device)
    image = image[:, :3]  # as elsewhere, what is beyond colours decides nothing
    finite = image.isfinite() if mask is None else image.isfinite() & mask
    lowest = torch.where(finite, image, torch.inf).flatten(1).amin(-1).double()
    highest = torch.where(finite, image, -torch.inf).flatten(1).amax(-1).double()
    inside = (lowest >= 0) & (highest <= 1)
    return torch.where(inside, 1.0, highest.clamp_min(1.0) - lowest).nan_to_num(1.0, posinf=1.0, neginf=1.0)


def _stretch(image: Tensor, used: _Used, *, to: tuple[float, float] = (LOW, HIGH)) -> Tensor:
    """Return (B, C, H, W) images with those that are narrow stretched; what is not finite becomes NaN."""
    narrow = used.is_narrow
    if not bool(narrow.any()):
        return image
    low, width = (value[:, None, None, None] for value in (used.low, used.high - used.low))
    stretched = (to[0] + (to[1] - to[0]) * (image.double() - low) / width).clamp(0, 1)
    if image.dtype.is_floating_point:
        stretched = torch.where(image.isfinite(), stretched, torch.nan)
    as_it_is = image if image.dtype == torch.float64 else image.float() / FULL_SCALE.get(image.dtype, 1)
    return torch.where(narrow[:, None, None, None], stretched.to(as_it_is), as_it_is)
