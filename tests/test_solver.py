"""The solver on problems of two parameters: it never needs an image."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from homoalign.optimisation.solver import REASONS, TAIL_SCALES, cauchy, damped_step, robust_scale, solve, tail_share


@dataclass(frozen=True)
class Point:
    xy: Tensor  # (B, 2)

    def where(self, chosen, other):
        return Point(torch.where(chosen[:, None], self.xy, other.xy))

    def select(self, index):
        return Point(self.xy[index])

    def put(self, index, part):
        return Point(self.xy.index_copy(0, index, part.xy))


@dataclass(frozen=True)
class Lines:
    """Residuals A @ xy - b, and a wall: past x = limit nothing is seen."""

    A: Tensor  # (B, N, 2)
    b: Tensor  # (B, N)
    limit: float = 1e9
    shrink: float = 1.0  # Jacobians too large by this factor make every step too short, as a sharper template does
    costs: list | None = None

    @property
    def scale_floor(self):
        return torch.full((len(self.b),), 1e-3, dtype=torch.float64)

    def evaluate(self, state):
        residual = (self.A @ state.xy[..., None])[..., 0] - self.b
        seen = (state.xy[:, :1] < self.limit).to(residual.dtype).expand_as(residual)
        return residual * seen, seen

    def normal_equations(self, state, residual, weight):  # noqa: ARG002 linear: the same everywhere
        if self.costs is not None:
            self.costs.append(float(residual.square().sum()))
        A = self.shrink * self.A
        return A.mT @ (weight[..., None] * A), (A.mT @ (weight * residual)[..., None])[..., 0]

    def step(self, state, step):
        return Point(state.xy + step)

    def length_px(self, step):
        return step.norm(dim=-1)

    def select(self, index):
        return Lines(self.A[index], self.b[index], self.limit, self.shrink, self.costs)


def run(problem, start, **options):
    defaults = {
        "max_iterations": 50,
        "step_tol_px": 1e-6,
        "loss_width": 2.385,
        "min_seen": torch.full((len(start),), 2),
    }
    return solve(problem, Point(start), **(defaults | options))


def lines(rng, batch=3, outliers=0, noise=0.01):
    A = torch.randn(batch, 200, 2, generator=rng, dtype=torch.float64)
    truth = torch.randn(batch, 2, generator=rng, dtype=torch.float64)
    b = (A @ truth[..., None])[..., 0] + noise * torch.randn(batch, 200, generator=rng, dtype=torch.float64)
    b[:, :outliers] += 5 + torch.rand(batch, outliers, generator=rng, dtype=torch.float64)
    return Lines(A, b), truth


def test_it_finds_the_truth_among_a_third_of_outliers(rng):
    problem, truth = lines(rng, outliers=66)
    solution = run(problem, torch.zeros(3, 2, dtype=torch.float64))
    assert [REASONS[i] for i in solution.stop] == ["converged"] * 3
    # 134 inliers with sigma 0.01: the standard error is 0.001.
    torch.testing.assert_close(solution.state.xy, truth, rtol=0, atol=0.005)


def test_short_steps_are_extrapolated(rng):
    exact, truth = lines(rng)
    slow = Lines(exact.A, exact.b, shrink=2.0)  # each plain step goes half the way
    solution = run(slow, torch.zeros(3, 2, dtype=torch.float64))
    torch.testing.assert_close(solution.state.xy, truth, rtol=0, atol=0.005)
    # Halving 1 px down to the tolerance takes 20 steps.
    assert solution.num_iterations.max() <= 12


def test_the_cost_never_rises(rng):
    problem, _ = lines(rng, batch=1, noise=0.0)
    costs = []
    run(Lines(problem.A, problem.b, costs=costs), torch.full((1, 2), 30.0, dtype=torch.float64))
    assert len(costs) > 2
    assert all(later <= earlier for earlier, later in itertools.pairwise(costs))


def test_pairs_do_not_touch_each_other(rng):
    problem, _ = lines(rng)
    broken = Lines(problem.A.clone(), problem.b.clone())
    broken.A[1] = 0  # singular
    broken.b[2] = torch.nan
    start = torch.zeros(3, 2, dtype=torch.float64)
    together = run(broken, start)
    alone = run(problem.select(torch.tensor([0])), start[:1])
    assert torch.equal(together.state.xy[:1], alone.state.xy)
    assert together.num_iterations[0] == alone.num_iterations[0]
    assert torch.equal(together.state.xy[1:], start[1:])
    assert "converged" not in [REASONS[i] for i in together.stop[1:]]


def test_running_out_of_steps_is_said(rng):
    problem, _ = lines(rng)
    solution = run(problem, torch.full((3, 2), 1e3, dtype=torch.float64), max_iterations=1)
    assert [REASONS[i] for i in solution.stop] == ["max_iterations"] * 3


def test_a_start_that_sees_nothing_has_lost_its_overlap(rng):
    problem, _ = lines(rng)
    solution = run(Lines(problem.A, problem.b, limit=-1.0), torch.zeros(3, 2, dtype=torch.float64))
    assert [REASONS[i] for i in solution.stop] == ["overlap_lost"] * 3
    assert solution.num_iterations.tolist() == [0, 0, 0]


def test_a_step_out_of_sight_is_not_taken():
    # The minimum, x = 5, lies beyond the wall at 3: walking off the image must not look like progress.
    A = torch.tensor([[[1.0, 0], [0, 1], [1, 1]]], dtype=torch.float64)
    b = (A @ torch.tensor([5.0, 0], dtype=torch.float64)[:, None])[..., 0]
    solution = run(Lines(A, b, limit=3.0), torch.zeros(1, 2, dtype=torch.float64))
    assert solution.state.xy[0, 0] < 3


def test_one_singular_pair_does_not_touch_its_neighbours():
    good, singular = 2 * torch.eye(8, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.float64)
    Jtr = torch.ones(2, 8, dtype=torch.float64)
    damping = torch.full((2,), 1e-3, dtype=torch.float64)
    step, solved = damped_step(torch.stack([good, singular]), Jtr, damping)
    alone, _ = damped_step(good[None], Jtr[:1], damping[:1])
    assert solved.tolist() == [True, False]
    assert torch.equal(step[0], alone[0])
    assert step[1].tolist() == [0] * 8


def test_the_weight_is_the_derivative_of_the_cost():
    residual = torch.linspace(-3, 3, 13, dtype=torch.float64)[None].requires_grad_()
    width = torch.tensor([0.7], dtype=torch.float64)
    with torch.enable_grad():
        cost = (residual / width).square().log1p()
        (slope,) = torch.autograd.grad(cost.sum(), residual)
    value, weight = cauchy(residual.detach(), width)
    torch.testing.assert_close(value, cost.detach())
    torch.testing.assert_close(weight * 2 * residual.detach() / width**2, slope)


def test_the_scale_is_that_of_gaussian_noise_and_has_a_floor(rng):
    residual = 0.3 * torch.randn(1, 20_000, generator=rng, dtype=torch.float64)
    seen = torch.ones_like(residual)
    floor = torch.tensor([0.01], dtype=torch.float64)
    assert robust_scale(residual, seen, floor).item() == pytest.approx(0.3, rel=0.05)
    assert robust_scale(residual * 1e-6, seen, floor).item() == 0.01
    assert robust_scale(residual, 0 * seen, floor).item() == 0.01


def test_noise_without_a_tail_is_solved_by_least_squares(rng):
    problem, _ = lines(rng, batch=40, noise=0.05)
    start = torch.zeros(40, 2, dtype=torch.float64)
    best = torch.linalg.lstsq(problem.A, problem.b[..., None]).solution[..., 0]
    narrow, wide = (
        (run(problem, start, step_tol_px=1e-9, clean_loss_width=width).state.xy - best).norm(dim=-1).mean()
        for width in (None, 5.0)
    )
    assert wide < 0.5 * narrow


def test_outliers_are_not_met_with_a_wider_loss(rng):
    problem, _ = lines(rng, outliers=20)
    start = torch.zeros(3, 2, dtype=torch.float64)
    near = run(problem, start).state.xy
    found = [run(problem, near, clean_loss_width=width).state.xy for width in (None, 5.0)]
    assert torch.equal(*found)


def test_the_tail_is_what_lies_beyond_some_scales(rng):
    residual = torch.randn(2, 100_000, generator=rng)
    seen = torch.ones_like(residual)
    seen[1, ::2] = 0
    residual[1, ::2] = 100.0
    scale = torch.ones(2, dtype=torch.float64)
    expected = torch.special.erfc(torch.tensor(TAIL_SCALES / 2**0.5)).double().expand(2)
    torch.testing.assert_close(tail_share(residual, seen, scale), expected, atol=6e-4, rtol=0)
