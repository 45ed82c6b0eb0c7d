"""Other people's aligners, each used as its own documentation says. All take RGB uint8 (H, W, 3) images.

Each returns `dst_homo_src` (3, 3) float64, or None where it gives up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Image = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

TUTORIAL_LEVELS = 6
TUTORIAL_STEPS = 100
TUTORIAL_LEARNING_RATE = 1e-3


def _gray(image: Image) -> npt.NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


class TutorialHomography(nn.Module):
    """The tutorial's module: a 3x3 matrix in normalised coordinates, from the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.homography = nn.Parameter(torch.eye(3))

    def forward(self) -> torch.Tensor:
        """Return (1, 3, 3), [2, 2] = 1."""
        return (self.homography / self.homography[2, 2])[None]


def tutorial(src: Image, dst: Image) -> Matrix:
    """kornia's tutorial "Image Alignment by Homography Optimization", its loop and settings, through kornia alone.

    The only change: `align_corners` is the same for the warper, its normalisation and `pyrdown`, and the matrix is
    taken back to pixels by the same convention (the defaults of kornia 0.9 mix two).
    """
    from kornia.geometry.transform import HomographyWarper, pyrdown
    from torch.nn.functional import l1_loss

    def pyramid(image: Image) -> list[torch.Tensor]:
        levels = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255]
        for _ in range(TUTORIAL_LEVELS - 1):
            levels.append(pyrdown(levels[-1]))
        return levels

    model = TutorialHomography()
    optimizer = torch.optim.Adam(model.parameters(), lr=TUTORIAL_LEARNING_RATE)
    with torch.enable_grad():
        for level_src, level_dst in zip(reversed(pyramid(src)), reversed(pyramid(dst)), strict=True):
            height, width = level_dst.shape[-2:]
            warper = HomographyWarper(height, width, align_corners=False)
            # The grid of outline-normalised coordinates that `align_corners=False` reads by.
            warper.grid = _outline_grid(height, width)
            ones = torch.ones_like(level_src)
            for _ in range(TUTORIAL_STEPS):
                optimizer.zero_grad()
                src_homo_dst = torch.inverse(model())
                warped = warper(level_src, src_homo_dst)
                counted = warper(ones, src_homo_dst) > 0.9
                loss = l1_loss(warped, level_dst, reduction="none").masked_select(counted).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    unit = model().detach().double()[0].numpy()
    found = np.linalg.inv(_unit_from_pixels(*dst.shape[:2])) @ unit @ _unit_from_pixels(*src.shape[:2])
    return np.asarray(found / found[2, 2], dtype=np.float64)


def _outline_grid(height: int, width: int) -> torch.Tensor:
    x = (2 * torch.arange(width) + 1) / width - 1
    y = (2 * torch.arange(height) + 1) / height - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]


def _unit_from_pixels(height: int, width: int) -> Matrix:
    return np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])


def ecc_multi_scale(src: Image, dst: Image) -> Matrix | None:
    """Return the matrix of `scored_ecc`."""
    return scored_ecc(src, dst)[0]


def scored_ecc(src: Image, dst: Image) -> tuple[Matrix | None, float]:
    """OpenCV's `findTransformECCMultiScale` on gray images, as deep as the images allow.

    Its default of four levels misses the tutorial's pair. Needs OpenCV 5.

    Returns:
        The matrix, None where it raises, as ECC does when it does not converge; and the correlation it ends at, 0
        without a matrix.
    """
    import cv2

    levels = 1
    while min(*src.shape[:2], *dst.shape[:2]) >> levels >= 16:
        levels += 1
    parameters = cv2.ECCParameters()
    parameters.motionType = cv2.MOTION_HOMOGRAPHY
    parameters.nlevels = levels
    try:
        # ECC finds the warp from the template's pixels to the input's: src is the template.
        score, found = cv2.findTransformECCMultiScale(_gray(src), _gray(dst), np.eye(3, dtype=np.float32), parameters)
    except cv2.error:
        return None, 0.0
    return _as_matrix(found), float(score)


def ecc_from(src: Image, dst: Image, dst_homo_src: Matrix) -> Matrix | None:
    """OpenCV's `findTransformECC` on gray images from a start; None where it raises.

    Settings are those of the multi-scale function's defaults: those of its own stop at 1e-3 of the correlation, far
    from its best. It may leave a good start for a worse place without raising: that is its answer.
    """
    import cv2

    start = dst_homo_src.astype(np.float32)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-6)
    try:
        _, found = cv2.findTransformECC(_gray(src), _gray(dst), start, cv2.MOTION_HOMOGRAPHY, criteria, None, 5)
    except cv2.error:
        return None
    return _as_matrix(found) if np.isfinite(found).all() else None


def sift_magsac(src: Image, dst: Image) -> Matrix | None:
    """Return the matrix of `scored_sift`."""
    return scored_sift(src, dst)[0]


def scored_sift(src: Image, dst: Image) -> tuple[Matrix | None, float]:
    """SIFT (4000), ratio test 0.8, USAC_MAGSAC at 3 px.

    Returns:
        The matrix, None with fewer than four matches or no model; and the share of the matches that are its inliers,
        0 without a matrix.
    """
    import cv2

    detector = cv2.SIFT.create(4000)
    (points_src, features_src), (points_dst, features_dst) = (
        detector.detectAndCompute(_gray(image), None) for image in (src, dst)
    )
    if features_src is None or features_dst is None or len(features_dst) < 2:
        return None, 0.0
    candidates = cv2.BFMatcher().knnMatch(features_src, features_dst, k=2)
    matches = [best for best, second in candidates if best.distance < 0.8 * second.distance]
    if len(matches) < 4:
        return None, 0.0
    xy_src = np.array([points_src[match.queryIdx].pt for match in matches])
    xy_dst = np.array([points_dst[match.trainIdx].pt for match in matches])
    found, inliers = cv2.findHomography(xy_src, xy_dst, cv2.USAC_MAGSAC, 3.0, maxIters=10_000, confidence=0.9999)
    return (None, 0.0) if found is None else (_as_matrix(found), float(inliers.mean()))


def _as_matrix(found: Any) -> Matrix:
    matrix: Matrix = np.asarray(found, dtype=np.float64)
    matrix /= matrix[2, 2]
    return matrix
