"""Which levels of two pyramids show the scene at the same pitch, and matrices between them."""

import math

import numpy as np
import pytest
import torch

from homoalign.homography import warp_points
from homoalign.levels.pyramid import Level, build_pyramid
from homoalign.levels.zoom import LARGEST_OCTAVE, coarsest_shared, match_levels, zoom_octave
from jobs.rendering.synthetic import similarity_homography

SIZE = (96, 128)


def similarity(angle_deg=0.0, scale=1.0):
    return torch.from_numpy(similarity_homography(SIZE, angle_deg=angle_deg, scale=scale))[None]


def translation(x=0.0, y=0.0):
    return torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]])


def pyramid(*size, count=4):
    return build_pyramid(Level(torch.zeros(1, 1, *size), None), count)


@pytest.mark.parametrize(
    ("scale", "octave"), [(1, 0), (1.4, 0), (1.43, 1), (2, 1), (0.5, -1), (0.71, 0), (0.7, -1), (8, 3)]
)
@pytest.mark.parametrize("angle_deg", [0, 130])
def test_the_octave_is_the_nearest_power_of_two_whatever_the_rotation(scale, octave, angle_deg):
    assert zoom_octave(similarity(angle_deg, scale), SIZE).tolist() == [octave]


def test_the_octave_of_a_zoom_beyond_the_largest_is_the_largest():
    assert zoom_octave(torch.cat([similarity(scale=100), similarity(scale=0.01)]), SIZE).tolist() == [
        LARGEST_OCTAVE,
        -LARGEST_OCTAVE,
    ]


def test_a_mirror_image_is_no_zoom_and_no_matrix_has_octave_zero():
    mirrored = torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64))
    nothing = torch.full((3, 3), torch.nan, dtype=torch.float64)
    flat = torch.zeros(3, 3, dtype=torch.float64)
    assert zoom_octave(torch.stack([mirrored, nothing, flat]), SIZE).tolist() == [0, 0, 0]


def test_under_perspective_the_centre_counts():
    tilted = torch.eye(3, dtype=torch.float64)[None].clone()
    tilted[0, 2, 0] = -0.5 / 63.5  # w = 0.5 at the centre column: twice along y, four times along x
    assert zoom_octave(tilted, SIZE).tolist() == [round(math.log2(math.sqrt(2 * 4)))]


@pytest.mark.parametrize(
    ("matrix", "level"),
    [
        (torch.eye(3), 3),  # 96 pixels to 12
        (translation(x=96), 2),  # 32 columns
        (translation(x=96 + 16), 1),
        (translation(x=-(128 - 16)), 1),
        (translation(y=96 - 12), 0),
        (translation(x=126), 0),  # two columns
        (translation(x=127), 3),  # next to nothing: wherever it may be
        (torch.diag(torch.tensor([-1.0, -1, -1])), 3),
        (torch.full((3, 3), math.nan), 3),
        (torch.diag(torch.tensor([0.25, 0.25, 1])), 1),  # 24 rows of dst
    ],
)
def test_levels_end_where_what_is_shared_gets_too_thin(matrix, level):
    found = coarsest_shared(matrix.double()[None], SIZE, SIZE, min_side_px=8)
    assert found.tolist() == [level]


@pytest.mark.parametrize(
    ("zoom", "side_px", "levels"),
    [
        (0, None, (0, 0)),
        (1, None, (0, 1)),
        (-2, None, (2, 0)),
        (0, 64, (1, 1)),
        (2, 64, (0, 2)),
        (-2, 64, (2, 0)),
        (0, 1, (3, 3)),
        (0, 1000, (0, 0)),
        (5, None, (0, 3)),
    ],
)
def test_levels_are_matched_as_far_as_the_pyramids_go(zoom, side_px, levels):
    found = match_levels(pyramid(128, 128), pyramid(128, 128), zoom=zoom, side_px=side_px)
    assert (found.src_level, found.dst_level) == levels


def test_the_side_is_the_mean_of_both_images():
    found = match_levels(pyramid(256, 256), pyramid(64, 64), zoom=-2, side_px=64)
    assert (found.src_level, found.dst_level) == (2, 0)


def test_matrices_of_levels_take_the_levels_pixels(rng):
    matched = match_levels(pyramid(*SIZE), pyramid(*SIZE), zoom=2, side_px=64)
    assert matched.src_level != matched.dst_level
    dst_homo_src = similarity(30, 3.5)
    dst_homo_src[0, 2, :2] = torch.tensor([1e-4, -2e-4])
    xy = 100 * torch.rand(1, 20, 2, generator=rng, dtype=torch.float64)
    at_level = warp_points(matched.from_full(dst_homo_src), xy / 2**matched.src_level)
    # float64 and coordinates near 1e2 px leave 1e-12.
    torch.testing.assert_close(
        at_level * 2**matched.dst_level, warp_points(dst_homo_src, xy), rtol=0, atol=1e-9
    )  # fmt: skip


def test_to_full_undoes_from_full(rng):
    matched = match_levels(pyramid(*SIZE), pyramid(*SIZE), zoom=-1, side_px=None)
    dst_homo_src = torch.eye(3, dtype=torch.float64) + 0.01 * torch.randn(5, 3, 3, generator=rng, dtype=torch.float64)
    dst_homo_src = dst_homo_src / dst_homo_src[:, 2:, 2:]
    torch.testing.assert_close(matched.to_full(matched.from_full(dst_homo_src)), dst_homo_src, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(matched.from_full(dst_homo_src)[:, 2, 2], 1)


def test_matrices_may_be_on_another_device():
    matched = match_levels(pyramid(*SIZE), pyramid(*SIZE), zoom=1, side_px=None)
    elsewhere = torch.empty(2, 3, 3, dtype=torch.float64, device="meta")  # refuses to meet a tensor of the CPU
    assert matched.from_full(elsewhere).device == matched.to_full(elsewhere).device == elsewhere.device
