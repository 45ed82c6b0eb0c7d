"""The simplest motion that the data do not speak against, for pairs that cannot support the one that was asked for.

Where little of the frame has texture, or all of it lies on a line, eight parameters fit noise and the corners wander.
Lower models are then tried from the lowest up, and the first one stays that two tests of a robust fit (Huber and
Ronchetti, "Robust Statistics", 2009, section 13.4) leave to chance: the likelihood ratio, whether its residuals are no
worse, and Wald's, whether it lies no further off than the parameters are known. Both are chi-squared with as many
degrees of freedom as parameters were given up. The former alone is misled by noise as strong as the contrast, which is
less where dst is read between its pixels, and of which a lower gain leaves less in the residual.

B pairs, N points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign import homography
from homoalign.homography import image_size
from homoalign.levels.pyramid import Level
from homoalign.optimisation.precision import corner_covariance, corner_jacobian, corner_std
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.schedule import MOTION_PARAMETERS, solver_for
from homoalign.optimisation.solver import Slack, cauchy, robust_scale

WEAK_480 = 3.0
"""Predicted error of the corners, pixels at a shorter side of 480, from which lower models are tried."""

LOWER_MODELS = ("translation", "euclidean", "similarity", "affine")

CHANCE = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5, 6: 22.5}
"""Chi-squared is larger once in a thousand, by degrees of freedom."""

OF_FEW_BLOCKS = 3.0
"""How much larger Wald's distance may be: the covariance is told by the few blocks of the frame that have texture."""

MOST_TOGETHER = 50.0
"""What is less determined than this says nothing of how much residuals go together."""

MAX_ITERATIONS = 10


def is_unsupported(covariance: Tensor, dst_homo_src: Tensor, src: Level, dst: Level) -> Tensor:
    """Return (B,) bool, where the data do not hold the corners.

    Args:
        covariance: (B, P, P) of the parameters, the first eight those of sl(3).
        dst_homo_src: (B, 3, 3), full-size alignments.
        src: source images.
        dst: destination images.
    """
    corners = corner_covariance(covariance, dst_homo_src, *image_size(src.image))
    std_480 = 480 / min(image_size(dst.image)) * corner_std(corners)
    unsupported: Tensor = ~(std_480 <= WEAK_480)  # NaN: they are not determined at all
    return unsupported


def give_up_freedom(
    problem: DirectProblem,
    state: Alignment,
    covariance: Tensor,
    index: Tensor,
    *,
    model: str,
    loss_width: float,
    step_tol_px: float,
) -> Alignment:
    """Return the state with the lowest model of motion that explains as much, for the pairs that `index` names.

    Args:
        problem: of the full-size images, as it was solved.
        state: its solution.
        covariance: (B, P, P) of its parameters.
        index: (b,) int64.
        model: of `state`.
        loss_width: of the robust loss, in standard deviations of the residual.
        step_tol_px: of the solver.
    """
    part, full = problem.select(index), state.select(index)
    residual, seen = part.evaluate(full)
    width = loss_width * robust_scale(residual, seen, part.scale_floor)
    cost, weight = cauchy(residual, width)
    chosen, is_open = full, torch.ones_like(full.gain, dtype=torch.bool)
    asked = MOTION_PARAMETERS[model]
    # How much more residuals that go together let the parameters wander than residuals on their own do.
    information, _ = part.normal_equations(full, residual, weight * seen)
    together = (information[:, :asked, :asked] * covariance[index, :asked, :asked]).sum((-2, -1))
    together = (together / (asked * (width / loss_width).square())).nan_to_num(MOST_TOGETHER).clamp(1, MOST_TOGETHER)
    for lower in LOWER_MODELS:
        kept = MOTION_PARAMETERS[lower]
        if kept >= asked or not is_open.any():
            break
        restricted = part.restrict(1, kept)
        start = Alignment(_nearest(part, full.dst_homo_src, weight * seen, kept), full.gain, full.bias)
        solution = solver_for(part.template.u)(
            restricted,
            start,
            max_iterations=MAX_ITERATIONS,
            step_tol_px=step_tol_px,
            loss_width=loss_width,
            min_seen=0.5 * seen.sum(-1),
            slack=Slack(),
        )
        other_residual, other_seen = restricted.evaluate(solution.state)
        both = seen * other_seen
        rise = ((cauchy(other_residual, width)[0] - cost) * both).sum(-1, dtype=torch.float64)
        # Near zero the loss is (r / width)^2, and width is loss_width standard deviations.
        is_chance = loss_width**2 * rise <= together * CHANCE[asked - kept]
        far = _wald(part, covariance[index, :asked, :asked], full.dst_homo_src, solution.state.dst_homo_src)
        is_chance &= ~(far > OF_FEW_BLOCKS * CHANCE[asked - kept])  # NaN: anything may be
        enough = both.sum(-1) > 0.9 * seen.sum(-1)
        stays = is_open & is_chance & enough
        chosen = solution.state.where(stays, chosen)
        is_open = is_open & ~stays
    return state.put(index, chosen)


