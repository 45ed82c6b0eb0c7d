import math

import pytest
import torch
from pretend_cuda import DEVICE, PretendCuda

import homoalign
from homoalign.levels.sampling import is_inside, sample_unit, unit_from_pixels, warp_with_coverage
from homoalign.levels.spline import spline_coefficients


def ramp(height=7, width=9):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (x + 10.0 * y)[None, None].double()


def unit(*xy):
    """Unit coordinates (1, 2, N) of pixels of `ramp()`."""
    matrix = unit_from_pixels(7, 9, device=torch.device("cpu"))
    return (torch.tensor([[*point, 1.0] for point in xy], dtype=torch.float64) @ matrix.mT)[None, :, :2].mT


@pytest.mark.parametrize("interpolation", ["bilinear", "spline"])
def test_pixel_centres_are_at_integers(interpolation):
    image = ramp() if interpolation == "bilinear" else spline_coefficients(ramp())
    read = sample_unit(image, unit((0, 0), (8, 0), (3, 2), (8, 6)), interpolation)
    # The recursive filter is cut at 3e-5 of the intensities, which reach 68.
    torch.testing.assert_close(read[0, 0], torch.tensor([0, 8, 23, 68]).double(), rtol=0, atol=0.01)


def test_a_slope_is_read_between_pixels():
    assert sample_unit(ramp(), unit((2.25, 3.5)))[0, 0, 0].item() == pytest.approx(37.25)


def test_nan_is_not_inside():
    xy = torch.tensor([[0.0, 0.0], [8.0, 6.0], [8.1, 0.0], [math.nan, 1.0]])
    assert is_inside(xy, (7, 9)).tolist() == [True, True, False, False]
    assert is_inside(xy, (7, 9), margin=1).tolist() == [False] * 4


def test_the_identity_warps_every_pixel_onto_itself():
    image = ramp()
    assert torch.allclose(homoalign.warp(image, torch.eye(3)[None], (7, 9)), image)


def test_a_shift_moves_the_image_right_and_down():
    shift = torch.tensor([[[1.0, 0, 2], [0, 1, 1], [0, 0, 1]]])
    warped = homoalign.warp(ramp(), shift, (7, 9))
    torch.testing.assert_close(warped[0, 0, 1:, 2:], ramp()[0, 0, :-1, :-2])
    assert warped[0, 0, 0].tolist() == [0] * 9
    assert warped[0, 0, :, :2].abs().sum() == 0


def test_warping_agrees_with_opencv(rng):
    import cv2

    image = torch.rand(1, 1, 40, 60, generator=rng)
    dst_homo_src = torch.tensor([[[1.1, 0.1, -3], [-0.05, 0.9, 2], [1e-3, -5e-4, 1]]], dtype=torch.float64)
    warped, covered = warp_with_coverage(image, dst_homo_src, (50, 70))
    theirs = cv2.warpPerspective(image[0, 0].numpy(), dst_homo_src[0].numpy(), (70, 50))
    inner = covered[0] & torch.from_numpy(cv2.erode(covered[0].numpy().astype("uint8"), None) > 0)
    # OpenCV rounds coordinates to 1/32 px; white noise changes by up to 1 a pixel.
    assert (warped[0, 0] - torch.from_numpy(theirs))[inner].abs().max() < 0.1


def test_a_singular_or_nan_matrix_covers_nothing():
    matrices = torch.stack([torch.zeros(3, 3), torch.full((3, 3), math.nan), torch.eye(3)])
    _, covered = warp_with_coverage(ramp().expand(3, 1, 7, 9), matrices, (7, 9))
    assert covered.flatten(1).any(-1).tolist() == [False, False, True]


def test_what_lies_behind_the_horizon_is_not_covered():
    # w = 1 - 0.25 x: source columns 4 and on are at or behind the horizon, and must not reappear mirrored.
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-0.25, 0, 1]]], dtype=torch.float64)
    _, covered = warp_with_coverage(ramp(), matrix, (7, 20))
    x_dst = torch.arange(20).double()
    x_src = x_dst / (1 + 0.25 * x_dst)
    assert covered[0, 0].tolist() == ((x_src >= 0) & (x_src <= 8)).tolist()


def test_a_wrong_matrix_shape_is_a_value_error():
    with pytest.raises(ValueError, match=r"dst_homo_src should have shape \(B, 3, 3\), got \(3, 3\)"):
        homoalign.warp(ramp(), torch.eye(3), (7, 9))


