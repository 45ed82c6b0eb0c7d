"""Levenberg-Marquardt for a batch of small robust least-squares problems. It never sees an image.

A `Problem` turns a state into residuals and normal equations, and a step into a new state; `solve` proposes a step,
evaluates it, keeps it where the cost falls, else throws it away and damps more, each pair on its own.

B pairs, N residuals a pair, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from homoalign import kernels
from homoalign.status import StopReason

StateT = TypeVar("StateT", bound="BatchState")

INITIAL_DAMPING = 1e-4
LARGEST_DAMPING = 1e6
LONGEST_EXTRAPOLATION = 10.0
SHORT_PX = 0.05  # steps this short end a level where they raise the cost by more than the slack
KEEP_PX = 0.1  # after steps this short the curvature is what it was
TAIL_SCALES = 3.0  # residuals beyond so many scales make the tail
CLEAN_TAIL = 0.01  # share of them that noise alone, of which it is 0.003, may have
SCALE_SAMPLES = 8192  # residuals that the robust scale is read from; its own error is then about 1 %

RUNNING = -1
REASONS = (StopReason.CONVERGED, StopReason.MAX_ITERATIONS, StopReason.NO_DESCENT, StopReason.OVERLAP_LOST)
CONVERGED, MAX_ITERATIONS, NO_DESCENT, OVERLAP_LOST = range(4)


class BatchState(Protocol):
    """What is being solved for: a frozen bundle of tensors whose first dimension is B."""

    def where(self: StateT, chosen: Tensor, other: StateT) -> StateT:
        """Return this state for the pairs where `chosen` (B,) holds, `other` elsewhere."""

    def select(self: StateT, index: Tensor) -> StateT:
        """Return the pairs that `index` (int64) names."""

    def put(self: StateT, index: Tensor, part: StateT) -> StateT:
        """Return this state with the pairs that `index` names replaced by `part`."""


class Problem(Protocol[StateT]):
    """Residuals of a batch of pairs as a function of their state."""

    @property
    def scale_floor(self) -> Tensor:
        """(B,) least scale of the robust loss: what interpolation and rounding leave of a perfect match."""

    def evaluate(self, state: StateT) -> tuple[Tensor, Tensor]:
        """Return residual (B, N), and seen (B, N): 1 where both images have that pixel, else 0 and so the residual."""

    def normal_equations(self, state: StateT, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return JtJ (B, P, P) and Jtr (B, P), float64, weighted by `weight` (B, N)."""

    def step(self, state: StateT, step: Tensor) -> StateT:
        """Return the state after `step` (B, P)."""

    def length_px(self, step: Tensor) -> Tensor:
        """Return (...) how far `step` (..., P) moves the furthest corner, in pixels."""

    def select(self, index: Tensor) -> Problem[StateT]:
        """Return the pairs that `index` (int64) names."""


@dataclass(frozen=True, slots=True)
class Solution(Generic[StateT]):
    """Where each pair ended.

    Attributes:
        state: the last accepted state.
        stop: (B,) int64, index into `REASONS`.
        num_iterations: (B,) int32.
    """

    state: StateT
    stop: Tensor
    num_iterations: Tensor


@dataclass(frozen=True, slots=True)
class Slack:
    """Steps up to `step_px` long may raise the cost by the share `cost`.

    Inverse compositional steps head for a point a hair off the cost's minimum (the gradients are the template's, and
    interpolation smooths noise away between pixels): of a short step the cost says nothing.
    """

    step_px: float = SHORT_PX
    cost: float = 1e-3


@dataclass(frozen=True, slots=True)
class Memory:
    """The step before, for Anderson acceleration of depth one (Walker and Ni, SIAM J. Numer. Anal. 2011).

    An inverse compositional step whose gradients are those of a sharper or noisier image is too short by the same
    factor each time; two steps show the factor.

    Attributes:
        plain_step: (B, P) what the normal equations said.
        step: (B, P) what was taken.
        accepted: (B,) bool, whether it was kept.
        JtJ: (B, P, P) that it was found with.
        length_px: (B,) of the step.
    """

    plain_step: Tensor
    step: Tensor
    accepted: Tensor
    JtJ: Tensor
    length_px: Tensor

    def select(self, index: Tensor) -> Memory:
        """Return the pairs that `index` (int64) names."""
        return Memory(
            self.plain_step[index], self.step[index], self.accepted[index], self.JtJ[index], self.length_px[index]
        )

    def curvature(self, JtJ: Tensor) -> Tensor:
        """Return (B, P, P) `JtJ`, or the one before where the state hardly moved since: the steps end alike."""
        return torch.where((self.length_px <= KEEP_PX)[:, None, None], self.JtJ, JtJ)

    def extrapolate(self, plain_step: Tensor, JtJ: Tensor) -> Tensor:
        """Return (B, P) the step to take instead of `plain_step`; itself where the step before was thrown away."""
        change = plain_step - self.plain_step
        # Not as a product of matrices, which rounds otherwise for one pair than for many.
        metric_change = (JtJ * change[:, None]).sum(-1)
        mixing = (plain_step * metric_change).sum(-1) / (change * metric_change).sum(-1)
        mixing = mixing.nan_to_num(0.0, 0.0, 0.0).clamp(-LONGEST_EXTRAPOLATION, LONGEST_EXTRAPOLATION)
        mixing = torch.where(self.accepted, mixing, 0.0)
        return plain_step - mixing[:, None] * (self.step + change)