def _wald(problem: DirectProblem, covariance: Tensor, dst_homo_src: Tensor, other: Tensor) -> Tensor:
    """Return (B,) the squared distance of other matrices, by the (B, P, P) covariance of the parameters.

    NaN where that is singular.
    """
    size = problem.src_size
    corners = homography.image_corners(*size, device=dst_homo_src.device)[None]
    moved = homography.warp_points(other, corners) - homography.warp_points(dst_homo_src, corners)
    jacobian = corner_jacobian(dst_homo_src, *size).flatten(1, 2)  # (B, 8, 8)
    step = torch.linalg.solve_ex(jacobian, moved.flatten(1)).result[:, : covariance.shape[-1]]
    scaled, info = torch.linalg.solve_ex(covariance, step)
    return torch.where(info == 0, (step * scaled).sum(-1), torch.nan)


def _nearest(problem: DirectProblem, dst_homo_src: Tensor, weight: Tensor, kept: int) -> Tensor:
    """Return (B, 3, 3) of the model with `kept` parameters that moves the texture as `dst_homo_src` does.

    Least squares over the points, each weighted by its slope's energy.
    """
    template, frame = problem.template, homography.pixels_from_centred(*problem.src_size, device=weight.device)
    u = template.u.double().mT  # (B, N, 2)
    xy = homography.warp_points(dst_homo_src @ frame, u).nan_to_num(0.0)
    energy = (weight * template.slope.square().sum(1)).double()
    energy = energy / energy.sum(-1, keepdim=True)
    mean_u, mean_xy = ((energy[..., None] * points).sum(1) for points in (u, xy))
    a, b = u - mean_u[:, None], xy - mean_xy[:, None]
    cross = (energy[..., None] * b).mT @ a  # (B, 2, 2)
    scatter = (energy[..., None] * a).mT @ a
    half_side = frame[0, 0]
    if kept == MOTION_PARAMETERS["affine"]:
        linear = cross @ torch.linalg.inv_ex(scatter).inverse
    else:
        along, around = cross[:, 0, 0] + cross[:, 1, 1], cross[:, 1, 0] - cross[:, 0, 1]
        length = torch.hypot(along, around)
        scale = length / (scatter[:, 0, 0] + scatter[:, 1, 1]) if kept == MOTION_PARAMETERS["similarity"] else half_side
        cos, sin = along / length * scale, around / length * scale
        if kept == MOTION_PARAMETERS["translation"]:
            cos, sin = torch.full_like(cos, float(half_side)), torch.zeros_like(sin)
        linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    shift = mean_xy[..., None] - linear @ mean_u[..., None]
    matrix = torch.eye(3, dtype=torch.float64, device=weight.device).repeat(len(linear), 1, 1)
    matrix[:, :2] = torch.cat([linear, shift], dim=-1)
    # Column by column, as the inverse comes, one pair's product is rounded otherwise than that of many.
    nearest: Tensor = matrix @ torch.linalg.inv(frame).contiguous()
    return nearest