@pytest.mark.parametrize("wanted", ["image", "matrix"])
def test_warping_can_be_differentiated(wanted):
    with torch.inference_mode():  # must not leave anything behind that a later call cannot differentiate
        homoalign.warp(ramp(11, 13), torch.eye(3)[None], (11, 13))
    image, matrix = ramp(11, 13), torch.eye(3, dtype=torch.float64)[None].clone()
    leaf = (image if wanted == "image" else matrix).requires_grad_()
    homoalign.warp(image, matrix, (11, 13)).sum().backward()
    assert leaf.grad.abs().sum() > 0


DEGENERATE = {
    "nan": torch.full((3, 3), math.nan),
    "singular": torch.zeros(3, 3),
    "far away": torch.tensor([[1.0, 0, 1e30], [0, 1, 0], [0, 0, 1]]),
    "of another scale": 1e-37 * torch.eye(3),
    "with the horizon across": torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1 / 8, 0, 1]]),
}


@pytest.mark.parametrize("matrix", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("size", [(64, 64), (11, 13)])
def test_degenerate_matrices_have_finite_gradients(matrix, size, rng):
    """The bilinear read's backward pass writes wherever NaN points: it used to end the process."""
    image = torch.rand(2, 1, *size, generator=rng).requires_grad_()
    matrices = torch.stack([matrix.double(), torch.eye(3, dtype=torch.float64)]).requires_grad_()
    homoalign.warp(image, matrices, size).square().sum().backward()
    assert image.grad.isfinite().all()
    assert matrices.grad.isfinite().all()
    alone = matrices.detach()[1:].requires_grad_()
    homoalign.warp(image.detach()[1:], alone, size).square().sum().backward()
    assert torch.equal(matrices.grad[1], alone.grad[0])


def test_what_covers_nothing_has_no_gradient():
    image = ramp(32, 32).expand(2, -1, -1, -1).clone().requires_grad_()
    matrices = torch.stack([DEGENERATE["nan"], DEGENERATE["singular"]]).requires_grad_()
    homoalign.warp(image, matrices, (32, 32)).sum().backward()
    assert not image.grad.any()
    assert not matrices.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_warped_in_single_precision(dtype, rng):
    image = torch.rand(1, 2, 8, 1000, generator=rng).to(dtype)
    shift = torch.tensor([[[1.0, 0, 0.25], [0, 1, 0], [0, 0, 1]]])
    warped = homoalign.warp(image, shift, (8, 1000))
    assert warped.dtype == dtype
    assert torch.equal(warped, homoalign.warp(image.float(), shift, (8, 1000)).to(dtype))


def test_the_matrix_goes_where_the_image_is():
    with PretendCuda():
        image = ramp().float().to(DEVICE)
        warped = homoalign.warp(image, torch.eye(3, dtype=torch.float64)[None], (7, 9))
        assert warped.device == DEVICE
    assert torch.allclose(warped.held, ramp().float())


@pytest.mark.parametrize(
    ("image", "matrix", "size", "error", "message"),
    [
        (torch.zeros(1, 1, 4, 5).byte(), torch.eye(3)[None], (4, 5), TypeError, "image should be float, got uint8"),
        ([[0.0]], torch.eye(3)[None], (4, 5), TypeError, "image should be a torch tensor, got list"),
        (ramp(), [[1.0]], (4, 5), TypeError, "dst_homo_src should be a torch tensor, got list"),
        (ramp(), torch.eye(3)[None] + 0j, (4, 5), TypeError, "dst_homo_src should be real, got complex64"),
        (ramp(), torch.eye(3).expand(2, 3, 3), (4, 5), ValueError, "image has 1 entries and dst_homo_src has 2"),
        (ramp()[..., :0], torch.eye(3)[None], (4, 5), ValueError, r"image has no pixels: shape \(1, 1, 7, 0\)"),
        (
            ramp(),
            torch.eye(3)[None],
            (-1, 5),
            ValueError,
            r"size=\(-1, 5\) should be \(height, width\) in whole pixels",
        ),
        (ramp(), torch.eye(3)[None], (4.5, 5), ValueError, r"size=\(4.5, 5\) should be \(height, width\)"),
        (ramp(), torch.eye(3)[None], (4, 5, 6), ValueError, r"size=\(4, 5, 6\) should be \(height, width\)"),
        (ramp(), torch.eye(3)[None], 4, ValueError, r"size=4 should be \(height, width\)"),
    ],
)
def test_wrong_calls_say_what_is_wrong(image, matrix, size, error, message):
    with pytest.raises(error, match=message):
        homoalign.warp(image, matrix, size)
