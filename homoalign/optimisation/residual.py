"""From two images of a pyramid level to residuals and normal equations: inverse compositional, on chosen pixels.

The source is the template (`template.py`); each iteration only reads the destination at the warped points.
The residual is dst(H x) - (gain * src(x) + bias); gain and bias are parameters nine and ten.

B pairs, H W rows and columns, N points, P = 8 + 2 parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign import homography, kernels
from homoalign.homography import image_size
from homoalign.kept import kept
from homoalign.kernels import PrecisionSums
from homoalign.levels import sampling
from homoalign.levels.pyramid import Level
from homoalign.levels.sampling import Interpolation
from homoalign.optimisation.precision import sum_scores
from homoalign.optimisation.solver import SCALE_SAMPLES
from homoalign.optimisation.template import Template, build_template, jacobian_of, side_of_blocks

BORDER_PX = 1.0
"""Pixels this close to dst's border are not compared: cubic interpolation and blurring see beyond it."""

LEAST_GAIN = 1e-3

LEAST_DEPTH_RATIO = 0.02
"""A matrix under which src's nearest corner is 50 times nearer than its furthest is a wreck, not a view."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """What is solved for.

    Attributes:
        dst_homo_src: (B, 3, 3) float64, of the full-size images.
        gain: (B,) float64.
        bias: (B,) float64, intensities in [0, 1].
    """

    dst_homo_src: Tensor
    gain: Tensor
    bias: Tensor

    def where(self, chosen: Tensor, other: Alignment) -> Alignment:
        """Return this state for the pairs where `chosen` (B,) holds, `other` elsewhere."""
        return Alignment(
            torch.where(chosen[:, None, None], self.dst_homo_src, other.dst_homo_src),
            torch.where(chosen, self.gain, other.gain),
            torch.where(chosen, self.bias, other.bias),
        )

    def select(self, index: Tensor) -> Alignment:
        """Return the pairs that `index` (int64) names."""
        return Alignment(self.dst_homo_src[index], self.gain[index], self.bias[index])

    def put(self, index: Tensor, part: Alignment) -> Alignment:
        """Return this state with the pairs that `index` names replaced by `part`."""
        return Alignment(
            self.dst_homo_src.index_copy(0, index, part.dst_homo_src),
            self.gain.index_copy(0, index, part.gain),
            self.bias.index_copy(0, index, part.bias),
        )


@dataclass(frozen=True, slots=True)
class Frame:
    """Constant matrices of a level, float64 unless said otherwise.

    Attributes:
        dst_homo_centred: (9, 9), a flat `dst_homo_src` to the flat matrix from centred coordinates of src to pixels of
            dst at the level.
        unit_homo_centred: (9, 9), likewise to unit coordinates of dst.
        src_motion: (9, 9), a flat motion in centred coordinates to the flat one in full-size src pixels.
        unit_limit: (2, 1) float32, points further from the middle are off the image or on its border.
        src_corners: (3, 4) homogeneous corners of full-size src, pixels.
        corner_motion: (8, 8), a step to its corners' motion, src pixels of the level.
    """

    dst_homo_centred: Tensor
    unit_homo_centred: Tensor
    src_motion: Tensor
    unit_limit: Tensor
    src_corners: Tensor
    corner_motion: Tensor

    def move(self, dst_homo_src: Tensor, step: Tensor) -> Tensor:
        """Return (B, 3, 3) after an inverse compositional step (B, 8) on src's side, [2, 2] = 1."""
        motion = homography.motion_of_step(-step)
        # Not as a product of matrices, which rounds otherwise for one pair than for many.
        in_src = (motion.flatten(1)[:, :, None] * self.src_motion).sum(1)
        return homography.normalise(dst_homo_src @ in_src.view(-1, 3, 3))

    def length_px(self, step: Tensor) -> Tensor:
        """Return (...) how far `step` (..., 8) moves src's furthest corner, to first order, pixels of the level."""
        motion = step @ self.corner_motion  # (..., 8): four corners along x, then along y
        length: Tensor = motion.view(*step.shape[:-1], 2, 4).square().sum(-2).amax(-1).sqrt()
        return length

    def is_plausible(self, dst_homo_src: Tensor) -> Tensor:
        """Say whether src, seen in dst, stays well in front of the horizon: (B,) bool; False for NaN."""
        w = dst_homo_src[:, 2] @ self.src_corners  # (B, 4)
        nearest, furthest = w.aminmax(dim=-1)
        plausible: Tensor = (nearest > 0) & (nearest > LEAST_DEPTH_RATIO * furthest)
        return plausible


