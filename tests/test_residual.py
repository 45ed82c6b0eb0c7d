import pytest
import torch
from levels import level_of

from homoalign.homography import corner_errors
from homoalign.optimisation.residual import Alignment, build_problem


def alignment(dst_homo_src, gain=1.0, bias=0.0):
    matrix = torch.as_tensor(dst_homo_src, dtype=torch.float64).reshape(1, 3, 3)
    value = torch.ones(1, dtype=torch.float64)
    return Alignment(matrix, gain * value, bias * value)


def problem_of(src, dst, **options):
    defaults = {
        "level": 0,
        "max_points": 10**6,
        "fit_photometric": True,
    }
    return build_problem(src, dst, **(defaults | options))


def test_the_residual_vanishes_at_the_truth(make_pair):
    src, dst, truth = make_pair()
    problem = problem_of(level_of(src), level_of(0.7 * dst + 0.1))
    residual, seen = problem.evaluate(alignment(truth, 0.7, 0.1))
    off = truth.copy()
    off[0, 2] += 1
    residual_off, _ = problem.evaluate(alignment(off, 0.7, 0.1))
    # Cubic interpolation of a sharp photograph errs by a percent of its contrast; one pixel off is several times that.
    assert residual[seen > 0].abs().median() < 0.005
    assert residual_off[seen > 0].abs().median() > 3 * residual[seen > 0].abs().median()


def test_the_gradient_is_that_of_the_cost(make_pair):
    # Inverse compositional steps use src's gradient for dst's: nearly the same where dst is src and a faint wave.
    src, _, _ = make_pair()
    smooth = torch.nn.functional.avg_pool2d(torch.as_tensor(src)[None, None], 9, 1)[0, 0]
    y, x = torch.meshgrid(*(torch.arange(side).float() for side in smooth.shape), indexing="ij")
    mask = torch.zeros(smooth.shape)
    mask[10:-10, 10:-10] = 1  # what moves in and out of sight is not in the gradient
    problem = problem_of(level_of(smooth, mask=mask), level_of(smooth + 0.003 * torch.sin(0.1 * x + 0.07 * y)))
    state = alignment(torch.eye(3), bias=0.002)
    residual, seen = problem.evaluate(state)
    _, Jtr = problem.normal_equations(state, residual, seen)
    for i in range(10):
        step = torch.zeros(1, 10, dtype=torch.float64)
        step[0, i] = 1e-4

        def cost(step):
            new, new_seen = problem.evaluate(problem.step(state, step))
            return 0.5 * ((new * seen * new_seen).double() ** 2).sum()

        numeric = (cost(step) - cost(-step)) / 2e-4
        # The faint wave's own slope is a few per cent of the photograph's.
        assert abs(numeric - Jtr[0, i]) < 0.03 * Jtr.abs().max(), i


def test_a_step_moves_the_corners_as_far_as_it_says(make_pair, rng):
    src, dst, _ = make_pair()
    problem = problem_of(level_of(src), level_of(dst))
    step = torch.cat([1e-5 * torch.randn(1, 8, generator=rng), torch.zeros(1, 2)], dim=1).double()
    before = alignment(torch.eye(3))
    moved = corner_errors(problem.step(before, step).dst_homo_src, before.dst_homo_src, *src.shape).max()
    assert moved.item() == pytest.approx(problem.length_px(step).item(), rel=1e-3)


def test_gain_and_bias_stay_where_they_are_not_fitted(make_pair):
    src, dst, truth = make_pair()
    problem = problem_of(level_of(src), level_of(dst), fit_photometric=False)
    state = alignment(truth)
    JtJ, Jtr = problem.normal_equations(state, *problem.evaluate(state))
    assert Jtr[0, 8:].tolist() == [0, 0]
    assert JtJ[0, 8:, 8:].tolist() == [[1, 0], [0, 1]]
    assert JtJ[0, :8, 8:].abs().sum() == 0


def test_points_are_spread_and_avoid_the_mask(make_pair):
    src, dst, _ = make_pair()
    mask = torch.ones(src.shape, dtype=torch.bool)
    mask[:, :80] = False
    problem = problem_of(level_of(src, mask=mask), level_of(dst), max_points=src.size // 16)
    height, width = src.shape
    x = problem.template.u[0, 0] * max(height, width) / 2 + (width - 1) / 2
    used = problem.template.usable[0]
    assert x[used].min() > 80
    assert 0.4 < used.float().mean() <= 0.5
    assert len({(int(a) // 16) for a in x[used]}) == 5  # every 16-pixel strip of the right half holds some


def test_masked_destination_pixels_are_not_seen(make_pair):
    src, dst, truth = make_pair()
    nothing = torch.zeros(dst.shape, dtype=torch.bool)
    _, seen = problem_of(level_of(src), level_of(dst, mask=nothing)).evaluate(alignment(truth))
    assert seen.sum() == 0


@pytest.mark.parametrize("corner", ["behind the horizon", "nan"])
def test_an_implausible_matrix_sees_nothing_and_yields_no_nan(make_pair, corner):
    src, dst, _ = make_pair()
    bottom = [-1 / 80, 0, 1] if corner == "behind the horizon" else [float("nan"), 0, 1]
    matrix = torch.tensor([[1.0, 0, 0], [0, 1, 0], bottom])
    residual, seen = problem_of(level_of(src), level_of(dst)).evaluate(alignment(matrix))
    assert seen.sum() == 0
    assert residual.abs().sum() == 0
