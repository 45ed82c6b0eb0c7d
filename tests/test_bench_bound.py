"""The Cramer-Rao bound is what an efficient estimator attains."""

import math

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from jobs.bench import bound
from jobs.rendering.synthetic import corner_points, load_scene, random_homography, render_pair, warp_points

SIZE = (96, 96)


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(3)
    scene = load_scene("astronaut", gray=True)
    return render_pair(scene, random_homography(rng, SIZE, 6), SIZE, rng=rng)


def bound_of(views, sigma_8bit, **settings):
    variance = bound.pixel_variance(sigma_8bit)
    return bound.mean_corner_error_bound(views.dst, views.dst_homo_src, SIZE, variance=variance, **settings)


def test_an_oracle_that_knows_the_gradients_attains_the_bound(views):
    """One Gauss-Newton step from the truth, true gradients, white noise in the residual: the linear case exactly."""
    rng, sigma = np.random.default_rng(0), 5.0
    inside = bound.overlap(views.dst.shape, views.dst_homo_src, SIZE).ravel()
    jacobian = bound.motion_jacobian(views.dst)[inside]
    to_parameters = np.linalg.pinv(jacobian)
    corners = warp_points(views.dst_homo_src, corner_points(SIZE))
    at_corners = bound.velocities(corners, views.dst.shape)
    errors = []
    for _ in range(400):
        noise = [rng.normal(0, sigma, inside.sum()) + rng.uniform(-0.5, 0.5, inside.sum()) for _ in "sd"]
        step = to_parameters @ ((noise[0] - noise[1]) / 255)
        errors.append(np.linalg.norm(at_corners @ step, axis=1).mean())
    # The mean of 400 lengths is good to 2 %.
    assert np.mean(errors) == pytest.approx(bound_of(views, sigma), rel=0.06)


def test_the_jacobian_is_the_change_of_the_image_under_each_parameter(views):
    """Independent of the formulas: dst resampled at points moved a little by each element of the group."""
    jacobian = bound.motion_jacobian(views.dst).reshape(*SIZE, 8)
    half, centre, small = max(SIZE) / 2, (np.array(SIZE) - 1) / 2, 1e-5
    to_pixels = np.array([[half, 0, centre[1]], [0, half, centre[0]], [0, 0, 1]])
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].reshape(2, -1).astype(np.float64)
    # shift x, shift y, rotation, scale, stretch, shear, perspective x and y, as matrices of the Lie algebra
    elements = np.zeros((8, 3, 3))
    elements[0, 0, 2] = elements[1, 1, 2] = 1
    elements[2, 0, 1], elements[2, 1, 0] = -1, 1
    elements[3, 0, 0] = elements[3, 1, 1] = elements[4, 0, 0] = elements[5, 0, 1] = elements[5, 1, 0] = 1
    elements[4, 1, 1] = -1
    elements[6, 2, 0] = elements[7, 2, 1] = -1
    inner = np.s_[8:-8, 8:-8]  # the spline's mirrored border aside
    for number, element in enumerate(elements):
        moved_homo_dst = to_pixels @ (np.eye(3) + small * element) @ np.linalg.inv(to_pixels)
        moved = warp_points(moved_homo_dst, np.column_stack([x, y]))
        values = map_coordinates(views.dst.astype(np.float64), [moved[:, 1], moved[:, 0]], order=3, mode="mirror")
        change = (values.reshape(SIZE) - views.dst) / small
        np.testing.assert_allclose(change[inner], jacobian[..., number][inner], atol=0.02)  # of values up to 10


def test_the_bound_grows_with_the_noise_and_with_what_is_hidden(views):
    half = np.arange(SIZE[1])[None, :] < SIZE[1] // 2
    usable = np.broadcast_to(half, SIZE)
    assert bound_of(views, 20) == pytest.approx(bound_of(views, 5) * math.sqrt((400 + 1 / 12) / (25 + 1 / 12)))
    assert bound_of(views, 5, usable=usable) > 1.3 * bound_of(views, 5)
    assert bound_of(views, 5, usable=np.zeros(SIZE, dtype=bool)) == math.inf


def test_gain_scales_the_noise_of_src():
    assert bound.pixel_variance(5, 2.0) == pytest.approx(2.5 * bound.pixel_variance(5))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_expected_length_of_a_normal_vector(ratio):
    rng = np.random.default_rng(1)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    covariance = turn @ np.diag([4.0, 4.0 * ratio**2]) @ turn.T
    drawn = rng.normal(size=(200_000, 2)) * [2.0, 2.0 * ratio]
    assert bound.expected_length(covariance) == pytest.approx(np.linalg.norm(drawn, axis=1).mean(), rel=0.01)
