"""The solver on structure: what is left of a motion once dst is warped into src's frame by what is known of it.

dst is described anew after every warp, so that rotation, zoom and perspective do not change what the channels say; the
small motion that is left is found on all channels together (inverse compositional, src the template).

B pairs, K hypotheses, each a row of one batch, C channels, N points, H W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from homoalign import homography, kernels
from homoalign.config import AlignConfig
from homoalign.homography import image_size
from homoalign.kernels import PrecisionSums
from homoalign.kernels.solver import Points, solve_points
from homoalign.levels import sampling
from homoalign.levels.metrics import warp_onto
from homoalign.levels.pyramid import Level, take
from homoalign.levels.sampling import inverse
from homoalign.levels.structure import Structure, correlation, describe
from homoalign.optimisation.precision import sum_scores
from homoalign.optimisation.residual import Alignment, Frame, build_frame
from homoalign.optimisation.solver import Slack, Solution, solve
from homoalign.optimisation.template import block_sums, centred, side_of_cells, steepest_of_cells

STEPS_PER_RUN = 5
STEP_TOL_PX = 0.05
LEAST_SEEN = 0.02
"""Share of the frame that must be seen while refining."""

SCALE_FLOOR = 1e-3
"""Least robust scale of the channels' residual; they are of size 1."""


