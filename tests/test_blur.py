"""Pairs of unlike sharpness: who is blurrier, by what, and what is gained by blurring the other one alike."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve, gaussian_filter, map_coordinates

from homoalign import AlignConfig, Status, align
from homoalign.differences.blur import RADIUS, blur_level, compare_sharpness, even_kernel
from homoalign.differences.photometry import Light
from homoalign.differences.refinement import spline_level
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment, build_problem
from jobs.rendering.degrade import add_noise, adjust_exposure, compress_jpeg, to_uint8
from jobs.rendering.synthetic import load_scene, random_homography, render_pair

SIZE = (200, 240)


def gaussian(sigma):
    off = np.arange(-RADIUS, RADIUS + 1)
    row = np.exp(-(off**2) / (2 * sigma**2))
    kernel = np.outer(row, row)
    return kernel / kernel.sum()


def disc(radius):
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    kernel = (x**2 + y**2 <= radius**2).astype(float)
    return kernel / kernel.sum()


def trail(length):
    kernel = np.zeros((2 * RADIUS + 1, 2 * RADIUS + 1))
    for step in range(-(length // 2), length // 2 + 1):
        kernel[RADIUS + round(0.5 * step), RADIUS + step] = 1 / length
    return kernel


KERNELS = {"slight": gaussian(0.9), "Gaussian": gaussian(2.0), "defocus": disc(4), "motion": trail(9)}


def blurred_by(image, kernel):
    return convolve(image, kernel, mode="mirror").astype(np.float32)


@pytest.fixture
def view(numpy_rng):
    """Render a pair, as (B, 1, H, W) uint8 of noise 2 and the truth, one side blurred: (src, dst, dst_homo_src)."""

    def render(kernel=None, *, side="dst", photograph="astronaut", sigma_8bit=2.0, light=None):
        truth = random_homography(numpy_rng, SIZE, 6.0)
        pair = render_pair(load_scene(photograph, gray=True), truth, SIZE, rng=numpy_rng)
        images = {"src": pair.src.clip(0, 1), "dst": pair.dst.clip(0, 1)}
        if kernel is not None:
            images[side] = blurred_by(images[side], kernel)
        if light is not None:
            images["dst"] = adjust_exposure(images["dst"], **light)
        src, dst = (
            torch.from_numpy(to_uint8(add_noise(image, sigma_8bit=sigma_8bit, rng=numpy_rng)))
            for image in images.values()
        )
        return src[None, None], dst[None, None], torch.from_numpy(truth)[None]

    return render


def compared(src, dst, truth):
    src, dst = (Level(image.float() / 255, None) for image in (src, dst))
    problem = build_problem(src, dst, level=0, max_points=16_384, fit_photometric=True)
    state = Alignment(truth, *problem.matched_moments(truth))
    problem = replace(problem, dst=spline_level(dst), interpolation="spline")
    return compare_sharpness(problem, src, Light.plain(state.gain), state, state.gain).tolist()


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(("side", "blurrier"), [("dst", 1), ("src", -1)])
@pytest.mark.parametrize("sigma_8bit", [0.0, 2.0])
def test_the_blurrier_is_told(view, kind, side, blurrier, sigma_8bit):
    assert compared(*view(KERNELS[kind], side=side, sigma_8bit=sigma_8bit)) == [blurrier]


@pytest.mark.parametrize("photograph", ["astronaut", "camera", "coins", "brick", "grass"])
@pytest.mark.parametrize(
    "case", [{"sigma_8bit": 0.0}, {"sigma_8bit": 5.0}, {"sigma_8bit": 20.0}, {"light": {"gain": 0.6, "bias_8bit": 30}}]
)
def test_neither_is_where_they_are_alike(view, photograph, case):
    assert compared(*view(photograph=photograph, **case)) == [0]


@pytest.mark.parametrize("kind", KERNELS)
def test_the_kernel_is_told(view, kind):
    src, *_ = view()
    sharp = src.float() / 255
    dst = torch.from_numpy(blurred_by(sharp[0, 0].numpy(), KERNELS[kind]))[None, None]
    noise = torch.full((1,), 2 / 255, dtype=torch.float64)
    found = even_kernel(sharp, 0.7 * dst + 0.1, torch.ones_like(sharp), 0 * noise)[0].numpy()
    assert found.sum() == pytest.approx(1)
    np.testing.assert_array_equal(found, found[::-1, ::-1])
    assert np.abs(found - KERNELS[kind]).sum() < 0.6  # noise is all that tells the highest frequencies
    again = blurred_by(sharp[0, 0].numpy(), found)
    assert np.abs(again - dst[0, 0].numpy())[RADIUS:-RADIUS, RADIUS:-RADIUS].mean() < 1e-3


def test_what_moves_an_image_is_no_blur(view):
    src, *_ = view(sigma_8bit=0.0)
    sharp = src.float() / 255
    found = even_kernel(sharp, sharp.roll(1, dims=-1), torch.ones_like(sharp), torch.zeros(1, dtype=torch.float64))[0]
    x = torch.arange(-RADIUS, RADIUS + 1)
    assert (found.sum(0) * x).sum().abs() < 1e-9


def test_plain_ground_tells_no_kernel():
    flat, noise = torch.full((1, 1, 80, 80), 0.5), torch.zeros(1, dtype=torch.float64)
    assert even_kernel(flat, flat, torch.ones_like(flat), noise).isnan().all()


def test_images_are_blurred_as_by_a_plain_convolution(rng, monkeypatch):
    monkeypatch.setattr("homoalign.differences.blur.ROWS_AT_A_TIME", 40)
    image = torch.rand(2, 1, 90, 70, generator=rng)
    mask = torch.ones_like(image)
    mask[1, :, 40:44, 30:36] = 0
    kernels = torch.from_numpy(np.stack([gaussian(1.5), trail(9)]))
    found = blur_level(Level(image, mask), kernels)
    for k in range(2):
        expected = blurred_by(image[k, 0].numpy(), kernels[k].numpy())
        np.testing.assert_allclose(found.image[k, 0].numpy(), expected, atol=1e-5)
    assert found.mask[0, 0, 45, 35] == 1
    assert found.mask[1, 0, 45, 35] == 0  # two rows from the hole
    assert found.mask[:, 0, :, 0].max() == 0
    assert (found.noise < Level(image, mask).noise).all()


@pytest.mark.parametrize("side", ["src", "dst"])
@pytest.mark.parametrize(("kind", "most_px"), [("Gaussian", 0.12), ("defocus", 0.15), ("motion", 0.1)])
def test_a_blurred_image_is_aligned_as_a_sharp_one(view, monkeypatch, kind, side, most_px):
    src, dst, truth = view(KERNELS[kind], side=side)
    found = align(src, dst, gt=truth)
    assert found.status == [Status.OK], found.status_detail
    assert found.gt_corner_error_px.item() < most_px
    assert found.gt_corner_error_px.item() < 5 * found.corner_std_px.item()
    assert found.gain.item() == pytest.approx(1, abs=0.03)
    monkeypatch.setattr("homoalign.cascade.attempt.solve_unlike_sharpness", lambda _, solved: solved)
    without = align(src, dst, gt=truth)
    assert found.gt_corner_error_px.item() < 0.6 * without.gt_corner_error_px.item()


@pytest.mark.parametrize("side", ["src", "dst"])
def test_another_light_does_not_hide_a_blur(view, monkeypatch, side):
    told = []
    monkeypatch.setattr(
        "homoalign.cascade.attempt.solve_unlike_sharpness", lambda _, solved: told.append(solved) or solved
    )
    for kernel in (None, KERNELS["Gaussian"]):
        src, dst, _ = view(kernel, side=side, light={"gain": 0.5, "gamma": 0.6})
        align(src, dst)
    assert [solved.blurrier.tolist() for solved in told[:2]] == [[0], [1 if side == "dst" else -1]]


def test_light_and_masks_beside_a_blur(view):
    src, dst, truth = view(KERNELS["Gaussian"], light={"gain": 0.7, "gamma": 1.4})
    mask = torch.ones(1, *SIZE)
    mask[:, 60:120, 80:150] = 0
    dst[:, :, 60:120, 80:150] = 255
    found = align(src, dst, dst_mask=mask, gt=truth)
    assert found.status == [Status.OK], found.status_detail
    assert found.gt_corner_error_px.item() < 0.25


def test_pairs_of_like_sharpness_are_not_solved_again(view, monkeypatch):
    monkeypatch.setattr("homoalign.descent.unlike_sharpness.even_kernel", lambda *_: 1 / 0)
    assert align(*view()[:2]).status == [Status.OK]
    with pytest.raises(ZeroDivisionError):
        align(*view(KERNELS["Gaussian"])[:2])


def test_blurred_pairs_of_a_batch_end_as_they_do_alone(view):
    pairs = [view(), view(KERNELS["Gaussian"]), view(KERNELS["motion"], side="src"), view(KERNELS["defocus"])]
    src, dst, _ = (torch.cat(side) for side in zip(*pairs, strict=True))
    config = AlignConfig(use_search=False, use_features=False)
    together = align(src, dst, config=config)
    for k in range(len(pairs)):
        alone = align(src[k : k + 1], dst[k : k + 1], config=config)
        assert torch.equal(together.dst_homo_src[k], alone.dst_homo_src[0])


def test_a_kernel_that_explains_nothing_changes_nothing_and_costs_little(view, monkeypatch):
    src, dst, _ = view(KERNELS["Gaussian"])
    identity = torch.zeros(1, 3, 3, dtype=torch.float64)
    identity[:, 1, 1] = 1
    monkeypatch.setattr("homoalign.descent.unlike_sharpness.even_kernel", lambda *_: identity)
    monkeypatch.setattr("homoalign.descent.unlike_sharpness.finish", lambda *_: pytest.fail("solved again"))
    found = align(src, dst)
    monkeypatch.setattr("homoalign.cascade.attempt.solve_unlike_sharpness", lambda _, solved: solved)
    assert torch.equal(align(src, dst).dst_homo_src, found.dst_homo_src)


def test_of_a_batch_those_are_solved_again_whose_kernels_explain_something(view, monkeypatch):
    (src, dst, _), (other, blurred, _) = view(KERNELS["Gaussian"]), view(KERNELS["defocus"], photograph="coffee")
    unmatched = torch.zeros(1, 2 * RADIUS + 1, 2 * RADIUS + 1, dtype=torch.float64)
    unmatched[:, RADIUS, RADIUS] = 1

    def one_of_two(*images):
        return torch.cat([unmatched, even_kernel(*images)[1:]])

    alone = align(other, blurred)
    monkeypatch.setattr("homoalign.descent.unlike_sharpness.even_kernel", one_of_two)
    found = align(torch.cat([src, other]), torch.cat([dst, blurred]))
    assert torch.equal(found.dst_homo_src[1], alone.dst_homo_src[0])
    monkeypatch.setattr("homoalign.cascade.attempt.solve_unlike_sharpness", lambda _, solved: solved)
    assert torch.equal(found.dst_homo_src[0], align(src, dst).dst_homo_src[0])


def of_jpeg(image, quality):
    packed = compress_jpeg(image[0, 0].numpy() / np.float32(255), quality=quality)
    return torch.from_numpy(to_uint8(packed))[None, None]


@pytest.mark.parametrize("side", ["src", "dst"])
@pytest.mark.parametrize(
    ("kind", "quality", "most_px"), [("Gaussian", 95, 0.12), ("defocus", 75, 0.15), ("motion", 40, 0.3)]
)
def test_compression_does_not_hide_a_blur(view, monkeypatch, side, kind, quality, most_px):
    src, dst, truth = view(KERNELS[kind], side=side)
    src, dst = of_jpeg(src, quality), of_jpeg(dst, quality)
    found = align(src, dst, gt=truth)
    assert found.status == [Status.OK], found.status_detail
    assert found.gt_corner_error_px.item() < most_px
    assert found.gt_corner_error_px.item() < 5 * found.corner_std_px.item()
    monkeypatch.setattr("homoalign.cascade.attempt.solve_unlike_sharpness", lambda _, solved: solved)
    without = align(src, dst, gt=truth)
    assert found.gt_corner_error_px.item() < 0.6 * without.gt_corner_error_px.item()


def test_a_blur_that_grows_over_the_frame_is_matched_on_the_whole(view, monkeypatch, numpy_rng):
    src, dst, truth = view(photograph="coffee", sigma_8bit=0.0)
    sharp, share = dst[0, 0].numpy() / 255, np.linspace(0, 1, SIZE[1])
    seen = (1 - share) * gaussian_filter(sharp, 1) + share * gaussian_filter(sharp, 4)
    dst = torch.from_numpy(to_uint8(add_noise(seen, sigma_8bit=2.0, rng=numpy_rng)))[None, None]
    found = align(src, dst, gt=truth)
    monkeypatch.setattr("homoalign.cascade.attempt.solve_unlike_sharpness", lambda _, solved: solved)
    without = align(src, dst, gt=truth)
    assert found.gt_corner_error_px.item() < 0.7 * without.gt_corner_error_px.item()


def test_relief_that_is_out_of_focus_is_left_as_it_is(view, monkeypatch, numpy_rng):
    """What is left once the other image is blurred alike has the image in it: no kernel tells such a pair."""
    src, dst, _ = view(photograph="coffee")
    aside = [gaussian_filter(numpy_rng.standard_normal(SIZE), 6) for _ in range(2)]
    at = [base + 1.2 * shift / shift.std() for base, shift in zip(np.mgrid[: SIZE[0], : SIZE[1]], aside, strict=True)]
    seen = gaussian_filter(map_coordinates(dst[0, 0].numpy() / 255, at, order=1, mode="nearest"), 2)
    dst = torch.from_numpy(to_uint8(add_noise(seen, sigma_8bit=2.0, rng=numpy_rng)))[None, None]
    config = AlignConfig(use_search=False, use_features=False)
    asked = []
    monkeypatch.setattr(
        "homoalign.descent.unlike_sharpness.even_kernel", lambda *given: asked.append(1) or even_kernel(*given)
    )
    found = align(src, dst, config=config)
    assert asked
    monkeypatch.setattr("homoalign.cascade.attempt.solve_unlike_sharpness", lambda _, solved: solved)
    assert torch.equal(align(src, dst, config=config).dst_homo_src, found.dst_homo_src)


def test_a_blur_that_is_none_changes_nothing(view, monkeypatch):
    src, dst, _ = view()
    found = align(src, dst)
    says_dst = torch.ones(1, dtype=torch.int64)
    monkeypatch.setattr("homoalign.descent.conclusion.compare_sharpness", lambda *_: says_dst)
    assert torch.equal(align(src, dst).dst_homo_src, found.dst_homo_src)
