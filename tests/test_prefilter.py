"""The last run on smoothed images, where the points are a part of the pixels."""

import dataclasses

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, Status, align
from homoalign.differences.prefilter import prefilter
from homoalign.differences.refinement import clean_source
from homoalign.levels.pyramid import Level, soften
from homoalign.optimisation.residual import build_problem
from homoalign.optimisation.template import at_points
from homoalign.trust.evidence import EVIDENCE
from jobs.bench.photographs import load_gray
from jobs.rendering.degrade import add_noise, add_vignette, adjust_exposure, compress_jpeg, to_uint8
from jobs.rendering.synthetic import load_scene, random_homography, render_pair

SIZE = (320, 400)
CONFIG = AlignConfig(use_search=False, use_features=False)


@pytest.fixture
def view(numpy_rng):
    """Render a pair of more pixels than points: (src, dst, dst_homo_src), bytes and the truth."""

    def render(photograph="camera", *, sigma_8bit=3.0, change=lambda image: image):
        truth = random_homography(numpy_rng, SIZE, 8.0)
        pair = render_pair(load_scene(photograph, gray=True), truth, SIZE, rng=numpy_rng)
        images = pair.src.clip(0, 1), change(pair.dst.clip(0, 1))
        src, dst = (to_uint8(add_noise(image, sigma_8bit=sigma_8bit, rng=numpy_rng)) for image in images)
        return src, dst, truth

    return render


@pytest.fixture
def unfiltered(monkeypatch):
    """Align as if there were no such thing."""

    def found(*given, **named):
        with monkeypatch.context() as patch:
            patch.setattr("homoalign.descent.full_size.prefilter", lambda *_: None)
            return align(*given, **named)

    return found


def test_a_slope_stays_one_up_to_the_border():
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    ramp = (0.3 * x - 0.2 * y + 1)[None, None]
    torch.testing.assert_close(soften(ramp), ramp, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("sigma_8bit", "quality", "most"), [(0.0, None, 0.9), (4.0, None, 0.85), (2.0, 80, 0.85)])
def test_points_tell_of_their_neighbours(view, unfiltered, sigma_8bit, quality, most):
    ratios = []
    for photograph in ("astronaut", "camera", "coffee", "brick", "grass", "rocket", "coins", "chelsea"):
        src, dst, truth = view(photograph, sigma_8bit=sigma_8bit)
        if quality is not None:
            src, dst = (to_uint8(compress_jpeg(image / np.float32(255), quality=quality)) for image in (src, dst))
        found, before = (solve(src, dst, gt=truth, config=CONFIG) for solve in (align, unfiltered))
        assert found.status == [Status.OK], found.status_detail
        assert found.gt_corner_error_px.item() < 3 * found.corner_std_px.item()
        ratios.append((found.gt_corner_error_px / before.gt_corner_error_px).item())
    assert np.exp(np.mean(np.log(ratios))) < most


def test_what_is_said_of_an_answer_is_of_smoothed_points_and_of_plain_residuals(view, unfiltered):
    src, dst, _ = view(sigma_8bit=6.0)
    found, before = (solve(src, dst, config=CONFIG) for solve in (align, unfiltered))
    assert found.corner_std_px.item() < 0.95 * before.corner_std_px.item()
    unexplained = EVIDENCE.index("unexplained")
    assert found.evidence[0, unexplained].item() == pytest.approx(before.evidence[0, unexplained].item(), rel=0.05)


@pytest.mark.parametrize(
    ("change", "photometric"),
    [
        (lambda image: add_vignette(0.2 + 0.6 * image, strength=0.5), "auto"),
        (lambda image: adjust_exposure(image, gain=1.25), "gain_bias"),
        (lambda image: 0.5 * image + 0.4, "none"),
    ],
    ids=["rich light", "cut off", "unexplained"],
)
def test_pairs_that_differ_by_more_are_left_as_they_are(view, unfiltered, change, photometric):
    src, dst, _ = view("astronaut", change=change)
    config = dataclasses.replace(CONFIG, photometric=photometric)
    found, before = (solve(src, dst, config=config).dst_homo_src for solve in (align, unfiltered))
    assert torch.equal(found, before)


