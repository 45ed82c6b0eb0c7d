"""How precise a solution is, from what its residuals show.

A covariance from the normal equations alone takes every residual for noise on its own and every slope for known. Both
are wrong: residuals of neighbours go together where a model of motion or light does not fit, and slopes hold noise. So

    cov = S^-1 M S^-T

(the sandwich of Huber, "The behavior of maximum likelihood estimates under nonstandard conditions", 1967), with M the
scatter of the scores summed over blocks of the frame, which lets residuals of one block go together in any way (Liang
and Zeger, "Longitudinal data analysis using generalized linear models", Biometrika 1986), and S how the scores follow
the parameters as the other image's own slopes tell it, whose noise is not that of the template.

B pairs, N residuals a pair, P parameters, K blocks.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from homoalign import homography
from homoalign.kernels import PrecisionSums
from homoalign.optimisation.solver import Problem, StateT, cauchy_weight, robust_scale

BLOCKS = 12
"""Along the longer side of the frame."""

INTERPOLATED = 1.2
"""What interpolation leaves of a perfect match, in units of `Problem.scale_floor`."""

LEAST_CURVATURE = 0.1
"""Least mean of psi' over that of the weight; below it the loss is no longer convex about the solution."""


class Measurable(Problem[StateT], Protocol[StateT]):
    """A problem whose residuals have a place in the frame."""

    def precision_sums(self, state: StateT, loss_width: float, blocks: int) -> PrecisionSums:
        """Return what the covariance is made of: of P parameters, in square blocks of the frame; see `sum_scores`."""


class Summable(Problem[StateT], Protocol[StateT]):
    """A problem that tells the parts of its sums."""

    def block_scores(self, state: StateT, weighted: Tensor, blocks: int) -> Tensor:
        """Return (B, P, K) float64, J^T times `weighted` (B, N), summed over each of some square blocks."""

    def sensitivity(self, state: StateT, weight: Tensor) -> Tensor:
        """Return (B, P, P) float64, the derivative of the scores, weighted by `weight` (B, N)."""


def sum_scores(
    problem: Summable[StateT], state: StateT, loss_width: float, blocks: int, share: Tensor | None = None
) -> PrecisionSums:
    """Weigh the residuals and sum, one sum after another.

    Args:
        problem: the pairs.
        state: their solutions.
        loss_width: as for `solve`.
        blocks: along the longer side of the frame.
        share: (N,) weights of the residuals in the sums of products, which need not be taken over all; None: one each.
    """
    residual, seen = problem.evaluate(state)
    scale = robust_scale(residual, seen, problem.scale_floor)
    weight = cauchy_weight(residual, loss_width * scale)
    weight = weight * seen
    part = weight if share is None else weight * share
    return PrecisionSums(
        scale=scale,
        weight=weight.sum(-1, dtype=torch.float64),
        curvature=(weight * (2 * weight - 1)).sum(-1, dtype=torch.float64),
        information=problem.normal_equations(state, residual, part)[0],
        sensitivity=problem.sensitivity(state, part),
        scores=problem.block_scores(state, weight * residual, blocks),
    )


def measure_precision(problem: Measurable[StateT], state: StateT, loss_width: float) -> tuple[Tensor, Tensor]:
    """Measure the residual's scale and the parameters' covariance at a solution.

    Args:
        problem: the pairs.
        state: their solutions.
        loss_width: as for `solve`.

    Returns:
        scale: (B,) robust standard deviation of the residual.
        covariance: (B, P, P) of the parameters; NaN where they are not determined.
    """
    sums = problem.precision_sums(state, loss_width, BLOCKS)
    # The Cauchy loss has psi = w r and psi' = w (2 w - 1).
    curvature = (sums.curvature / sums.weight).clamp_min(LEAST_CURVATURE)
    slope = sums.sensitivity * curvature[:, None, None]
    inverse, info = torch.linalg.inv_ex(slope)
    half = inverse @ sums.scores
    # Errors of interpolation go with the slopes, so that residuals do not tell them.
    floor = inverse @ sums.information @ inverse.mT
    size = (half * sums.scores).sum(1).abs()
    count = size.sum(-1).square() / size.square().sum(-1)
    # As many blocks as parameters fit any scores.
    share = count / (count - slope.shape[-1]).clamp_min(1)
    covariance = (
        share[:, None, None] * (half @ half.mT) + (INTERPOLATED * problem.scale_floor).square()[:, None, None] * floor
    )
    return sums.scale, torch.where((info == 0)[:, None, None], covariance, torch.nan)


def corner_covariance(parameter_covariance: Tensor, dst_homo_src: Tensor, height: int, width: int) -> Tensor:
    """Propagate the covariance of the eight parameters to the source's corners, in destination pixels.

    Args:
        parameter_covariance: (B, P, P), the first eight being those of sl(3).
        dst_homo_src: (B, 3, 3).
        height: of src, pixels.
        width: of src, pixels.

    Returns:
        (B, 4, 2, 2) pixels squared.
    """
    jacobian = corner_jacobian(dst_homo_src, height, width)
    return jacobian @ parameter_covariance[:, None, :8, :8] @ jacobian.mT


def corner_jacobian(dst_homo_src: Tensor, height: int, width: int) -> Tensor:
    """Return (B, 4, 2, 8), how the source's corners move with the parameters, in destination pixels."""
    to_pixels = homography.pixels_from_centred(height, width, device=dst_homo_src.device)
    corners = homography.image_corners(height, width, device=dst_homo_src.device)
    u = (corners - to_pixels[:2, 2]) / to_pixels[0, 0]
    matrix = dst_homo_src @ to_pixels
    homogeneous = torch.cat([u, torch.ones_like(u[:, :1])], dim=-1) @ matrix.mT  # (B, 4, 3)
    w = homogeneous[..., 2:, None]
    xy = homogeneous[..., :2, None] / w
    d_xy_d_u = (matrix[:, None, :2, :2] - xy * matrix[:, None, 2:, :2]) / w  # (B, 4, 2, 2)
    motion = torch.stack([torch.stack(pair, dim=-1) for pair in homography.velocities(*u.unbind(-1))], dim=-1)
    return d_xy_d_u @ motion


def corner_std(covariance: Tensor) -> Tensor:
    """Return (B,) root mean square length of the four corners' error vectors, of (B, 4, 2, 2) covariances."""
    # The trace of a covariance is the mean square length.
    return covariance.diagonal(dim1=-2, dim2=-1).sum(-1).mean(-1).sqrt()
