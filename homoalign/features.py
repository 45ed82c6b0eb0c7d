"""Matched local features: a start where the views differ too much for any search on whole images.

OpenCV's SIFT (Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 2004), the ratio test, and a
homography by MAGSAC (Barath et al., "MAGSAC++", CVPR 2020). Pair by pair, on the CPU: only few pairs come here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from homoalign.homography import image_size
from homoalign.pyramid import Level

MAX_FEATURES = 4000
RATIO = 0.8
INLIER_PX = 3.0
MAX_SAMPLES = 10_000
LEAST_MATCHES = 8
"""Twice what a homography needs: fewer agree by chance."""

LARGEST_SIDE_PX = 2000
"""Larger images are matched on a coarser level: the start need not be finer."""


def match_features(src: list[Level], dst: list[Level]) -> Tensor:
    """Estimate homographies from matched features.

    Args:
        src: pyramid of the source images, full size first.
        dst: pyramid of the destination images.

    Returns:
        (B, 3, 3) float64, full-size pixels; NaN where too few features match.
    """
    (from_src, src_scale), (onto_dst, dst_scale) = _level_to_match(src), _level_to_match(dst)
    found = torch.full((len(from_src.image), 3, 3), torch.nan, dtype=torch.float64)
    for i in range(len(found)):
        matrix = _match_pair(_as_bytes(from_src, i), _as_bytes(onto_dst, i))
        if matrix is not None:
            shrink = torch.tensor([1 / src_scale, 1 / src_scale, 1], dtype=torch.float64)
            enlarge = torch.tensor([dst_scale, dst_scale, 1], dtype=torch.float64)
            found[i] = enlarge[:, None] * torch.from_numpy(matrix) * shrink
    return (found / found[:, 2:, 2:]).to(from_src.image.device)


def _level_to_match(pyramid: list[Level]) -> tuple[Level, float]:
    """Return the finest level that is small enough, and how many full-size pixels its pixels are wide."""
    for number, level in enumerate(pyramid):
        if max(image_size(level.image)) <= LARGEST_SIDE_PX or number == len(pyramid) - 1:
            return level, 2.0**number
    raise ValueError("the pyramid has no level")


def _as_bytes(level: Level, i: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
    """Return image `i` stretched to the whole of 8 bits, and its mask, nonzero where features may lie."""
    image = level.image[i, 0]
    low, high = image.aminmax()
    scaled = ((image - low) * (255 / (high - low).clamp_min(1e-6))).round().byte().cpu().numpy()
    return scaled, None if level.mask is None else level.mask[i, 0].mul(255).byte().cpu().numpy()


def _match_pair(src: Any, dst: Any) -> npt.NDArray[np.float64] | None:
    """Return (3, 3), or None where too few features match or no model holds."""
    import cv2

    detector = cv2.SIFT.create(MAX_FEATURES)
    (points_src, features_src), (points_dst, features_dst) = (
        detector.detectAndCompute(image, mask) for image, mask in (src, dst)
    )
    if len(points_src) < LEAST_MATCHES or len(points_dst) < LEAST_MATCHES:
        return None
    candidates = cv2.BFMatcher().knnMatch(features_src, features_dst, k=2)
    matches = [best for best, second in candidates if best.distance < RATIO * second.distance]
    if len(matches) < LEAST_MATCHES:
        return None
    xy_src = np.array([points_src[match.queryIdx].pt for match in matches])
    xy_dst = np.array([points_dst[match.trainIdx].pt for match in matches])
    matrix, _ = cv2.findHomography(xy_src, xy_dst, cv2.USAC_MAGSAC, INLIER_PX, maxIters=MAX_SAMPLES, confidence=0.9999)
    if matrix is None or not np.isfinite(matrix).all() or matrix[2, 2] == 0:
        return None
    return np.asarray(matrix, dtype=np.float64)
