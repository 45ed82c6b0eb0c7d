"""What callers may hand to `align`, and the one form the rest works on.

B pairs, C channels, H W rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homoalign.homography import check_shape, normalise

Array = Tensor | np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Pairs:
    """B pairs of one shape, on one device, as they came.

    Attributes:
        src: (B, C, H, W).
        dst: (B, C, H, W); size and channels may differ from src's.
        src_mask: (B, 1, H, W) bool, or None where all pixels are used.
        dst_mask: likewise.
        init: (B, 3, 3) float64 on the CPU, all NaN where a pair has no prior; or None.
        gt: likewise, the truth, [2, 2] = 1.
    """

    src: Tensor
    dst: Tensor
    src_mask: Tensor | None
    dst_mask: Tensor | None
    init: Tensor | None
    gt: Tensor | None

    def slice(self, start: int, stop: int) -> Pairs:
        """Return pairs `start` to `stop`."""
        values = (getattr(self, field.name) for field in fields(self))
        return Pairs(*(None if value is None else value[start:stop] for value in values))  # type: ignore[arg-type]

    def select(self, index: Tensor) -> Pairs:
        """Return the pairs that `index` (int64, on the CPU) names."""
        values = (getattr(self, field.name) for field in fields(self))
        return Pairs(*(None if value is None else _rows(value, index) for value in values))  # type: ignore[arg-type]


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Return the rows of `values` that `index` (int64, on the CPU) names."""
    # torch indexes no unsigned integers of more than 8 bits on a GPU, but signed ones of the same size.
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32}.get(values.dtype, values.dtype)
    return values.view(signed)[index.to(values.device)].view(values.dtype)


def check_pairs(
    src: Array,
    dst: Array,
    *,
    src_mask: Array | None,
    dst_mask: Array | None,
    init: Array | None,
    gt: Array | None,
) -> Pairs:
    """Bring the arguments of `align` into one form.

    Raises:
        ValueError: a shape is off, or batch sizes or devices differ.
        TypeError: not a dense tensor or an array, or complex matrices.
    """
    src_images, dst_images = as_images("src", src), as_images("dst", dst)
    if len(src_images) != len(dst_images):
        raise ValueError(f"src has {len(src_images)} pairs and dst has {len(dst_images)}")
    if src_images.device != dst_images.device:
        raise ValueError(f"src is on {src_images.device} and dst on {dst_images.device}")
    return Pairs(
        src=src_images,
        dst=dst_images,
        src_mask=as_masks("src_mask", src_mask, src_images),
        dst_mask=as_masks("dst_mask", dst_mask, dst_images),
        init=as_matrices("init", init, len(src_images)),
        gt=as_truth(gt, len(src_images)),
    )


def as_tensor(name: str, value: Array) -> Tensor:
    """Return `value` as a tensor that shares its memory where it can."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise TypeError(
                f"{name} should be dense, got a tensor of layout {str(value.layout).removeprefix('torch.')}"
            )
        return value
    if isinstance(value, np.ndarray):
        if not value.flags.writeable or any(stride < 0 for stride in value.strides):
            value = value.copy()
        return torch.from_numpy(value)
    raise TypeError(f"{name} should be a torch tensor or a numpy array, got {type(value).__name__}")


def as_images(name: str, value: Array) -> Tensor:
    """Return (B, C, H, W): a tensor of that shape as it is, a (H, W[, C]) array as a batch of one."""
    images = as_tensor(name, value)
    if isinstance(value, np.ndarray):
        if images.ndim not in (2, 3):
            raise ValueError(f"{name} should have shape (H, W) or (H, W, C), got {tuple(images.shape)}")
        images = images[None, None] if images.ndim == 2 else images.permute(2, 0, 1)[None]
    check_shape(name, images, "B C H W")
    if images.shape[1] == 0:
        raise ValueError(f"{name} has no channels: shape {tuple(images.shape)}")
    return images


def as_masks(name: str, value: Array | None, images: Tensor) -> Tensor | None:
    """Return (B, 1, H, W) bool of the images' size; (H, W) is a batch of one."""
    if value is None:
        return None
    masks = as_tensor(name, value)
    masks = masks[None] if masks.ndim == 2 else masks
    wanted = (images.shape[0], *images.shape[-2:])
    if tuple(masks.shape) != wanted:
        raise ValueError(f"{name} should have shape {wanted}, got {tuple(masks.shape)}")
    if masks.device != images.device:
        raise ValueError(f"{name} is on {masks.device} and its image on {images.device}")
    return (masks != 0)[:, None]


def as_matrices(name: str, value: Array | None, batch: int) -> Tensor | None:
    """Return (B, 3, 3) float64 on the CPU; one (3, 3) matrix serves every pair."""
    if value is None:
        return None
    matrices = as_tensor(name, value)
    if matrices.is_complex():
        raise TypeError(f"{name} should be real, got {str(matrices.dtype).removeprefix('torch.')}")
    matrices = matrices.double().cpu()
    matrices = matrices.expand(batch, 3, 3) if matrices.shape == (3, 3) else matrices
    if matrices.shape != (batch, 3, 3):
        raise ValueError(f"{name} should have shape ({batch}, 3, 3), got {tuple(matrices.shape)}")
    return matrices


def as_truth(value: Array | None, batch: int) -> Tensor | None:
    """Return (B, 3, 3) float64 on the CPU, [2, 2] = 1 as of priors and answers; NaN where it is 0."""
    truth = as_matrices("gt", value, batch)
    return None if truth is None else torch.where(truth[:, 2:, 2:] == 0, torch.nan, normalise(truth))
