"""Calls of `align`: what is the same, what is allowed, and what is refused with values."""

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, Status, align
from homoalign.arguments import check_pairs


@pytest.mark.parametrize("scale", [1.0, -1.0, 5.0, -0.25])
def test_a_truth_is_the_same_homography_at_any_scale(make_pair, scale):
    src, dst, truth = make_pair()
    expected, found = (align(src, dst, gt=matrix, trace=True) for matrix in (truth, scale * truth))
    assert expected.gt_corner_error_px.item() < 0.06
    for name in ("gt_corner_error_px", "gt_corner_error_max_px", "gt_reprojection_l1"):
        assert getattr(found, name).item() == pytest.approx(getattr(expected, name).item(), abs=1e-6)
    assert found.levels[0][0].gt_reprojection_l1 == pytest.approx(expected.levels[0][0].gt_reprojection_l1, abs=1e-6)


def test_a_truth_that_has_no_scale_is_unknown(make_pair):
    src, dst, truth = make_pair()
    at_horizon = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    src, dst = (torch.from_numpy(np.stack([image] * 2))[:, None] for image in (src, dst))
    result = align(src, dst, gt=np.stack([truth, at_horizon]))
    assert result.gt_corner_error_px.isnan().tolist() == [False, True]
    assert result.gt_reprojection_l1.isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"model": "affine"}}, "config should be an AlignConfig or None, got dict"),
        ({"config": {}}, "config should be an AlignConfig or None, got dict"),
        ({"config": "affine"}, "config should be an AlignConfig or None, got str"),
        ({"init": torch.eye(3) + 0j}, "init should be real, got complex64"),
        ({"gt": np.eye(3) + 0j}, "gt should be real, got complex128"),
        ({"src": torch.zeros(1, 1, 32, 32).to_sparse()}, "src should be dense, got a tensor of layout sparse_coo"),
        (
            {"dst_mask": torch.ones(1, 32, 32).to_sparse()},
            "dst_mask should be dense, got a tensor of layout sparse_coo",
        ),
        ({"gt": torch.eye(3).to_sparse()}, "gt should be dense, got a tensor of layout sparse_coo"),
        ({"dst": torch.zeros(1, 1, 32, 32) + 0j}, "image dtype complex64 is neither"),
    ],
)
def test_a_wrong_call_is_a_type_error_with_values(arguments, message):
    call = {"src": torch.zeros(1, 1, 32, 32), "dst": torch.zeros(1, 1, 32, 32)} | arguments
    with pytest.raises(TypeError, match=message):
        align(call.pop("src"), call.pop("dst"), **call)


@pytest.mark.parametrize("size", [(4, 4), (4, 9), (5, 40), (40, 6), (7, 7), (4, 300)])
def test_images_as_small_as_the_config_allows_have_a_status(make_pair, size):
    src, dst, _ = make_pair(size=(48, 300))
    src, dst = (np.ascontiguousarray(image[: size[0], : size[1]]) for image in (src, dst))
    for signal in ("auto", "structure"):
        config = AlignConfig(min_side_px=4, min_level_side_px=4, points_per_level=16, final_points=16, signal=signal)
        result = align(src, dst, config=config)
        assert result.status[0] != Status.TOO_SMALL


def test_matrices_come_as_priors_do():
    images = torch.zeros(2, 1, 8, 8)
    given = {"src_mask": None, "dst_mask": None, "init": None}
    pairs = check_pairs(images, images, **given, gt=-2 * torch.eye(3))
    assert torch.equal(pairs.gt, torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
