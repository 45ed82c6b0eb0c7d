"""Motion and light together: light must not be taken for motion, nor motion for light."""

import numpy as np
import pytest
import torch

from homoalign import align
from homoalign.differences.joint import FIELDS, TONE, LitAlignment, LitProblem, fields_of, light_template, light_up
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import build_problem
from jobs.rendering.degrade import add_noise, add_vignette, adjust_exposure, to_uint8

PHOTOGRAPHS = ("camera", "coffee", "astronaut", "coins", "chelsea")


def median_error(make_pair, change):
    errors = []
    for name in PHOTOGRAPHS:
        src, dst, truth = make_pair(name, size=(160, 160))
        errors.append(align(to_uint8(src), to_uint8(change(dst)), gt=truth).gt_corner_error_px.item())
    return np.median(errors)


def test_a_vignette_costs_next_to_no_precision(make_pair):
    # In turns with the motion, and quadratic in src's coordinates, it ends at three times that.
    assert median_error(make_pair, lambda image: add_vignette(image, strength=0.6)) < 0.008


def test_a_steep_tone_curve_costs_next_to_no_precision(make_pair):
    # In the dark a small exponent is steeper than any cubic.
    assert median_error(make_pair, lambda image: adjust_exposure(image, gamma=0.6)) < 0.01


def test_a_vignette_under_noise_is_no_motion(make_pair):
    generator = np.random.default_rng(0)

    def change(image):
        return add_noise(add_vignette(image, strength=0.7), sigma_8bit=3.0, rng=generator)

    assert median_error(make_pair, change) < 0.03


@pytest.fixture
def lit_problem(make_pair):
    """A pair in another light, solved so far that only the light is off."""
    src, dst, truth = make_pair("coffee", size=(60, 90))
    levels = [
        Level(torch.as_tensor(image)[None, None].float(), None) for image in (src, add_vignette(dst, strength=0.6))
    ]
    direct = build_problem(*levels, level=0, max_points=2000, fit_photometric=True)
    fields = fields_of(direct.template.u)
    state = LitAlignment(torch.as_tensor(truth)[None].double(), torch.zeros(1, TONE + 2 * len(FIELDS)).double())
    state.weights[:, :3] = torch.tensor([0.4, 0.6, 0.1])
    state.weights[:, TONE:] = 0.1
    return LitProblem(
        direct, light_template(direct.template, state.weights, fields), fields, torch.zeros(1, 1, 1)
    ), state


def test_light_falls_as_torch_has_it_fall(lit_problem, by_torch):
    problem, state = lit_problem
    run = lambda: light_up(state.weights, problem.direct.template.value, problem.fields)  # noqa: E731
    torch.testing.assert_close(run(), by_torch(run), atol=1e-5, rtol=1e-5)


def test_scores_of_motion_and_light_are_those_of_torch(lit_problem, by_torch, rng):
    problem, state = lit_problem
    residual, seen = problem.evaluate(state)
    weight = seen * torch.rand(seen.shape, generator=rng)
    run = lambda: problem.normal_equations(state, residual, weight)[1]  # noqa: E731
    ours, expected = run(), by_torch(run)
    assert (expected != 0).all()
    torch.testing.assert_close(ours, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)


def test_the_slope_of_the_light_is_its_derivative(rng):
    weights = 0.1 * torch.randn(2, TONE + 2 * len(FIELDS), generator=rng, dtype=torch.float64)
    weights[:, 0] = 0.5
    intensity = torch.rand(2, 50, generator=rng)
    fields = 0.1 * torch.randn(2, len(FIELDS), 50, generator=rng)
    value, slope = light_up(weights, intensity, fields)
    inside = (value > 0.02) & (value < 0.98)
    step = 1e-3
    difference = (light_up(weights, intensity + step, fields)[0] - light_up(weights, intensity - step, fields)[0]) / (
        2 * step
    )
    assert inside.sum() > 30
    # float32 values near 1 differ by 6e-8 over steps of 2e-3.
    torch.testing.assert_close(slope[inside], difference[inside], rtol=1e-3, atol=1e-3)
