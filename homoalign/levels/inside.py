"""What a flat surround encloses, in one image.

H W rows and columns.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

LEAST_AREA = 0.01
"""Of the frame."""

LEAST_INSIDE = 0.2
"""Of the frame, must be left."""

LEAST_CONTACT = 0.65
"""Share of the hull's edge at which the inside is: an aperture's or a tile's, not one that spans what sticks out."""

MOST_FLAT = 0.003
"""Of the range of intensities: detail, as below, that the surround may show."""

LEAST_DETAIL = 0.0015
"""Likewise that the inside must show: root mean square of what is some pixels wide and not noise."""

FINE_PX, COARSE_PX = 3, 9
"""Widths of the means whose difference is detail."""

NOISE_IN_DETAIL = math.sqrt((1 / FINE_PX**2 - 1 / COARSE_PX**2) / (1 - 1 / FINE_PX**2))
"""Of white noise, over what a mean over FINE_PX leaves of it."""

SPECK_PX = 5
LEAST_PART = 0.01
"""What is narrower, on that image, or a smaller share of the frame, is noise or letters in the surround."""

MARGIN = 0.015
"""Of the shorter side, by which the surround is widened: its edge is blurred."""

RANGE = (0.5, 99.5)
"""Percentiles of the intensities which are taken for their ends."""

Gray = NDArray[np.float32]
Where = NDArray[np.bool_]


def find_inside(image: Gray, *, depth: float, least_border: float) -> Where | None:
    """Return what the surround of an image encloses, without its edge; None where there is no surround.

    Args:
        image: (H, W).
        depth: share of the range of intensities; so near to one end of it is all of the surround.
        least_border: share of the border that it touches.

    Returns:
        (H, W).
    """
    low, high = np.percentile(image, RANGE)
    reach = depth * (high - low)
    if not reach > 0:
        return None
    for extreme in (image <= low + reach, image >= high - reach):
        surround = _touching_border(extreme)
        parts = _large_parts(~surround)
        hull = _convex_hull(parts)  # with what of the picture is as dark as the surround, and touches it
        if (
            _is_in_place(hull, least_border)
            and _contact(hull, parts) >= LEAST_CONTACT
            and _detail(image, surround & ~hull) <= MOST_FLAT * (high - low)
            and _detail(image, hull) >= LEAST_DETAIL * (high - low)
        ):
            return _shrunk(hull)
    return None


def _touching_border(where: Where) -> Where:
    """Return the connected parts of `where` that touch the border."""
    _, label = cv2.connectedComponents(where.astype(np.uint8), connectivity=4)
    at_border = np.unique(np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]]))
    found: Where = np.isin(label, at_border[at_border > 0])
    return found


def _large_parts(where: Where) -> Where:
    """Return the connected parts without what is thin or small: noise, and what a camera writes into the surround."""
    opened = cv2.morphologyEx(where.astype(np.uint8), cv2.MORPH_OPEN, np.ones((SPECK_PX, SPECK_PX), np.uint8))
    _, label, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    is_large = stats[:, cv2.CC_STAT_AREA] >= LEAST_PART * where.size
    is_large[0] = False  # the background
    found: Where = is_large[label]
    return found


def _convex_hull(where: Where) -> Where:
    hull = np.zeros(where.shape, np.uint8)
    outlines, _ = cv2.findContours(where.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if outlines:
        cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(outlines)), 1)
    found: Where = hull > 0
    return found


def _is_in_place(inside: Where, least_border: float) -> bool:
    """Say whether enough is left, and enough left out, along the border, too."""
    border = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    return bool(border.mean() <= 1 - least_border and LEAST_INSIDE <= inside.mean() <= 1 - LEAST_AREA)


def _contact(hull: Where, parts: Where) -> float:
    """Return the share of the hull's edge, where it is not the frame's, at which there is picture."""
    eroded = cv2.erode(hull.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1)
    edge = hull & (eroded == 0)
    near = cv2.dilate(parts.astype(np.uint8), np.ones((SPECK_PX, SPECK_PX), np.uint8)) > 0
    return float(near[edge].mean()) if edge.any() else 0.0


def _detail(image: Gray, where: Where) -> float:
    """Return the root mean square of what is some pixels wide, without what is noise; 0 where there is no place."""
    core = _shrunk(_shrunk(where))  # beyond the reach of the means
    if not core.any():
        return 0.0
    fine, coarse = (cv2.blur(image, (width, width)) for width in (FINE_PX, COARSE_PX))
    detail, noise = (float(np.square(part[core]).mean()) for part in (fine - coarse, image - fine))
    return math.sqrt(max(0.0, detail - NOISE_IN_DETAIL**2 * noise))


def _shrunk(inside: Where) -> Where:
    """Return the inside without its edge."""
    margin = 1 + round(MARGIN * min(inside.shape))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    found: Where = cv2.erode(inside.astype(np.uint8), disc, borderType=cv2.BORDER_CONSTANT, borderValue=1) > 0
    return found
