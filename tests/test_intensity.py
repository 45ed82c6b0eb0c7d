"""What becomes of a caller's numbers before anything looks at them."""

import math

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, Status, align
from homoalign.levels.intensity import to_gray, to_unit_range


@pytest.fixture
def image(rng):
    """(1, 1, 8, 9) float64, 0 and 1 among its values."""
    values = torch.rand(1, 1, 8, 9, generator=rng, dtype=torch.float64)
    return (values - values.min()) / (values.max() - values.min())


@pytest.fixture
def mask():
    """(1, 1, 8, 9) bool."""
    used = torch.ones(1, 1, 8, 9, dtype=torch.bool)
    used[..., :2, :] = False
    return used


@pytest.mark.parametrize("under", [-9999.0, 1e6, 3e38, -3e38, math.nan, math.inf])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_what_a_mask_leaves_out_decides_nothing(image, mask, under, scale):
    image = (scale * image).float()
    stained = torch.where(mask, image, under)
    found, used = to_unit_range(stained, mask)
    expected, _ = to_unit_range(torch.where(mask, image, 0.0), mask)
    assert torch.equal(found[mask], expected[mask])
    assert torch.equal(used, mask)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("under", [-9999.0, math.nan, 3e38])
def test_nodata_under_a_mask_does_not_hide_the_texture(make_pair, under):
    src, dst, truth = make_pair()
    mask = np.ones(src.shape, dtype=bool)
    mask[:40] = False
    expected = align(np.where(mask, src, 0), dst, src_mask=mask, gt=truth)
    found = align(np.where(mask, src, under).astype(np.float32), dst, src_mask=mask, gt=truth)
    assert found.status == expected.status == [Status.OK]
    assert torch.equal(found.dst_homo_src, expected.dst_homo_src)
    assert found.gt_reprojection_l1.item() < 0.1
    tutorial = align(np.where(mask, src, under).astype(np.float32), dst, src_mask=mask,
                     config=AlignConfig(solver="adam", adam_steps=2))  # fmt: skip
    assert tutorial.status != [Status.LOW_TEXTURE]


@pytest.mark.parametrize("fourth", [math.nan, 1000.0, -1.0])
def test_channels_that_are_ignored_decide_nothing(image, fourth):
    colour = image.expand(-1, 3, -1, -1).float()
    found, used = to_gray(torch.cat([colour, torch.full_like(colour[:, :1], fourth)], dim=1))
    assert torch.equal(found, to_gray(colour)[0])
    assert used is None


@pytest.mark.parametrize("offset", [1e10, 1e5])
def test_doubles_are_scaled_before_they_are_rounded(image, offset):
    found, used = to_unit_range(255 * image + offset)
    assert used is None
    torch.testing.assert_close(found.double(), image, rtol=0, atol=1e-6)


def test_a_range_that_floats_cannot_hold_is_scaled(image):
    found, used = to_unit_range(((2 * image - 1) * 3e38).float())
    assert used is None
    torch.testing.assert_close(found.double(), image, rtol=0, atol=1e-6)


def test_doubles_beyond_the_range_of_floats_are_no_pixels(image):
    image[..., 0, 0] = -torch.finfo(torch.float64).max  # "no data" of many a raster
    found, used = to_unit_range(image)
    assert not used[..., 0, 0]
    assert used.sum() == used.numel() - 1
    assert torch.equal(found[used], image.float()[used])


def test_doubles_that_round_to_one_are_not_scaled(image):
    image = (0.5 + image / 2).clamp_max(1.0) + 1e-12
    assert torch.equal(to_unit_range(image)[0], image.float())
