"""The last iterations under noise: what src's own noise must not do to gain and motion."""

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, align
from homoalign.differences.refinement import DROWNED, clean_source, refine_template, refine_template_at, spline_level
from homoalign.levels.noise import denoise
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment, build_problem
from jobs.bench.photographs import load_gray
from jobs.rendering.synthetic import load_scene, random_homography, render_pair

SIGMA = 20 / 255


def test_noise_above_the_contrast_does_not_flatten_the_gain(numpy_rng):
    """Regression on noisy brick, whose contrast is below its noise, would give a gain of about 0.25."""
    size = (256, 256)
    motion = random_homography(numpy_rng, size, 5.0)
    pair = render_pair(load_scene("brick", gray=True), motion, size, rng=numpy_rng)
    src, dst = (
        (image + SIGMA * numpy_rng.standard_normal(image.shape)).astype(np.float32) for image in (pair.src, pair.dst)
    )
    result = align(src, dst, gt=pair.dst_homo_src, config=AlignConfig(use_search=False))
    assert result.gain.item() == pytest.approx(1, abs=0.15)
    assert result.gt_corner_error_px.item() < 0.15


@pytest.mark.parametrize("max_points", [6000, 10**6])
def test_gradients_lose_their_noise_on_some_points_and_on_all(max_points):
    rng = np.random.default_rng(0)
    names = ("astronaut", "camera")
    clean = np.stack([load_gray(name)[100:260, 100:300] for name in names])[:, None]
    src, dst = (
        Level(torch.from_numpy((clean + SIGMA * rng.standard_normal(clean.shape)).astype(np.float32)), None)
        for _ in range(2)
    )
    problem = build_problem(src, spline_level(dst), level=0, max_points=max_points, fit_photometric=True)
    template, everyone = problem.template, torch.arange(2)
    assert template.is_whole == (max_points == 10**6)
    slope = template.with_slopes_of(torch.from_numpy(clean).float(), everyone).slope
    one = torch.ones(2, dtype=torch.float64)
    state = Alignment(torch.eye(3, dtype=torch.float64).repeat(2, 1, 1), one, 0 * one)
    cleaned = clean_source(template, src)
    early = refine_template(template, cleaned)
    late = refine_template_at(template, cleaned, problem, src, dst, state, loss_width=2.4)

    def error(of):
        return (of.slope - slope).square().mean((-2, -1))

    noisy = error(template.with_slopes_of(src.image, everyone))
    assert (error(early) < 0.5 * noisy).all()
    assert (error(late) < 0.6 * noisy).all()


def test_drowned_and_clear_pairs_are_denoised_together_as_each_alone():
    rng = np.random.default_rng(0)
    clean = np.stack([load_gray(name)[100:260, 100:300] for name in ("astronaut", "brick", "camera")])[:, None]
    sigma = np.array([4, 40, 4])[:, None, None, None] / 255
    src = Level(torch.from_numpy((clean + sigma * rng.standard_normal(clean.shape)).astype(np.float32)), None)

    def cleaned(level):
        problem = build_problem(level, level, level=0, max_points=6000, fit_photometric=True)
        return clean_source(problem.template, level)

    together = cleaned(src)
    assert (together.noise_share > DROWNED).tolist() == [False, True, False]
    for i in range(3):
        alone = cleaned(src.select(torch.tensor([i])))
        assert torch.equal(alone.image, together.image[i : i + 1])
    # The third band of the drowned one is freed of noise as well.
    image, noise = src.image[1:2], src.noise[1:2]
    assert torch.equal(together.image[1:2], denoise(image, image, noise, bands=3))
    assert not torch.equal(together.image[1:2], denoise(image, image, noise, bands=2))
