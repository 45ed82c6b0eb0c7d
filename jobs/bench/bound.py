"""The Cramer-Rao bound: how precise an unbiased aligner can be on a pair whose noise is known.

What a pixel's residual dst(W(x)) - src(x) tells about the eight parameters p of the motion W stands in dst's gradient
there; with white noise in both images,

    cov(p) >= (sum over the overlap of J^T J / variance)^-1,    J = grad(dst)^T dW/dp

(Robinson and Milanfar, "Fundamental performance limits in image registration", 2004). Light and cover are taken as
known, so an aligner that has to estimate them cannot quite reach it. p to corners is linear at this size of error.

Images are (H, W) float32 in [0, 1]; N pixels of dst, P = 8 parameters: the elements of sl(3), acting on dst's frame in
coordinates centred on it and divided by half its side.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from jobs.rendering.synthetic import Image, Matrix, Size, corner_points, warp_points

ROUNDING_VARIANCE = 1 / 12
"""Of rounding to whole 8-bit units."""


def pixel_variance(sigma_8bit: float, gain: float | Image = 1.0) -> npt.NDArray[np.float64]:
    """Return the variance of dst - gain * src where both have white noise and are rounded, intensities in [0, 1].

    Args:
        sigma_8bit: of the noise in either image, 8-bit units.
        gain: of dst over src; (H, W) where it differs from pixel to pixel.
    """
    return np.asarray((1 + np.square(gain, dtype=np.float64)) * (sigma_8bit**2 + ROUNDING_VARIANCE) / 255**2)


def mean_corner_error_bound(
    dst: Image,
    dst_homo_src: Matrix,
    src_size: Size,
    *,
    variance: npt.NDArray[np.float64],
    usable: npt.NDArray[np.bool_] | None = None,
) -> float:
    """Return the expected mean corner error of an aligner that attains the bound, dst pixels.

    Expectation, not median: a mean of four lengths is skewed a little, so an efficient aligner's median MCE lies some
    percent below it.

    Args:
        dst: free of noise.
        dst_homo_src: (3, 3) float64, the truth.
        src_size: height, width.
        variance: of a pixel's residual; (H, W), or one number.
        usable: (H, W), False where dst tells nothing (covered, saturated); None where all of it does.

    Returns:
        Infinite where the overlap does not determine all parameters.
    """
    jacobian = motion_jacobian(dst)  # (N, P)
    inside = overlap(dst.shape, dst_homo_src, src_size)
    inside = inside if usable is None else inside & usable
    weight = np.where(inside, 1 / variance, 0.0).reshape(-1, 1)
    information = jacobian.T @ (weight * jacobian)
    if not np.linalg.cond(information) < 1e12:
        return math.inf
    at_corners = velocities(warp_points(dst_homo_src, corner_points(src_size)), dst.shape)  # (4, 2, P)
    covariance = at_corners @ np.linalg.inv(information) @ at_corners.transpose(0, 2, 1)  # (4, 2, 2)
    return float(np.mean([expected_length(each) for each in covariance]))


def motion_jacobian(dst: Image) -> Matrix:
    """Return (N, P): what a pixel of dst gains in intensity as its content moves along each parameter, negated."""
    height, width = dst.shape
    along_x, along_y = spline_gradient(dst)
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    velocity = velocities(np.column_stack([x, y]).astype(np.float64), dst.shape)
    return np.asarray(along_x.reshape(-1, 1) * velocity[:, 0] + along_y.reshape(-1, 1) * velocity[:, 1])


def velocities(xy: Matrix, size: tuple[int, ...]) -> Matrix:
    """Return (N, 2, P): the motion in pixels, along x and y, of points of a frame under each parameter.

    Args:
        xy: (N, 2) pixels of the frame.
        size: height, width of the frame.
    """
    half = max(size) / 2
    u, v = ((xy - (np.array(size[::-1]) - 1) / 2) / half).T
    zero, one = np.zeros_like(u), np.ones_like(u)
    moves_x = [one, zero, -v, u, u, v, u * u, u * v]
    moves_y = [zero, one, u, v, -v, u, u * v, v * v]
    return half * np.stack([np.stack(moves_x, axis=-1), np.stack(moves_y, axis=-1)], axis=1)


def overlap(dst_shape: tuple[int, ...], dst_homo_src: Matrix, src_size: Size) -> npt.NDArray[np.bool_]:
    """Return (H, W): which pixels of dst src covers."""
    y, x = np.mgrid[: dst_shape[0], : dst_shape[1]].reshape(2, -1)
    seen = warp_points(np.linalg.inv(dst_homo_src).astype(np.float64), np.column_stack([x, y]).astype(np.float64))
    right, bottom = src_size[1] - 1, src_size[0] - 1
    # a point behind the horizon is NaN, which is inside nothing
    inside = (seen >= 0).all(axis=1) & (seen[:, 0] <= right) & (seen[:, 1] <= bottom)
    return np.asarray(inside.reshape(dst_shape))


def spline_gradient(image: Image) -> tuple[Matrix, Matrix]:
    """Return (H, W) derivatives along x and along y, at the pixels, of the cubic spline through them."""
    from scipy.ndimage import correlate1d, spline_filter1d  # type: ignore[import-untyped]

    slopes = []
    for axis in (1, 0):  # across the derivative, at the pixels, the spline is the image itself
        coefficients = spline_filter1d(image.astype(np.float64), 3, axis=axis, mode="mirror")
        slopes.append(correlate1d(coefficients, [-0.5, 0.0, 0.5], axis=axis, mode="mirror"))
    return slopes[0], slopes[1]


def expected_length(covariance: Matrix) -> float:
    """Return the mean length of a two-dimensional normal vector of mean zero and (2, 2) covariance."""
    from scipy.special import ellipe  # type: ignore[import-untyped]

    smaller, larger = np.clip(np.linalg.eigvalsh(covariance), 0, None)
    if larger == 0:
        return 0.0
    return float(math.sqrt(2 * larger / math.pi) * ellipe(1 - smaller / larger))
