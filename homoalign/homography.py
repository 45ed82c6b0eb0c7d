"""Homographies: one convention, stated once.

`H_b_a` maps homogeneous pixel coordinates of image a to image b: `x_b ~ H_b_a @ x_a`.
Pixel (0, 0) is the centre of the top-left pixel; x grows right, y grows down.
All matrices are float64, shape (B, 3, 3), defined up to a positive scale (the sign tells front from back).

Steps live in the Lie algebra sl(3), in coordinates u that are centred on the image and divided by half its longer
side, so that all eight parameters have like size. Their order is that of the motion models, each a prefix of the
next: 2 translation, 3 euclidean, 4 similarity, 6 affine, 8 homography. (Benhimane and Malis, "Homography-based 2D
visual tracking and servoing", IJRR 2007, use another basis of the same algebra.)

B pairs, N points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign.kept import kept

# fmt: off
SL3_BASIS = torch.tensor(
    [
        [[0, 0, 1], [0, 0, 0], [0, 0, 0]],    # shift along x
        [[0, 0, 0], [0, 0, 1], [0, 0, 0]],    # shift along y
        [[0, -1, 0], [1, 0, 0], [0, 0, 0]],   # rotation
        [[1, 0, 0], [0, 1, 0], [0, 0, -2]],   # scale
        [[1, 0, 0], [0, -1, 0], [0, 0, 0]],   # stretch along the axes
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],    # stretch along the diagonals
        [[0, 0, 0], [0, 0, 0], [1, 0, 0]],    # perspective along x
        [[0, 0, 0], [0, 0, 0], [0, 1, 0]],    # perspective along y
    ],
    dtype=torch.float64,
    device="cpu",  # whatever the default is of who imports this first
)  # (8, 3, 3)
# fmt: on


def check_shape(name: str, tensor: Tensor, shape: str) -> None:
    """Raise ValueError unless `tensor` has `shape`, written as "B 3 3": letters stand for any size.

    >>> check_shape("H_b_a", torch.zeros(4, 2, 3), "B 3 3")
    Traceback (most recent call last):
    ValueError: H_b_a should have shape (B, 3, 3), got (4, 2, 3)
    """
    wanted = shape.split()
    fits = len(wanted) == tensor.ndim and all(
        not size.isdigit() or int(size) == got for size, got in zip(wanted, tensor.shape, strict=False)
    )
    if not fits:
        raise ValueError(f"{name} should have shape ({', '.join(wanted)}), got {tuple(tensor.shape)}")


def warp_points(H_b_a: Tensor, xy_a: Tensor) -> Tensor:
    """Map points from image a to image b.

    Args:
        H_b_a: (B, 3, 3).
        xy_a: (B, N, 2) pixels in image a.

    Returns:
        (B, N, 2) pixels in image b; NaN where the point falls on or behind the horizon (w <= 0).
    """
    xyw = torch.cat([xy_a, torch.ones_like(xy_a[..., :1])], dim=-1) @ H_b_a.mT
    w = xyw[..., 2:]
    return torch.where(w > 0, xyw[..., :2] / w, torch.nan)


def image_size(image: Tensor) -> tuple[int, int]:
    """Return (height, width) of (..., H, W), pixels."""
    return image.shape[-2], image.shape[-1]


@kept(256)
def image_corners(height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Return (4, 2) float64: centres of the corner pixels, top-left, top-right, bottom-right, bottom-left."""
    right, bottom = width - 1.0, height - 1.0
    return torch.tensor([[0, 0], [right, 0], [right, bottom], [0, bottom]], dtype=torch.float64, device=device)


def corner_errors(H_b_a: Tensor, H_b_a_true: Tensor, height: int, width: int) -> Tensor:
    """Distances between the corners of image a mapped by an estimate and by the truth.

    Args:
        H_b_a: (B, 3, 3) estimate.
        H_b_a_true: (B, 3, 3) truth.
        height: of image a, pixels.
        width: of image a, pixels.

    Returns:
        (B, 4) pixels of image b; NaN where either matrix is NaN or sends the corner behind the horizon.
    """
    corners = image_corners(height, width, device=H_b_a.device).expand(len(H_b_a), 4, 2)
    difference = warp_points(H_b_a, corners) - warp_points(H_b_a_true, corners)
    distance: Tensor = torch.linalg.vector_norm(difference, dim=-1)
    return distance


