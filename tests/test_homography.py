import pytest
import torch

from homoalign import homography
from homoalign.homography import corner_errors, motion_of_step, rescale, warp_points


def random_homography(rng, batch=4):
    H = torch.eye(3, dtype=torch.float64).expand(batch, 3, 3).clone()
    H += 0.2 * torch.randn(batch, 3, 3, generator=rng, dtype=torch.float64)
    H[:, 2, :2] *= 1e-3  # mild perspective: no point of a 100 px image reaches the horizon
    return H


def test_homographies_compose(rng):
    H_b_a, H_c_b = random_homography(rng), random_homography(rng)
    xy_a = 100 * torch.rand(4, 50, 2, generator=rng, dtype=torch.float64)

    direct = warp_points(H_c_b @ H_b_a, xy_a)
    in_two_hops = warp_points(H_c_b, warp_points(H_b_a, xy_a))

    # float64 and coordinates near 1e2 px: rounding stays below 1e-12; 1e-9 px leaves room.
    torch.testing.assert_close(direct, in_two_hops, rtol=0, atol=1e-9)


def test_the_inverse_takes_points_back(rng):
    H_b_a = random_homography(rng)
    xy_a = 100 * torch.rand(4, 50, 2, generator=rng, dtype=torch.float64)
    back = warp_points(torch.linalg.inv(H_b_a), warp_points(H_b_a, xy_a))
    torch.testing.assert_close(back, xy_a, rtol=0, atol=1e-9)


def test_a_positive_scale_changes_nothing(rng):
    H_b_a = random_homography(rng)
    xy_a = 100 * torch.rand(4, 50, 2, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(warp_points(3 * H_b_a, xy_a), warp_points(H_b_a, xy_a), rtol=0, atol=1e-9)


def test_points_on_and_behind_the_horizon_have_no_image():
    H_b_a = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-0.01, 0, 1]]], dtype=torch.float64)
    warped = warp_points(H_b_a, torch.tensor([[[99.0, 0], [100.0, 0], [101.0, 0]]], dtype=torch.float64))
    assert warped.isfinite().all(-1).tolist() == [[True, False, False]]


def test_a_step_and_its_negative_cancel(rng):
    step = 0.1 * torch.randn(4, 8, generator=rng, dtype=torch.float64)
    product = motion_of_step(step) @ motion_of_step(-step)
    torch.testing.assert_close(product, torch.eye(3, dtype=torch.float64).expand(4, 3, 3), rtol=0, atol=1e-12)


def test_a_step_agrees_with_the_exponential_map_to_third_order(rng):
    step = 0.01 * torch.randn(4, 8, generator=rng, dtype=torch.float64)
    exact = torch.linalg.matrix_exp(torch.einsum("bp,pij->bij", step, homography.SL3_BASIS))
    # |A|^3 / 12 with |A| about 0.05 is 1e-5.
    torch.testing.assert_close(motion_of_step(step), exact, rtol=0, atol=3e-5)


def test_the_basis_spans_the_traceless_matrices():
    basis = homography.SL3_BASIS
    assert torch.linalg.matrix_rank(basis.flatten(1)) == 8
    assert basis.diagonal(dim1=-2, dim2=-1).sum(-1).tolist() == [0.0] * 8


def test_velocities_are_the_derivative_of_the_motion(rng):
    u = torch.rand(6, 2, generator=rng, dtype=torch.float64) * 2 - 1

    def moved(step):
        return warp_points(motion_of_step(step[None]), u[None])[0]

    numeric = torch.func.jacrev(moved)(torch.zeros(8, dtype=torch.float64))  # (6, 2, 8)
    analytic = torch.stack([torch.stack(pair, dim=-1) for pair in homography.velocities(u[:, 0], u[:, 1])], dim=-1)
    torch.testing.assert_close(analytic, numeric, rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", [-2, 0, 1, 3])
def test_a_level_keeps_the_top_left_pixel_and_divides_the_others(rng, level):
    H_b_a = random_homography(rng)
    xy_a = 100 * torch.rand(4, 50, 2, generator=rng, dtype=torch.float64)
    at_level = warp_points(rescale(H_b_a, level), xy_a / 2**level)
    torch.testing.assert_close(at_level, warp_points(H_b_a, xy_a) / 2**level, rtol=1e-9, atol=1e-9)


def test_frames_of_unlike_size_are_laid_outline_on_outline():
    dst_homo_src = homography.frame_to_frame((10, 20), (30, 40))[None]
    outline = torch.tensor([[[-0.5, -0.5], [19.5, 9.5]]], dtype=torch.float64)
    assert warp_points(dst_homo_src, outline).tolist() == [[[-0.5, -0.5], [39.5, 29.5]]]
    assert torch.equal(homography.frame_to_frame((7, 9), (7, 9)), torch.eye(3, dtype=torch.float64))


def test_corner_errors_are_distances_in_destination_pixels():
    shifted = torch.eye(3, dtype=torch.float64)[None].clone()
    shifted[0, :2, 2] = torch.tensor([3.0, 4.0])
    assert corner_errors(shifted, torch.eye(3, dtype=torch.float64)[None], 10, 20).tolist() == [[5.0] * 4]


def test_a_wrong_shape_is_named_with_both_shapes():
    with pytest.raises(ValueError, match=r"H_b_a should have shape \(B, 3, 3\), got \(4, 2, 3\)"):
        homography.check_shape("H_b_a", torch.zeros(4, 2, 3), "B 3 3")
