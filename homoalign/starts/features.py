"""Matched local features: a start where the views differ too much for any search on whole images.

OpenCV's SIFT (Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 2004) on simulated oblique views
of both images (Morel and Yu, "ASIFT", SIAM J. Imaging Sci. 2009), the ratio test, and a homography by MAGSAC (Barath et
al., "MAGSAC++", CVPR 2020). Pair by pair, on the CPU: only few pairs come here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from homoalign import homography, kernels
from homoalign.homography import image_size
from homoalign.levels.pyramid import Level

SIDE_PX = 400
"""Images are matched at a shorter side of at most this: what a start needs, at a fraction of the cost."""

LONGEST = 4
"""Times the shorter side, the longer one of images that oblique views are simulated of: these lie askew in squares
whose side is the image's diagonal. Longer images are matched as they are, at no more pixels than these have."""

UNLIKE = 2.0
"""Sides, geometric means, of which one is so many times the other are those of a template and the scene that it lies
in, or of a tile and its mosaic: shrunk like others, the larger image would have next to nothing left of it."""

MOST_PIXELS = 2**22
"""Of images of unlike sizes, which are matched as they are first."""

FEATURES_PER_VIEW = 800
FEATURES_OF_WHOLE = 8000
LARGEST_TILT = 3
"""Views are simulated for tilts of sqrt(2)^k up to this k: what is seen at up to 69 degrees from its normal."""

RATIO = 0.75
INLIER_PX = 2.0
MAX_SAMPLES = 10_000
LEAST_MATCHES = 12
"""Three times what a homography needs: fewer agree by chance."""
LEAST_INLIERS = 12
"""Images of unlike sizes that fewer matches agree about are matched by oblique views too."""

Bytes = npt.NDArray[np.uint8]
Features = tuple[Any, npt.NDArray[np.float32]]
"""Keypoints and (N, 128) features."""
Detect = Callable[[Bytes, Bytes | None], Features]

ROWS_AT_A_TIME = 512
"""Of the table of distances between both images' features: what the cache holds."""


def match_features(src: list[Level], dst: list[Level]) -> Tensor:
    """Estimate homographies from matched features.

    Args:
        src: pyramid of the source images, full size first.
        dst: pyramid of the destination images.

    Returns:
        (B, 3, 3) float64, full-size pixels; NaN where too few features match.
    """
    found = torch.full((len(src[0].image), 3, 3), torch.nan, dtype=torch.float64)
    if _are_unlike(src, dst):
        whole = _shrink(src, _factor_of_whole), _shrink(dst, _factor_of_whole)
        _match_missing(found, whole, _detect_plain, least_inliers=LEAST_INLIERS)
    small = _shrink(src, _factor_of_views), _shrink(dst, _factor_of_views)
    _match_missing(found, small, _detect, least_inliers=0)
    return homography.normalise(found).to(src[0].image.device)


def _are_unlike(src: list[Level], dst: list[Level]) -> bool:
    """Say whether one image is much larger than the other."""
    pixels = [math.prod(image_size(pyramid[0].image)) for pyramid in (src, dst)]
    return max(pixels) > UNLIKE**2 * min(pixels)