def soft_problem(src, dst, *, mask=None):
    """Prefilter a pair of levels that lie on each other: (problem before, problem after)."""
    src, dst = Level(src, mask), Level(dst, mask)
    problem = build_problem(src, dst, level=0, max_points=4000, fit_photometric=True)
    found = prefilter(problem, torch.ones(1, dtype=torch.bool), src, dst, clean_source(problem.template, src))
    assert found.index.tolist() == [0]
    return problem, found.problem


def test_slopes_are_those_of_the_smoothed_scene_without_its_noise(numpy_rng):
    scene = torch.from_numpy(load_gray("camera")[:200, :260].astype(np.float32))[None, None]
    noise = torch.from_numpy(numpy_rng.standard_normal(scene.shape).astype(np.float32))
    before, after = soft_problem(scene + 15 / 255 * noise, scene)
    everyone = torch.zeros(1, dtype=torch.int64)
    slope = before.template.with_slopes_of(soften(scene), everyone).slope
    noisy = before.template.with_slopes_of(soften(scene + 15 / 255 * noise), everyone).slope
    assert (after.template.slope - slope).square().mean() < 0.7 * (noisy - slope).square().mean()
    expected = at_points(soften(scene + 15 / 255 * noise), before.template.chosen)[:, 0]
    torch.testing.assert_close(after.template.value, expected)


def test_points_beside_a_mask_do_not_count():
    scene = torch.from_numpy(load_gray("camera")[:200, :260].astype(np.float32))[None, None]
    mask = torch.ones_like(scene)
    mask[..., 60:120, 80:160] = 0
    before, after = soft_problem(scene, scene, mask=mask)
    y, x = torch.div(before.template.chosen[0], 260, rounding_mode="floor"), before.template.chosen[0] % 260
    beside = (y >= 58) & (y < 122) & (x >= 78) & (x < 162)
    assert (before.template.usable[0] & beside).any()
    assert not (after.template.usable[0] & beside).any()
    assert torch.equal(after.template.usable[0][~beside], before.template.usable[0][~beside])
    assert after.dst.mask[0, 0, 100, 77] == 0  # a spline reads two pixels either way, each of them of three
    assert after.dst.mask[0, 0, 100, 76] == 1


def test_plain_and_other_pairs_of_a_batch_end_as_they_do_alone(view):
    pairs = [view(), view(change=lambda image: add_vignette(image, strength=0.6)), view("grass", sigma_8bit=20)]
    src, dst = (torch.from_numpy(np.stack(side))[:, None] for side in list(zip(*pairs, strict=True))[:2])
    together = align(src, dst, config=CONFIG)
    for k in range(len(pairs)):
        alone = align(src[k : k + 1], dst[k : k + 1], config=CONFIG)
        assert torch.equal(together.dst_homo_src[k], alone.dst_homo_src[0])
        assert torch.equal(together.corner_covariance[k], alone.corner_covariance[0])


@pytest.mark.parametrize("side", ["src", "dst"])
def test_a_mask_that_leaves_no_square_whole_leaves_the_pair_as_it_is(view, unfiltered, side):
    src, dst, truth = view(sigma_8bit=0.0)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] % (6 if side == "src" else 9)
    mask = ((y > 2) | (x > 2)).astype(np.uint8)  # holes of 3 x 3 pixels: smaller ones are filled
    given = {f"{side}_mask": mask, "gt": truth, "config": CONFIG}
    found, before = (solve(src, dst, **given) for solve in (align, unfiltered))
    assert found.gt_corner_error_px.item() < 0.05
    assert torch.equal(found.dst_homo_src, before.dst_homo_src)


def test_points_that_are_far_apart_gain_nothing(view, unfiltered):
    src, dst, _ = view()
    config = dataclasses.replace(CONFIG, final_points=500)
    found, before = (solve(src, dst, config=config).dst_homo_src for solve in (align, unfiltered))
    assert torch.equal(found, before)
