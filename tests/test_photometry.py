"""Light that one gain and one bias do not explain must not move the answer."""

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, Status, align
from homoalign.differences.photometry import LINEAR, NUM_FUNCTIONS, fit_light, normalise_locally, regress
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment, build_problem
from jobs.rendering.degrade import add_vignette, adjust_exposure, to_uint8

PHOTOGRAPHS = ("camera", "coffee", "astronaut")


def median_error(make_pair, change, config=None):
    errors = []
    for name in PHOTOGRAPHS:
        src, dst, truth = make_pair(name, size=(160, 160))
        errors.append(align(to_uint8(src), to_uint8(change(dst)), gt=truth, config=config).gt_corner_error_px.item())
    return np.median(errors)


@pytest.mark.parametrize("gamma", [0.6, 1.6])
def test_a_tone_curve_is_seen_through(make_pair, gamma):
    def change(image):
        return adjust_exposure(image, gamma=gamma)

    assert median_error(make_pair, change) < 0.03
    # What there is to see through: gain and bias alone are several times further off.
    assert median_error(make_pair, change, AlignConfig(photometric="gain_bias", signal="intensity")) > 0.045


def test_a_strong_vignette_is_seen_through(make_pair):
    assert median_error(make_pair, lambda image: add_vignette(image, strength=0.6)) < 0.05


def test_saturation_is_seen_through(make_pair):
    assert median_error(make_pair, lambda image: adjust_exposure(image, gain=1.8)) < 0.08


def test_gain_and_bias_are_the_best_line_through_a_tone_curve(make_pair):
    src, dst, _ = make_pair(max_offset_px=0.0)
    result = align(src, adjust_exposure(dst, gamma=0.6))
    gain, bias = np.polyfit(src.ravel(), (src**0.6).ravel(), 1)
    assert result.status == [Status.OK]
    assert result.gain.item() == pytest.approx(gain, abs=0.05)
    assert result.bias.item() == pytest.approx(bias, abs=0.03)
    assert result.inlier_ratio.item() > 0.5


def test_the_light_of_one_pair_does_not_touch_its_neighbours(make_pair):
    pairs = [make_pair(name) for name in PHOTOGRAPHS]
    src = torch.stack([torch.as_tensor(pair[0]) for pair in pairs])[:, None]
    dst = torch.stack([torch.as_tensor(pair[1]) for pair in pairs])[:, None]
    dst[0] = torch.as_tensor(add_vignette(pairs[0][1], strength=0.6))
    dst[1] = torch.as_tensor(adjust_exposure(pairs[1][1], gamma=0.6))
    together = align(src, dst)
    for i in range(3):
        alone = align(src[i : i + 1], dst[i : i + 1])
        assert torch.equal(alone.dst_homo_src[0], together.dst_homo_src[i])
        assert alone.gain[0] == together.gain[i]


def test_a_slow_gain_and_bias_leave_no_trace_in_locally_normalised_images(make_pair):
    image = torch.as_tensor(make_pair()[0])[None, None]
    y = torch.linspace(0, 1, image.shape[-2])[:, None]
    before = normalise_locally(Level(image, None)).image
    after = normalise_locally(Level((0.5 + 0.5 * y) * image + 0.2 * y, None)).image
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.98


def test_masked_pixels_do_not_leak_into_locally_normalised_ones(make_pair):
    image = torch.as_tensor(make_pair()[0])[None, None].clone()
    mask = torch.ones_like(image)
    mask[..., :40, :40] = 0
    before = normalise_locally(Level(image, mask)).image
    image[..., :40, :40] = 100.0
    torch.testing.assert_close(normalise_locally(Level(image, mask)).image, before)


NOISE = 0.03


@pytest.fixture
def faint(rng):
    """Return src and dst, noisy both, of a frame that is dark for the most part, and where they are alike."""
    scene = 0.3 + 0.35 * torch.rand(1, 1, 200, 200, generator=rng) ** 3
    src, dst = (scene + NOISE * torch.randn(scene.shape, generator=rng) for _ in range(2))
    return Level(src, None), Level(dst, None), torch.eye(3, dtype=torch.float64)[None]


@pytest.mark.parametrize("num_functions", [LINEAR, NUM_FUNCTIONS])
def test_noise_in_src_does_not_bend_the_light(faint, num_functions):
    src, dst, eye = faint
    problem = build_problem(src, dst, level=0, max_points=50_000, fit_photometric=True)
    value, seen = problem.read_dst(eye)
    intensity = torch.linspace(0.3, 0.6, 50, dtype=torch.float64)
    off = {}
    for noise in (0.0, NOISE):
        sigma = torch.full((1,), noise, dtype=torch.float64)
        weights, _ = regress(problem, num_functions, value, seen, sigma, 100.0)
        tone = torch.stack([(2 * intensity - 1) ** k for k in range(min(num_functions, 4))])
        off[noise] = ((weights[0, : len(tone), None] * tone).sum(0) - intensity).square().mean().sqrt().item()
    assert off[0.0] > 0.006
    assert off[NOISE] < 0.3 * off[0.0]


def test_noise_alone_makes_no_light_rich(faint):
    src, dst, eye = faint
    problem = build_problem(src, dst, level=0, max_points=50_000, fit_photometric=True)
    one = torch.ones(1, dtype=torch.float64)
    sigma = NOISE * one
    found = {
        noise: fit_light(
            problem, Alignment(eye, one, 0 * one), src_noise=noise * one, noise=2**0.5 * sigma, loss_width=2.4
        )
        for noise in (0.0, NOISE)
    }
    assert found[0.0][0].is_rich.item()  # what regression on noisy intensities makes of it
    assert not found[NOISE][0].is_rich.item()
    assert found[NOISE][1].gain.item() == pytest.approx(1, abs=0.06)