@dataclass(frozen=True)
class StructureProblem:
    """What is left of each hypothesis's motion; a `solver.Problem` whose state is an `Alignment` of src's frame.

    Attributes:
        dst: structure of dst warped into src's frame.
        size: (height, width) of the frame.
        u: (K, 2, N) float32, pixels of the frame in centred coordinates.
        src_value: (K, C * N) channels of src, one after another.
        slope: (K, C, 2, N) float32, how they change along x and y, per centred unit.
        usable: (K, N) bool.
        grid: rows and columns of the points.
        free: (8,) float64, 1 for parameters that are solved for.
    """

    dst: Structure
    size: tuple[int, int]
    u: Tensor
    src_value: Tensor
    slope: Tensor
    usable: Tensor
    grid: tuple[int, int]
    free: Tensor

    @cached_property
    def jacobian(self) -> Tensor:
        """(K, 8, C * N), the derivatives of the channels by the motion."""
        slope_x, slope_y = self.slope.unbind(2)
        motion = [
            (slope_x * along_x[:, None] + slope_y * along_y[:, None]).flatten(1)
            for along_x, along_y in homography.velocities(self.u[:, 0], self.u[:, 1])
        ]
        return torch.stack(motion, dim=1)

    @property
    def scale_floor(self) -> Tensor:
        """(K,) float64."""
        return torch.full((len(self.u),), SCALE_FLOOR, dtype=torch.float64, device=self.u.device)

    @property
    def num_residuals(self) -> int:
        """C * N."""
        return self.src_value.shape[-1]

    @property
    def points(self) -> Points:
        """The same for the compiled solver."""
        by_channel = self.src_value.view(len(self.u), -1, self.u.shape[-1])
        return Points(
            image=self.dst.channels,
            mask=self.dst.usable,
            is_spline=False,
            u=self.u,
            usable=self.usable,
            value=by_channel,
            slope=self.slope,
            brightness=by_channel,  # which is not followed
            scale_floor=self.scale_floor,
            free=torch.cat([self.free, torch.zeros_like(self.free[:2])]),
            frame=self.frame,
        )

    @property
    def frame(self) -> Frame:
        """Constant matrices of the frame."""
        return build_frame(self.size, self.size, 0, self.u.device)

    def select(self, index: Tensor) -> StructureProblem:
        """Return the hypotheses that `index` (int64) names."""
        return replace(
            self,
            dst=self.dst.select(index),
            u=self.u[index],
            src_value=self.src_value[index],
            slope=self.slope[index],
            usable=self.usable[index],
        )

    def evaluate(self, state: Alignment) -> tuple[Tensor, Tensor]:
        """Return residual and seen, (K, C * N) each."""
        frame = self.frame
        matrix = (state.dst_homo_src.flatten(1) @ frame.unit_homo_centred).view(-1, 3, 3).to(self.u.dtype)
        xyw = torch.baddbmm(matrix[:, :, 2:], matrix[:, :, :2], self.u)
        unit = xyw[:, :2] / xyw[:, 2:]
        value = sampling.sample_unit(torch.cat([self.dst.channels, self.dst.usable], dim=1), unit)  # (K, C + 1, N)
        inside = (unit.abs() <= frame.unit_limit).all(1) & (xyw[:, 2] > 0)
        seen = inside & self.usable & (value[:, -1] > 0.999)
        seen = seen[:, None].expand(-1, value.shape[1] - 1, -1).flatten(1)
        residual = torch.where(seen, value[:, :-1].flatten(1) - self.src_value, 0.0)
        return residual, seen.to(residual)

    def normal_equations(self, state: Alignment, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return JtJ (K, 8, 8) and Jtr (K, 8), float64; the residual's Jacobian is minus `jacobian`."""
        weighted = self.jacobian * weight[:, None]
        JtJ = (weighted @ self.jacobian.mT).double()
        # Two columns, as in `residual.DirectProblem`: the answer must not depend on the batch.
        Jtr = -(weighted @ torch.stack([residual, residual], dim=-1))[..., 0].double()
        return JtJ * (self.free[:, None] * self.free) + (1 - self.free).diag(), Jtr * self.free

    def precision_sums(self, state: Alignment, loss_width: float, blocks: int) -> PrecisionSums:
        """Do what `precision.sum_scores` does."""
        return sum_scores(self, state, loss_width, blocks)

    def block_scores(self, state: Alignment, weighted: Tensor, blocks: int) -> Tensor:  # noqa: ARG002
        """Return (K, 8, number of blocks) float64, Jacobian times `weighted` (K, C * N), summed over square blocks."""
        products = self.jacobian * weighted[:, None]
        by_channel = products.view(*products.shape[:2], -1, self.u.shape[-1]).sum(2)
        return block_sums(by_channel.view(*products.shape[:2], *self.grid), blocks).double() * self.free[:, None]

    def sensitivity(self, state: Alignment, weight: Tensor) -> Tensor:
        """Return (K, 8, 8) float64, how the scores follow the parameters, weighted by `weight` (K, C * N)."""
        return self.normal_equations(state, weight, weight)[0]

    def step(self, state: Alignment, step: Tensor) -> Alignment:
        """Return the state after `step` (K, 8)."""
        return Alignment(self.frame.move(state.dst_homo_src, step), state.gain, state.bias)

    def length_px(self, step: Tensor) -> Tensor:
        """Return (...) how far `step` (..., 8) moves the furthest corner, pixels of the frame."""
        return self.frame.length_px(step)


def _solve(problem: StructureProblem, start: Alignment, *, loss_width: float, min_seen: Tensor) -> Solution[Alignment]:
    """Take a few steps: compiled on the processor, in torch elsewhere."""
    run: Callable[..., Solution[Alignment]]
    run = partial(solve_points, problem.points) if kernels.serves(problem.u) else partial(solve, problem)
    return run(
        start,
        max_iterations=STEPS_PER_RUN,
        step_tol_px=STEP_TOL_PX,
        loss_width=loss_width,
        min_seen=min_seen,
        slack=Slack(),
    )


class LevelRefiner:
    """Refines hypotheses on one level of src and one of dst; what does not change is computed once.

    Args:
        src: source images of B pairs.
        dst: destination images.
        pair: (K,) whose hypotheses will come.
        max_points: about how many pixels of src are used.
        config: the loss's width.
    """

    def __init__(self, src: Level, dst: Level, pair: Tensor, max_points: int, config: AlignConfig) -> None:
        members, self._member = torch.unique(pair, return_inverse=True)
        self._src = describe(src.select(members))
        self._dst, self._pair, self._config = dst, pair, config
        self._size = image_size(src.image)
        self._frame = build_frame(self._size, self._size, 0, src.image.device)
        self._max_points = max_points

    @cached_property
    def _template(self) -> StructureTemplate:
        return _build_template(self._src, self._max_points)

    def build_problem(self, dst_homo_src: Tensor, motion_parameters: int = 8) -> StructureProblem:
        """Return the problem of what is left of the motion, free in the first parameters of the basis."""
        return StructureProblem(
            dst=self._warped(dst_homo_src),
            size=self._size,
            u=take(self._template.u, self._member),
            src_value=take(self._template.src_value, self._member),
            slope=take(self._template.slope, self._member),
            usable=take(self._template.usable, self._member),
            grid=self._template.grid,
            free=(torch.arange(8, device=dst_homo_src.device) < motion_parameters).double(),
        )

    def refine(self, dst_homo_src: Tensor, motion_parameters: int) -> tuple[Tensor, Tensor]:
        """Run the solver once.

        Returns:
            dst_homo_src: (K, 3, 3), pixels of the levels; those that the solver spoils as they were.
            num_iterations: (K,) int32.
        """
        start, problem = standing_still(dst_homo_src), self.build_problem(dst_homo_src, motion_parameters)
        solution = _solve(
            problem, start, loss_width=self._config.loss_width, min_seen=LEAST_SEEN * problem.num_residuals * start.gain
        )
        moved = homography.normalise(dst_homo_src @ solution.state.dst_homo_src)
        kept = torch.where(self._keeps_sight(moved)[:, None, None], moved, dst_homo_src)
        return kept, solution.num_iterations

    def score(self, dst_homo_src: Tensor, side_px: int) -> Tensor:
        """Return (K,) float64: see `Hypotheses.score`; the overlap is counted in squares of this side."""
        found, overlap = correlation(self._src.select(self._member), self._warped(dst_homo_src))
        # In pixels, so that hypotheses of unlike zoom compare.
        squares = overlap * math.prod(self._size) / side_px**2
        return torch.where(self._keeps_sight(dst_homo_src), found * squares.clamp(0, 4).sqrt(), -1.0)

    def _keeps_sight(self, dst_homo_src: Tensor) -> Tensor:
        return self._frame.is_plausible(dst_homo_src) & dst_homo_src.isfinite().flatten(1).all(-1)

    def _warped(self, dst_homo_src: Tensor) -> Structure:
        """Describe dst as src would see it."""
        warped, covered = warp_onto(self._dst.select(self._pair), inverse(dst_homo_src), self._size)
        return describe(Level(warped[:, None], covered[:, None].to(warped)))


def standing_still(dst_homo_src: Tensor) -> Alignment:
    """Return the state in which nothing is left of the motion."""
    one = torch.ones(len(dst_homo_src), dtype=torch.float64, device=dst_homo_src.device)
    identity = torch.eye(3, dtype=dst_homo_src.dtype, device=dst_homo_src.device)
    return Alignment(identity.expand(len(one), 3, 3), one, torch.zeros_like(one))


@dataclass(frozen=True, slots=True)
class StructureTemplate:
    """What inverse compositional steps need of src: see `StructureProblem`."""

    u: Tensor
    src_value: Tensor
    slope: Tensor
    usable: Tensor
    grid: tuple[int, int]


def _build_template(src: Structure, max_points: int) -> StructureTemplate:
    """Choose the pixels where the structure changes most, spread over the frame."""
    batch, count, height, width = src.channels.shape
    slope = Level(src.channels.flatten(0, 1)[:, None], None).slope.view(batch, 2 * count, height, width)
    side = side_of_cells(height, width, max_points)
    chosen, usable = steepest_of_cells(slope, src.usable, cell_side=side)  # (B, N)
    half_side, u = max(height, width) / 2, centred(chosen, height, width)
    at_points = chosen[:, None].expand(-1, 2 * count, -1)
    slope = half_side * slope.flatten(2).gather(2, at_points).view(batch, count, 2, -1)  # (B, C, 2, N)
    value = src.channels.flatten(2).gather(2, at_points[:, :count])
    return StructureTemplate(u, value.flatten(1), slope, usable, (height // side, width // side))
