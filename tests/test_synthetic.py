"""Rendered pairs: their truth is exact, neither image is a resample of the other, degradations do what they say."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from jobs.errors import UsageError
from jobs.rendering import degrade, synthetic

SIZE = (192, 224)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


def half_pixel(step: float = 0.5) -> np.ndarray:
    return np.array([[1, 0, step], [0, 1, step], [0, 0, 1.0]])


def patch_shifts(pair: synthetic.RenderedPair, dst_homo_src: np.ndarray) -> np.ndarray:
    """Residual shift, pixels, of each of 16 patches after cv2 has warped src by the given matrix: independent code."""
    height, width = pair.dst.shape
    warped = cv2.warpPerspective(pair.src, dst_homo_src, (width, height), flags=cv2.INTER_LANCZOS4)
    inside = cv2.warpPerspective(np.ones_like(pair.src), dst_homo_src, (width, height))
    gradients = np.stack([*np.gradient(pair.dst)[::-1], np.ones_like(pair.dst)], axis=-1)
    shifts = []
    for y in range(0, height - 40, 40):
        for x in range(0, width - 40, 40):
            here = np.s_[y : y + 40, x : x + 40]
            if inside[here].min() > 0.999:
                # One least-squares step of Lucas and Kanade, brightness offset beside it.
                step = np.linalg.lstsq(gradients[here].reshape(-1, 3), (warped - pair.dst)[here].ravel())[0]
                shifts.append(np.hypot(*step[:2]))
    assert len(shifts) >= 6
    return np.array(shifts)


@pytest.fixture
def pair(rng: np.random.Generator) -> synthetic.RenderedPair:
    scene = synthetic.load_scene("gravel")
    return synthetic.render_pair(scene, synthetic.random_homography(rng, SIZE, 12), SIZE, rng=rng)


def test_the_truth_lays_src_on_dst_to_a_hundredth_of_a_pixel(pair: synthetic.RenderedPair) -> None:
    assert np.median(patch_shifts(pair, pair.dst_homo_src)) < 0.01


def test_the_check_above_sees_a_tenth_of_a_pixel(pair: synthetic.RenderedPair) -> None:
    shifted = np.median(patch_shifts(pair, half_pixel(0.1) @ pair.dst_homo_src))
    assert shifted == pytest.approx(0.1 * np.sqrt(2), rel=0.25)  # a step's own precision


def test_the_check_above_sees_the_inverse(pair: synthetic.RenderedPair) -> None:
    assert np.median(patch_shifts(pair, np.linalg.inv(pair.dst_homo_src))) > 0.2  # a step's reach


def wave(xy: np.ndarray) -> np.ndarray:
    """A smooth picture without aliasing: periods of 30 px and more."""
    return (0.5 + 0.2 * np.sin(xy[..., 0] / 5 + 1) + 0.2 * np.cos(xy[..., 1] / 6 - xy[..., 0] / 9)).astype(np.float32)


def grid(size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float64)


@pytest.mark.parametrize("off_px", [0.0, 0.5])
def test_a_view_of_an_analytic_picture_is_the_picture_at_the_mapped_pixel_centres(
    rng: np.random.Generator, off_px: float
) -> None:
    scene = synthetic.build_scene(wave(grid((300, 320))).reshape(300, 320))
    scene_homo_view = half_pixel(40) @ synthetic.random_homography(rng, (100, 120), 8)
    view = synthetic.render_view(scene, scene_homo_view, (100, 120), psf_sigma_px=0.3)
    wanted = wave(synthetic.warp_points(half_pixel(off_px) @ scene_homo_view, grid((100, 120)))).reshape(100, 120)
    difference = np.abs(view - wanted)[2:-2, 2:-2].max()
    # The point spread of 0.3 px takes about 0.3 ** 2 / 2 * (1 / 5) ** 2 = 0.2 % of the contrast of 0.2.
    assert (difference < 1e-3) == (off_px == 0), difference


def test_both_images_are_equally_sharp(rng: np.random.Generator) -> None:
    scene = synthetic.load_scene("gravel")
    ratios = []
    for _ in range(6):
        pair = synthetic.render_pair(scene, synthetic.random_homography(rng, SIZE, 4), SIZE, rng=rng)
        sharpness = [np.abs(np.diff(image, 2)).mean() for image in (pair.src, pair.dst)]
        ratios.append(sharpness[0] / sharpness[1])
    # A bilinear resample of an image has about 25 % less of the second difference; a bicubic one 10 %.
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)
    resampled = cv2.warpPerspective(pair.src, pair.dst_homo_src, SIZE[::-1], flags=cv2.INTER_LINEAR)
    assert np.abs(np.diff(resampled[20:-20, 20:-20], 2)).mean() < 0.9 * sharpness[0]


def test_detail_finer_than_a_pixel_vanishes_instead_of_aliasing() -> None:
    stripes = np.tile(np.array([0, 1], dtype=np.float32), (400, 200))
    three_to_one = np.diag([2.9, 2.9, 1.0])
    view = synthetic.render_view(synthetic.build_scene(stripes), three_to_one, (100, 120))
    assert view[5:-5, 5:-5].std() < 0.01
    assert stripes[::3, ::3].std() > 0.4  # what picking pixels would leave


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_ones() -> None:
    def rendered(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        dst_homo_src = synthetic.random_homography(rng, (60, 80), 5)
        pair = synthetic.render_pair(synthetic.load_scene("coins"), dst_homo_src, (60, 80), rng=rng)
        noisy = degrade.add_noise(pair.dst, sigma_8bit=5, rng=rng)
        return pair.src.tobytes() + noisy.tobytes() + pair.dst_homo_src.tobytes()

    assert rendered(1) == rendered(1)
    assert rendered(1) != rendered(2)


def test_frames_of_unlike_size_keep_the_truth(rng: np.random.Generator) -> None:
    dst_size = (150, 200)
    dst_homo_src = synthetic.random_homography(rng, SIZE, 6, dst_size=dst_size)
    pair = synthetic.render_pair(synthetic.load_scene("gravel"), dst_homo_src, SIZE, rng=rng, dst_size=dst_size)
    assert (pair.src.shape, pair.dst.shape) == (SIZE, dst_size)
    assert np.median(patch_shifts(pair, pair.dst_homo_src)) < 0.05  # cv2's warp down to 0.8 aliases a little


def test_corners_move_by_no_more_than_the_offset(rng: np.random.Generator) -> None:
    corners = synthetic.corner_points(SIZE)
    for _ in range(50):
        moved = synthetic.warp_points(synthetic.random_homography(rng, SIZE, 20), corners) - corners
        assert np.abs(moved).max() <= 20 + 1e-9
    assert np.abs(moved).max() > 1


def test_a_frame_without_area_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"\(1, 1\).*max_offset_px=0"):
        synthetic.random_homography(rng, (1, 1), 0)


@pytest.mark.parametrize("name", list(synthetic.PHOTOGRAPHS))
def test_a_photograph_is_read_from_the_wheel(name: str) -> None:
    image = synthetic.load_photograph(name)
    assert image.dtype == np.float32
    assert image.ndim == 2 or image.shape[2] == 3
    assert 0 <= image.min() < image.max() <= 1
    assert min(image.shape[:2]) >= 150


def test_an_unknown_photograph_is_named() -> None:
    with pytest.raises(UsageError, match=r"'astronot' is none of astronaut, .*text"):
        synthetic.load_photograph("astronot")


def test_without_scikit_image_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'homoalign\[demo\]'"):
        synthetic.load_photograph("camera")


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_an_occlusion_covers_its_share_and_nothing_else(rng: np.random.Generator, share: float) -> None:
    image = np.full((120, 160, 3), 2.0, dtype=np.float32)
    occluded, covered = degrade.occlude(image, other=synthetic.load_photograph("camera"), share=share, rng=rng)
    assert covered.mean() == pytest.approx(share, abs=0.006)
    np.testing.assert_array_equal((occluded != 2).all(axis=2), covered)


def test_noise_has_the_sigma_it_names(rng: np.random.Generator) -> None:
    noisy = degrade.add_noise(np.full((300, 300), 0.5, dtype=np.float32), sigma_8bit=8, rng=rng)
    assert 255 * noisy.std() == pytest.approx(8, rel=0.02)


def test_exposure_is_gain_times_power_plus_bias() -> None:
    image = np.array([[0.25, 1.0]], dtype=np.float32)
    changed = degrade.adjust_exposure(image, gain=0.5, bias_8bit=51, gamma=0.5)
    np.testing.assert_allclose(changed, [[0.45, 0.7]], atol=1e-6)


def test_a_vignette_spares_the_centre_and_takes_its_strength_at_the_corner() -> None:
    shaded = degrade.add_vignette(np.ones((101, 201), dtype=np.float32), strength=0.4)
    assert shaded[50, 100] == pytest.approx(1)
    assert shaded[0, 0] == pytest.approx(0.6)


def test_another_sensor_may_see_bright_what_the_first_sees_dark(rng: np.random.Generator) -> None:
    ramp = np.linspace(0, 1, 1000, dtype=np.float32)[None]
    seen = [degrade.see_by_other_sensor(ramp, bends=4, rng=rng) for _ in range(8)]
    assert all(image.min() >= 0 and image.max() <= 1 and np.ptp(image) > 0.9 for image in seen)
    assert all(np.abs(np.diff(image)).max() < 0.03 for image in seen)
    assert sum(bool((np.diff(image) < 0).any() and (np.diff(image) > 0).any()) for image in seen) >= 6


def test_relief_shifts_parts_by_what_it_names_and_the_whole_not_at_all() -> None:
    rows, columns = np.mgrid[:120, :160].astype(np.float32)
    # Where a pixel of a ramp was taken from is what it shows; beyond the border ramps are mirrored.
    shifted = [degrade.add_relief(ramp, shift_px=2.0, rng=np.random.default_rng(5)) for ramp in (rows, columns)]
    shift = np.stack([shifted[0] - rows, shifted[1] - columns])[:, 8:-8, 8:-8]
    assert np.sqrt((shift**2).sum(0).mean()) == pytest.approx(2, rel=0.25)
    y, x = (axis[8:-8, 8:-8].ravel() / 160 for axis in (rows, columns))
    affine = np.stack([np.ones_like(x), x, y], axis=1)
    explained = [affine @ np.linalg.lstsq(affine, part.ravel(), rcond=None)[0] for part in shift]
    assert np.sqrt((np.stack(explained) ** 2).sum(0).mean()) < 0.6


@pytest.mark.parametrize(
    "change",
    [
        lambda image: degrade.add_blur(image, sigma_px=1.5),
        lambda image: degrade.compress_jpeg(image, quality=20),
        lambda image: degrade.add_vignette(image, strength=0.5),
    ],
    ids=["blur", "jpeg", "vignette"],
)
@pytest.mark.parametrize("name", ["camera", "coffee"])
def test_a_degradation_keeps_shape_and_type_and_leaves_its_input_alone(
    name: str, change: Callable[[synthetic.Image], synthetic.Image]
) -> None:
    image = synthetic.load_photograph(name)
    before = image.copy()
    changed = change(image)
    assert (changed.shape, changed.dtype) == (image.shape, np.float32)
    assert np.abs(changed - image).mean() > 0.001
    np.testing.assert_array_equal(image, before)


def test_rounding_saturates_instead_of_wrapping() -> None:
    image = np.array([[-0.2, 0.5, 1.2]], dtype=np.float32)
    assert degrade.to_uint8(image).tolist() == [[0, 128, 255]]
    assert degrade.to_uint16(image).tolist() == [[0, 32768, 65535]]