def normalise(H_b_a: Tensor) -> Tensor:
    """Scale each matrix such that [2, 2] = 1."""
    return H_b_a / H_b_a[..., 2:, 2:]


@kept(256)
def pixels_from_centred(height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Return (3, 3) float64: maps u (centred, longer half side = 1) to the pixels of an image of this size."""
    half_side = max(height, width) / 2
    return torch.tensor(
        [[half_side, 0, (width - 1) / 2], [0, half_side, (height - 1) / 2], [0, 0, 1]],
        dtype=torch.float64,
        device=device,
    )


def motion_of_step(step: Tensor) -> Tensor:
    """Cayley map of sl(3), (I - A / 2)^-1 (I + A / 2): the exponential map up to third order, at a tenth of its cost.

    Args:
        step: (B, P) coefficients of the first P elements of `SL3_BASIS`.

    Returns:
        (B, 3, 3), acting on centred coordinates; that of `-step` is its inverse.
    """
    half = (step @ _flat_basis(step.shape[-1], step.dtype, step.device)).view(-1, 3, 3) / 2
    identity = torch.eye(3, dtype=step.dtype, device=step.device)
    motion: Tensor = torch.linalg.solve_ex(identity - half, identity + half).result
    return motion


@kept(64)
def _flat_basis(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (count, 9), the first elements of `SL3_BASIS`; kept, since each copy to a GPU waits for it."""
    return SL3_BASIS[:count].flatten(1).to(device, dtype)


def move(H_b_a: Tensor, motion: Tensor, height: int, width: int) -> Tensor:
    """Return (B, 3, 3) matrices after a motion of what lies in image b, [2, 2] = 1.

    Args:
        H_b_a: (B, 3, 3).
        motion: (B, 3, 3), acting on centred coordinates of image b.
        height: of image b, pixels.
        width: of image b, pixels.
    """
    from_centred = pixels_from_centred(height, width, device=motion.device)
    # Column by column, as an inverse comes, one pair's product is rounded otherwise than that of many.
    return normalise(from_centred @ motion @ torch.linalg.inv(from_centred).contiguous() @ H_b_a)


def velocities(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Motion of points under each basis element: d proj(exp(step) u) / d step at step = 0.

    Args:
        x: (...) centred coordinates.
        y: (...) likewise.

    Returns:
        For each of the eight elements, (...) motion along x and along y, in centred coordinates.
    """
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    xy = x * y
    along_x = [one, zero, -y, 3 * x, x, y, -x * x, -xy]
    along_y = [zero, one, x, 3 * y, -y, x, -xy, -y * y]
    return list(zip(along_x, along_y, strict=True))


def rescale(H_b_a: Tensor, level: int) -> Tensor:
    """Return the same homography between the images of a pyramid level, which hold every 2^level-th pixel."""
    shrink = shrink_to(level, H_b_a.dtype, H_b_a.device)
    return shrink[:, None] * H_b_a / shrink


@kept(64)
def shrink_to(level: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (3,): what takes homogeneous pixels of the full-size image to those of a pyramid level."""
    return torch.tensor([0.5**level, 0.5**level, 1], dtype=dtype, device=device)


def frame_to_frame(src_size: tuple[int, int], dst_size: tuple[int, int]) -> Tensor:
    """Return (3, 3) float64: the identity, or the scaling of frame onto frame where the sizes differ.

    Args:
        src_size: (height, width), pixels.
        dst_size: (height, width), pixels.
    """
    scale_y, scale_x = dst_size[0] / src_size[0], dst_size[1] / src_size[1]
    # Frames, not pixel centres, coincide: the corner of the corner pixel is at -0.5.
    return torch.tensor(
        [[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]], dtype=torch.float64
    )