def robust_scale(residual: Tensor, seen: Tensor, floor: Tensor) -> Tensor:
    """Return (B,) 1.4826 times the median absolute residual, at least `floor`; `floor` where nothing is seen."""
    if kernels.serves(residual):
        median = kernels.magnitude_quantile(residual, seen, SCALE_SAMPLES, part=2)
        return torch.fmax(kernels.SCALE_OF_MEDIAN * median, floor)
    stride = max(1, residual.shape[-1] // SCALE_SAMPLES)
    # An odd stride does not fall in step with the rows of an image.
    stride += stride % 2 == 0
    magnitude = torch.where(seen[:, ::stride] > 0, residual[:, ::stride].abs(), torch.nan)
    median = torch.nanmedian(magnitude, dim=-1).values.double()
    return torch.fmax(kernels.SCALE_OF_MEDIAN * median, floor)


def tail_share(residual: Tensor, seen: Tensor, scale: Tensor) -> Tensor:
    """Return (B,) float64, the share of what is seen whose residual is beyond `TAIL_SCALES` scales (B,)."""
    count = (seen > 0).sum(-1, dtype=torch.float64)
    return ((residual.abs() > (TAIL_SCALES * scale)[:, None].to(residual)) & (seen > 0)).sum(-1) / count


def cauchy(residual: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Cauchy (Lorentzian) loss of residual (B, N) with width (B,).

    Returns:
        cost: (B, N) log(1 + (r / width)^2).
        weight: (B, N) of iteratively reweighted least squares, 1 / (1 + (r / width)^2).
    """
    squared = _in_widths(residual, width).square_()
    cost = squared.log1p()
    return cost, squared.add_(1).reciprocal_()


def cauchy_weight(residual: Tensor, width: Tensor) -> Tensor:
    """Return the weight of `cauchy` alone, (B, N)."""
    return _in_widths(residual, width).square_().add_(1).reciprocal_()


def _in_widths(residual: Tensor, width: Tensor) -> Tensor:
    return residual * (1 / width)[:, None].to(residual)


def damped_step(JtJ: Tensor, Jtr: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Solve (JtJ + damping * diag(JtJ)) step = -Jtr, each pair on its own.

    Args:
        JtJ: (B, P, P) float64.
        Jtr: (B, P) float64.
        damping: (B,) float64, dimensionless.

    Returns:
        step: (B, P), zero where `solved` is False.
        solved: (B,) bool, False where the damped matrix is not positive definite.
    """
    # Scaled to a unit diagonal first: parameters of unlike size do not cost digits.
    inverse_size = JtJ.diagonal(dim1=-2, dim2=-1).rsqrt()  # infinite or NaN where the matrix is singular
    scaled = JtJ * inverse_size[:, :, None] * inverse_size[:, None, :]
    identity = torch.eye(JtJ.shape[-1], dtype=JtJ.dtype, device=JtJ.device)
    factor, info = torch.linalg.cholesky_ex(scaled + damping[:, None, None] * identity)
    step = -torch.cholesky_solve((Jtr * inverse_size)[..., None], factor)[..., 0] * inverse_size
    solved = (info == 0) & step.sum(-1).isfinite()
    return torch.where(solved[:, None], step, 0.0), solved


def _rise(cost: Tensor, new_cost: Tensor, both: Tensor) -> Tensor:
    """Return (B,) by which share the cost rises, over what both states see; infinite where nothing can fall."""
    old, new = ((values * both).sum(-1).double() for values in (cost, new_cost))
    return ((new - old) / old).nan_to_num(torch.inf)


def loss_widths(residual: Tensor, seen: Tensor, floor: Tensor, width: float, clean_width: float | None) -> Tensor:
    """Return (B,) float64, the width of the loss in scales: `clean_width` where residuals have no tail."""
    found = torch.full_like(floor, width)
    if clean_width is None:
        return found
    is_clean = tail_share(residual, seen, robust_scale(residual, seen, floor)) <= CLEAN_TAIL
    return torch.where(is_clean, clean_width, found)


def _next_damping(damping: Tensor, accepted: Tensor, extrapolated: Tensor) -> Tensor:
    """Return (B,): less after a step that was taken, more after one that was not."""
    # A rejected extrapolation says nothing against the plain step.
    more = torch.where(extrapolated, damping, (damping * 10).clamp_min(1e-3))
    return torch.where(accepted, (damping / 10).clamp_min(1e-9), more)


def _next_reason(reason: Tensor, is_there: Tensor, damping: Tensor) -> Tensor:
    """Return (B,): why a pair ends with this step; `RUNNING` where it does not."""
    reason = torch.where(is_there, CONVERGED, reason)
    return torch.where((reason == RUNNING) & (damping > LARGEST_DAMPING), NO_DESCENT, reason)


def solve(
    problem: Problem[StateT],
    start: StateT,
    *,
    max_iterations: int,
    step_tol_px: float,
    loss_width: float,
    min_seen: Tensor,
    slack: Slack = Slack(),
    clean_loss_width: float | None = None,
) -> Solution[StateT]:
    """Minimise the mean Cauchy loss of every pair from its start.

    The cost of a step is compared over the pixels that both the old and the new state see: a shrinking overlap must
    not look like progress.

    Args:
        problem: the pairs.
        start: their states.
        max_iterations: most steps tried.
        step_tol_px: a pair has converged when a step moves no corner further than this; that step is still taken.
        loss_width: width of the loss in robust standard deviations of the residual.
        min_seen: (B,) least number of residuals a state must see; below it the overlap is lost.
        slack: how far the cost may rise.
        clean_loss_width: of the loss for pairs whose residuals at the start have no more of a tail than noise has, and
            whose precision a robust loss would cost something for nothing (Gervini and Yohai, "A class of robust and
            fully efficient regression estimators", Annals of Statistics 2002); None: `loss_width`.
    """
    everyone = torch.arange(len(min_seen), device=min_seen.device)
    stop, num_iterations = torch.full_like(everyone, MAX_ITERATIONS), torch.zeros_like(everyone, dtype=torch.int32)
    state, whole, pairs, part = start, start, everyone, problem

    residual, seen = part.evaluate(state)
    reason = torch.where(seen.sum(-1) >= min_seen, RUNNING, OVERLAP_LOST)
    in_scales = loss_widths(residual, seen, part.scale_floor, loss_width, clean_loss_width)
    damping = torch.full(everyone.shape, INITIAL_DAMPING, dtype=torch.float64, device=everyone.device)
    memory: Memory | None = None
    are_running = bool((reason == RUNNING).all())
    for _ in range(max_iterations):
        if not are_running:
            whole = whole.put(pairs, state)
            stop[pairs] = torch.where(reason == RUNNING, MAX_ITERATIONS, reason)
            keep = torch.nonzero(reason == RUNNING)[:, 0]
            if len(keep) == 0:
                break
            pairs, reason, damping = pairs[keep], reason[keep], damping[keep]
            state, part, residual, seen = state.select(keep), part.select(keep), residual[keep], seen[keep]
            memory = memory.select(keep) if memory else None

        width = in_scales[pairs] * robust_scale(residual, seen, part.scale_floor)
        cost, weight = cauchy(residual, width)
        JtJ, Jtr = part.normal_equations(state, residual, weight.mul_(seen))
        JtJ = memory.curvature(JtJ) if memory else JtJ
        plain_step, solved = damped_step(JtJ, Jtr, damping)
        step = memory.extrapolate(plain_step, JtJ) if memory else plain_step
        extrapolated = (step != plain_step).any(-1)
        candidate = part.step(state, step)
        num_iterations[pairs] += 1
        length_px = part.length_px(torch.stack([step, plain_step])).amin(0)
        # Of a step this short the cost says nothing: it is taken as it is.
        arrived = solved & (length_px <= step_tol_px)
        # On a GPU one more look at the residuals costs less than to wait for the answer.
        if residual.device.type == "cpu" and arrived.all():
            state, reason, are_running = candidate, torch.full_like(reason, CONVERGED), False
            continue
        new_residual, new_seen = part.evaluate(candidate)

        rise = _rise(cost, cauchy(new_residual, width)[0], seen * new_seen)
        enough = new_seen.sum(-1) >= min_seen[pairs]
        falls = rise < torch.where(length_px <= slack.step_px, slack.cost, 0.0)
        accepted = arrived | (solved & enough & falls)
        memory = Memory(plain_step, step, accepted, JtJ, length_px)
        stalled = solved & ~accepted & enough & ~extrapolated & (length_px <= SHORT_PX)
        damping = _next_damping(damping, accepted, extrapolated)
        reason = _next_reason(reason, arrived | stalled, damping)
        # Read together: the host waits for the device once a step.
        are_running, are_accepted = torch.stack([(reason == RUNNING).all(), accepted.all()]).tolist()
        if not are_accepted:  # seldom; else a pass over the residuals is saved
            candidate, row = candidate.where(accepted, state), accepted[:, None]
            new_residual, new_seen = torch.where(row, new_residual, residual), torch.where(row, new_seen, seen)
        state, residual, seen = candidate, new_residual, new_seen
    else:
        whole = whole.put(pairs, state)
        stop[pairs] = torch.where(reason == RUNNING, MAX_ITERATIONS, reason)
    return Solution(whole, stop, num_iterations)