def _match_missing(found: Tensor, images: tuple[Shrunk, Shrunk], detect: Detect, *, least_inliers: int) -> None:
    """Fill in (B, 3, 3) matrices that are NaN, of pairs that so many matches agree about."""
    src, dst = images
    for i in torch.nonzero(found.isnan().flatten(1).any(-1))[:, 0].tolist():
        matrix, inliers = _match_pair(detect(*_as_bytes(src.level, i)), detect(*_as_bytes(dst.level, i)))
        if matrix is not None and inliers >= least_inliers:
            found[i] = dst.full_homo_small @ torch.from_numpy(matrix) @ torch.linalg.inv(src.full_homo_small)


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Images at the size that features are sought at; `full_homo_small` (3, 3) takes their pixels to full size."""

    level: Level
    full_homo_small: Tensor


def _factor_of_views(height: int, width: int) -> float:
    """Return what images are resized by whose oblique views are matched."""
    return min(1.0, SIDE_PX / min(height, width), math.sqrt(LONGEST * SIDE_PX**2 / (height * width)))


def _factor_of_whole(height: int, width: int) -> float:
    """Return what images are resized by that are matched as they are."""
    return min(1.0, math.sqrt(MOST_PIXELS / (height * width)))


def _shrink(pyramid: list[Level], factor_of: Callable[[int, int], float]) -> Shrunk:
    """Resample the level that is just larger than the full-size image (height, width) times its factor."""
    wanted = factor_of(*image_size(pyramid[0].image)) * min(image_size(pyramid[0].image))
    number = max(k for k, level in enumerate(pyramid) if k == 0 or min(image_size(level.image)) >= wanted)
    level = pyramid[number]
    height, width = image_size(level.image)
    factor = min(1.0, wanted / min(height, width))
    size = round(height * factor), round(width * factor)
    if size != (height, width):
        mask = None if level.mask is None else (_resize(level.mask, size) > 0.999).to(level.image)
        level = Level(_resize(level.image, size), mask)
    stretch = homography.frame_to_frame(size, (height, width))
    enlarge = torch.tensor([2.0**number, 2.0**number, 1], dtype=torch.float64).diag()
    return Shrunk(level, enlarge @ stretch)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def _as_bytes(level: Level, i: int) -> tuple[Bytes, Bytes | None]:
    """Return image `i` stretched to the whole of 8 bits, and its mask, nonzero where features may lie."""
    image = level.image[i, 0]
    low, high = image.aminmax()
    scaled = ((image - low) * (255 / (high - low).clamp_min(1e-6))).round().byte().cpu().numpy()
    return scaled, None if level.mask is None else level.mask[i, 0].mul(255).byte().cpu().numpy()


def _match_pair(src: Features, dst: Features) -> tuple[npt.NDArray[np.float64] | None, int]:
    """Return (3, 3), or None where too few features match or no model holds, and how many matches agree about it."""
    import cv2

    (points_src, features_src), (points_dst, features_dst) = src, dst
    if len(points_src) < LEAST_MATCHES or len(points_dst) < LEAST_MATCHES:
        return None, 0
    from_src, to_dst = _nearest_neighbours(_as_integers(features_src), _as_integers(features_dst))
    xy_src = np.array([points_src[i].pt for i in from_src.tolist()])
    xy_dst = np.array([points_dst[i].pt for i in to_dst.tolist()])
    if len(xy_src) < LEAST_MATCHES:
        return None, 0
    matrix, agrees = cv2.findHomography(
        xy_src, xy_dst, cv2.USAC_MAGSAC, INLIER_PX, maxIters=MAX_SAMPLES, confidence=0.9999
    )
    if matrix is None or not np.isfinite(matrix).all() or matrix[2, 2] == 0:
        return None, 0
    return np.asarray(matrix, dtype=np.float64), int(np.count_nonzero(agrees))


def _detect(image: Bytes, mask: Bytes | None) -> Features:
    """Find the features of an image (H, W) and its oblique views."""
    import cv2

    if max(image.shape) > LONGEST * min(image.shape):
        return _detect_plain(image, mask)
    views = cv2.AffineFeature.create(cv2.SIFT.create(FEATURES_PER_VIEW), LARGEST_TILT, 0)
    found: Features = views.detectAndCompute(image, mask)
    return found


def _detect_plain(image: Bytes, mask: Bytes | None) -> Features:
    """Find the features of an image (H, W) as it is."""
    import cv2

    found: Features = cv2.SIFT.create(FEATURES_OF_WHOLE).detectAndCompute(image, mask)
    return found


def _as_integers(features: npt.NDArray[np.float32]) -> Tensor:
    """Return SIFT's features, whole numbers from 0 to 255, as int8: less 128."""
    return torch.from_numpy(features).sub(128).to(torch.int8)


def _nearest_neighbours(src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
    """Match features by the ratio test.

    Args:
        src: (N, 128) int8, SIFT's bytes less 128: whole numbers multiply eight times as fast as floats do.
        dst: (M, 128) int8, likewise, at least two.

    Returns:
        Which of src match which of dst, (K,) int64 each.
    """
    src_energy, dst_energy = (features.int().square().sum(-1, dtype=torch.int32) for features in (src, dst))
    found = [kernels.best_two(_products(rows, dst), -dst_energy) for rows in torch.split(src, ROWS_AT_A_TIME)]
    best, second, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    # Squared distances: the energies of both, less twice their product.
    matched = torch.nonzero(src_energy - best < RATIO**2 * (src_energy - second).double())[:, 0]
    return matched, index[matched]


def _products(src: Tensor, dst: Tensor) -> Tensor:
    """Return (N, M) int32, the products of (N, 128) and (M, 128) int8."""
    if hasattr(torch, "_int_mm"):
        return torch._int_mm(src, dst.mT)
    return (src.float() @ dst.float().mT).int()  # as exact: below 2^24