@kept(256)
def build_frame(src_size: tuple[int, int], dst_size: tuple[int, int], level: int, device: torch.device) -> Frame:
    """Build the constants of a level whose images have these (height, width)."""
    to_full = torch.tensor([2.0**level, 2.0**level, 1], dtype=torch.float64, device=device).diag()
    from_centred = homography.pixels_from_centred(*src_size, device=device)
    corners = homography.image_corners(*src_size, device=device)
    u = (corners - from_centred[:2, 2]) / from_centred[0, 0]
    along_x, along_y = zip(*homography.velocities(u[:, 0], u[:, 1]), strict=True)
    height, width = dst_size
    limit = [[1 - 2 * BORDER_PX / (width - 1)], [1 - 2 * BORDER_PX / (height - 1)]]
    src_from_centred = to_full @ from_centred
    centred_from_src = torch.linalg.inv(src_from_centred)
    from_full = torch.linalg.inv(to_full).contiguous()
    unit_from_dst = sampling.unit_from_pixels(height, width, device=device) @ from_full
    return Frame(
        # Row by row, flat(L @ H @ R) = flat(H) @ kron(L, R^T)^T.
        dst_homo_centred=torch.kron(from_full, src_from_centred.mT.contiguous()).mT.contiguous(),
        unit_homo_centred=torch.kron(unit_from_dst, src_from_centred.mT.contiguous()).mT.contiguous(),
        src_motion=torch.kron(src_from_centred, centred_from_src.mT.contiguous()).mT.contiguous(),
        unit_limit=torch.tensor(limit, dtype=torch.float32, device=device),
        src_corners=torch.cat([2**level * corners, torch.ones_like(corners[:, :1])], dim=1).mT.contiguous(),
        corner_motion=from_centred[0, 0] * torch.cat([torch.stack(along_x), torch.stack(along_y)], dim=1),
    )


@dataclass(frozen=True, slots=True)
class Freedom:
    """Which of the ten parameters are solved for.

    Attributes:
        motion_parameters: the first so many of the basis of motion.
        light: whether gain and bias are.
        free: (10,) float64, 1 for parameters that are solved for and 0 for those that stay as they are.
        fixed: (10, 10) float64, 1 on the diagonal for those that stay.
        is_motion: (10,) bool, True for the eight parameters of motion.
    """

    motion_parameters: int
    light: bool
    free: Tensor
    fixed: Tensor
    is_motion: Tensor

    def restrict(self, motion_parameters: int) -> Freedom:
        """Return that of the first `motion_parameters` at most."""
        return freedom_of(min(motion_parameters, self.motion_parameters), self.light, self.free.device)


@kept(64)
def freedom_of(motion_parameters: int, light: bool, device: torch.device) -> Freedom:
    """Return what is free: the first parameters of motion, and gain and bias or not."""
    free = torch.ones(10, dtype=torch.float64, device=device)
    free[motion_parameters:8] = 0
    free[8:] = float(light)
    return Freedom(motion_parameters, light, free, (1 - free).diag(), torch.arange(10, device=device) < 8)


@dataclass(frozen=True, slots=True)
class DirectProblem:
    """The pairs of one pyramid level; a `solver.Problem` whose state is an `Alignment`.

    Attributes:
        dst: the destination images of this level; their spline coefficients where `interpolation` says so.
        dst_size: (height, width) of dst at this level, pixels.
        level: 0 is full size.
        src_size: (height, width) of src at this level, pixels.
        template: chosen points of src.
        scale_floor: (B,) float64.
        freedom: which parameters are solved for.
        interpolation: of dst.
    """

    dst: Level
    level: int
    src_size: tuple[int, int]
    dst_size: tuple[int, int]
    template: Template
    scale_floor: Tensor
    freedom: Freedom
    interpolation: Interpolation

    def select(self, index: Tensor) -> DirectProblem:
        """Return the pairs that `index` (int64) names."""
        return replace(
            self,
            dst=self.dst.select(index),
            template=self.template.select(index),
            scale_floor=self.scale_floor[index],
        )

    def restrict(self, stride: int, motion_parameters: int) -> DirectProblem:
        """Return the problem on every `stride`-th point, free in the first `motion_parameters` of the basis."""
        template = self.template if stride == 1 else self.template.every(stride)
        return replace(self, freedom=self.freedom.restrict(motion_parameters), template=template)

    def on_all_pixels(self, src: Level) -> DirectProblem:
        """Return the problem on all pixels of src that its mask leaves, with their own slopes."""
        return replace(self, template=build_template(src, math.prod(self.src_size)))

    @property
    def frame(self) -> Frame:
        """Constant matrices of this level."""
        return build_frame(self.src_size, self.dst_size, self.level, self.template.u.device)

    def read_dst(self, dst_homo_src: Tensor) -> tuple[Tensor, Tensor]:
        """Read dst at the warped points: values (B, N) and seen (B, N) bool."""
        frame, u = self.frame, self.template.u
        is_plausible = frame.is_plausible(dst_homo_src)
        if kernels.serves(u):
            matrix = (dst_homo_src.flatten(1) @ frame.dst_homo_centred).view(-1, 3, 3)
            matrix = torch.where(is_plausible[:, None, None], matrix, torch.nan)  # reads as nothing
            is_spline = self.interpolation == "spline"
            return kernels.read(
                self.dst.image, self.dst.mask, matrix, u, self.template.usable, BORDER_PX, is_spline=is_spline
            )
        # Everything up to grid_sample's own coordinates goes into one matrix: a pass over the points saved.
        matrix = (dst_homo_src.flatten(1) @ frame.unit_homo_centred).view(-1, 3, 3).to(u.dtype)
        xyw = torch.baddbmm(matrix[:, :, 2:], matrix[:, :, :2], u)  # (B, 3, N)
        unit = xyw[:, :2] / xyw[:, 2:]
        inside = unit.abs() <= frame.unit_limit
        seen = inside[:, 0] & inside[:, 1] & self.template.usable & is_plausible[:, None]
        if self.dst.mask is not None:
            seen &= sampling.sample_unit(self.dst.mask, unit)[:, 0] > 0.999  # all four neighbours are used
        return sampling.sample_unit(self.dst.image, unit, self.interpolation)[:, 0], seen

    def evaluate(self, state: Alignment) -> tuple[Tensor, Tensor]:
        """Return residual (B, N), and seen (B, N): 1 where both images have that pixel, else 0."""
        value, seen = self.read_dst(state.dst_homo_src)
        return torch.where(seen, value - self.model(state), 0.0), seen.to(value.dtype)

    def model(self, state: Alignment) -> Tensor:
        """Return (B, N), what dst should read at the points: gain * src + bias."""
        value = self.template.value
        return torch.addcmul(state.bias[:, None].to(value), state.gain[:, None].to(value), value)

    def normal_equations(self, state: Alignment, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return JtJ (B, 10, 10) and Jtr (B, 10), float64.

        The residual's Jacobian is minus the template's, its first eight columns times the gain. The rows of parameters
        that are not free are those of an identity matrix.
        """
        JtJ, Jtr = products(self.template, residual, weight)
        size = self._size(state)
        return JtJ * (size[:, :, None] * size[:, None, :]) + self.freedom.fixed, -Jtr * size

    def precision_sums(self, state: Alignment, loss_width: float, blocks: int) -> PrecisionSums:
        """Do what `precision.sum_scores` does, on the processor in one pass."""
        template = self.template
        if template.grid is None:
            raise ValueError("a part of the points makes no grid")
        if not kernels.serves(template.u):
            height, width = template.grid
            share = kernels.share_of_rows(height).to(template.u.device).repeat_interleave(width)
            return sum_scores(self, state, loss_width, blocks, share)
        value, seen = self.read_dst(state.dst_homo_src)
        gain = state.gain.abs().clamp_min(LEAST_GAIN)
        sums = kernels.precision_sums(
            (template.slope, template.brightness, template.value, template.u),
            torch.where(seen, value - self.model(state), 0.0),
            seen,
            value if template.is_whole else value[:, :0],
            (template.half_side / gain).to(value),
            self.scale_floor,
            grid=template.grid,
            side=side_of_blocks(template.grid, blocks),
            loss_width=loss_width,
            samples=SCALE_SAMPLES,
        )
        size = self._size(state)
        both = size[:, :, None] * size[:, None, :]
        return sums._replace(
            information=sums.information * both + self.freedom.fixed,
            sensitivity=sums.sensitivity * both + self.freedom.fixed,
            scores=sums.scores * size[..., None],
        )

    def block_scores(self, state: Alignment, weighted: Tensor, blocks: int) -> Tensor:
        """Return (B, 10, K) float64, Jacobian times `weighted` (B, N), summed over each of some square blocks."""
        scores = self.template.block_sums(self.template.jacobian() * weighted[:, None], blocks).double()
        return scores * self._size(state)[..., None]

    def sensitivity(self, state: Alignment, weight: Tensor) -> Tensor:
        """Return (B, 10, 10) float64, how the scores follow the parameters, on dst's slopes where all pixels are read.

        Args:
            state: where.
            weight: (B, N).
        """
        template = self.template
        if not template.is_whole:
            return self.normal_equations(state, weight, weight)[0]
        value, _ = self.read_dst(state.dst_homo_src)
        slope = template.slope_of(value) / state.gain.abs().clamp_min(LEAST_GAIN)[:, None, None].to(value)
        observed = jacobian_of(slope, template.value, template.u)
        product = ((template.jacobian() * weight[:, None]) @ observed.mT).double()
        size = self._size(state)
        return product * (size[:, :, None] * size[:, None, :]) + self.freedom.fixed

    def _size(self, state: Alignment) -> Tensor:
        """(B, 10): the residual's slopes over the template's; 0 for parameters that are not free."""
        return torch.where(self.freedom.is_motion, state.gain[:, None], 1.0) * self.freedom.free

    def step(self, state: Alignment, step: Tensor) -> Alignment:
        """Return the state after `step` (B, 10)."""
        moved = self.frame.move(state.dst_homo_src, step[:, :8])
        return Alignment(moved, state.gain + step[:, 8], state.bias + step[:, 9])

    def length_px(self, step: Tensor) -> Tensor:
        """Return (...) how far `step` (..., 10) moves src's furthest corner, to first order, pixels of its level."""
        return self.frame.length_px(step[..., :8])

    def matched_moments(self, dst_homo_src: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain and bias, (B,) each, that give src the mean and standard deviation of dst where both are seen."""
        value, seen = self.read_dst(dst_homo_src)
        count = seen.sum(-1).clamp_min(2)

        def moments(values: Tensor) -> tuple[Tensor, Tensor]:
            mean = torch.where(seen, values, 0.0).sum(-1, dtype=torch.float64) / count
            centred = torch.where(seen, values - mean[:, None].to(values), 0.0)
            return mean, (centred.square().sum(-1, dtype=torch.float64) / count).sqrt()

        (dst_mean, dst_std), (src_mean, src_std) = moments(value), moments(self.template.value)
        gain = (dst_std / src_std.clamp_min(1e-6)).clamp(1e-2, 1e2)
        return gain, dst_mean - gain * src_mean


def products(template: Template, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return J W J^T (B, 10, 10) and J W r (B, 10), float64, of the template's J, r (B, N) and the diagonal of W."""
    if kernels.serves(residual):
        return kernels.normal_equations(template.slope, template.brightness, template.u, residual, weight)
    jacobian = template.jacobian()
    weighted = jacobian * weight[:, None]
    # Two columns, not one: a batched matrix-vector product rounds otherwise for one pair than for many, and a pair's
    # answer must not depend on its neighbours.
    twice = torch.stack([residual, residual], dim=-1)
    return (weighted @ jacobian.mT).double(), (weighted @ twice)[..., 0].double()


def build_problem(
    src: Level,
    dst: Level,
    *,
    level: int,
    max_points: int,
    fit_photometric: bool,
) -> DirectProblem:
    """Choose the points of a level; dst is to be read bilinearly.

    Args:
        src: source images of this level.
        dst: destination images of this level.
        level: 0 is full size.
        max_points: about how many points; all pixels where there are no more.
        fit_photometric: whether gain and bias are free.
    """
    return DirectProblem(
        dst=dst,
        level=level,
        src_size=image_size(src.image),
        dst_size=image_size(dst.image),
        template=build_template(src, max_points),
        # Half a percent of the contrast is about the interpolation error of a sharp noise-free photograph.
        scale_floor=(0.005 * dst.contrast).clamp_min(1e-7),
        freedom=freedom_of(8, fit_photometric, dst.image.device),
        interpolation="bilinear",
    )
