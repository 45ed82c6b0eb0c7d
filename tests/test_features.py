"""Matched features start where views differ much, and say nothing where there is nothing to match."""

import cv2
import numpy as np
import pytest
import torch
from levels import pyramid_of
from scipy.ndimage import gaussian_filter

from homoalign.homography import corner_errors
from homoalign.starts import features
from homoalign.starts.features import match_features
from jobs.rendering.synthetic import (
    build_scene,
    corner_points,
    homography_from_corners,
    load_scene,
    render_pair,
    similarity_homography,
)

SIZE = (160, 200)


@pytest.fixture
def view(numpy_rng):
    def render(dst_homo_src, photograph="astronaut"):
        pair = render_pair(load_scene(photograph, gray=True), dst_homo_src, SIZE, rng=numpy_rng)
        return pair.src.clip(0, 1), pair.dst.clip(0, 1)

    return render


def error_px(matrix, truth):
    return corner_errors(matrix, torch.from_numpy(np.asarray(truth, dtype=np.float64))[None], *SIZE).mean().item()


STRONG_PERSPECTIVE = homography_from_corners(
    corner_points(SIZE), np.array([[10, 35], [190, 5], [180, 150], [25, 115.0]])
)  # fmt: skip


@pytest.mark.parametrize(
    "truth",
    [
        STRONG_PERSPECTIVE,
        similarity_homography(SIZE, angle_deg=160, scale=0.45),
        similarity_homography(SIZE, angle_deg=-70, scale=2.2),
    ],
    ids=["perspective", "smaller", "larger"],
)
@pytest.mark.parametrize("photograph", ["astronaut", "coffee"])
def test_views_that_differ_much_are_matched(view, truth, photograph):
    found = match_features(*(pyramid_of(image) for image in view(truth, photograph)))
    # Keypoints are good to a few tenths of a pixel, and the corners lie far beyond them where dst is a detail.
    zoom = max(1.0, np.sqrt(abs(np.linalg.det(truth[:2, :2]))))
    assert error_px(found, truth) < 8 * zoom
    assert found.dtype == torch.float64
    assert found[0, 2, 2] == 1


def test_blank_images_have_no_matrix_beside_one_that_has(view):
    truth = similarity_homography(SIZE, angle_deg=40)
    src, dst = view(truth)
    blank = np.full_like(src, 0.5)
    found = match_features(pyramid_of(src, blank, src, blank), pyramid_of(blank, dst, dst, blank))
    assert found.isnan().flatten(1).all(-1).tolist() == [True, True, False, True]
    assert found[2].isfinite().all()
    torch.testing.assert_close(found[2:3], match_features(pyramid_of(src), pyramid_of(dst)), rtol=0, atol=1e-9)


def test_what_is_masked_is_not_matched(view):
    truth = similarity_homography(SIZE, angle_deg=40)
    src, dst = view(truth)
    stained, mask = dst.copy(), np.ones(dst.shape, dtype=bool)
    stained[:, 80:], mask[:, 80:] = src[:, 80:], False  # src itself, where it was: more to match than the truth has
    masked = match_features(pyramid_of(src), pyramid_of(stained, mask=mask))
    assert error_px(masked, truth) < 3
    assert error_px(match_features(pyramid_of(src), pyramid_of(stained)), np.eye(3)) < 3


def test_faint_images_of_more_than_8_bits_are_stretched(view):
    truth = similarity_homography(SIZE, angle_deg=40, scale=0.8)
    faint = [np.float32(0.3) + np.float32(0.004) * image for image in view(truth)]  # one step of 8 bits
    assert error_px(match_features(*(pyramid_of(image) for image in faint)), truth) < 3


def test_the_matrix_is_that_of_full_size_pixels(view, monkeypatch):
    truth = similarity_homography(SIZE, angle_deg=30, scale=0.9)
    src, dst = view(truth)
    monkeypatch.setattr("homoalign.starts.features.SIDE_PX", 110)  # both are matched on a resampled level
    assert error_px(match_features(pyramid_of(src), pyramid_of(dst)), truth) < 4
    cropped = truth.copy()
    cropped[:2] -= np.array([[30.0], [20.0]]) * truth[2]
    alike = match_features(pyramid_of(src), pyramid_of(dst[20:140, 30:170]))  # dst alone keeps its size
    assert error_px(alike, cropped) < 4


@pytest.mark.parametrize("size", [(90, 1200), (1200, 90)])
def test_long_strips_are_matched_without_the_squares_that_their_views_would_lie_in(size, numpy_rng, monkeypatch):
    """Views of 16 x 20000 pixels, each a square of 14000, took minutes and more memory than machines have."""
    monkeypatch.setattr(cv2.AffineFeature, "create", lambda *_: pytest.fail("oblique views of a strip"))
    shape = [2 * side + 200 for side in size]
    texture = sum(s * gaussian_filter(numpy_rng.normal(size=shape), s) for s in (2, 6, 15))
    scene = build_scene(((texture - texture.min()) / np.ptp(texture)).astype(np.float32))
    truth = similarity_homography(size, angle_deg=1.0, scale=1.02)
    pair = render_pair(scene, truth, size, rng=numpy_rng)
    found = match_features(*(pyramid_of(image.clip(0, 1)) for image in (pair.src, pair.dst)))
    assert corner_errors(found, torch.from_numpy(truth)[None], *size).mean() < 3


@pytest.mark.parametrize("size", [(60, 8000), (800, 5000)])
def test_long_strips_are_matched_at_a_bounded_size(size):
    small = features._shrink(pyramid_of(np.zeros(size)), features._factor_of_views)
    height, width = small.level.image.shape[-2:]
    assert height * width <= 1.01 * features.LONGEST * features.SIDE_PX**2
    enlarged = small.full_homo_small @ torch.tensor([width - 1, height - 1, 1.0], dtype=torch.float64)
    # Frames correspond, corners about so.
    torch.testing.assert_close(
        enlarged[:2], torch.tensor([size[1] - 1.0, size[0] - 1], dtype=torch.float64), rtol=0, atol=8
    )


def test_a_tile_is_matched_with_its_mosaic_at_the_size_that_both_have(numpy_rng, monkeypatch):
    size, dst_size = (96, 96), (720, 960)
    truth = similarity_homography(size, angle_deg=50, scale=0.9)
    truth[:2, 2] += np.array([620.0, 500.0])
    shape = [2 * side + 200 for side in dst_size]
    texture = sum(s * gaussian_filter(numpy_rng.normal(size=shape), s) for s in (2, 4, 8))
    scene = build_scene(((texture - texture.min()) / np.ptp(texture)).astype(np.float32))
    pair = render_pair(scene, truth, size, rng=numpy_rng, dst_size=dst_size)
    tile, mosaic = (pyramid_of(image.clip(0, 1)) for image in (pair.src, pair.dst))
    found = match_features(tile, mosaic)
    assert corner_errors(found, torch.from_numpy(truth)[None], *size).mean() < 1.5
    back = match_features(mosaic, tile)
    at_tile = corner_errors(torch.linalg.inv(back), torch.from_numpy(truth)[None], *size)
    assert at_tile.mean() < 1.5
    monkeypatch.setattr(features, "UNLIKE", 100.0)
    shrunk = corner_errors(match_features(tile, mosaic), torch.from_numpy(truth)[None], *size).mean()
    assert not shrunk < 1.5  # too little is left of the tile


def test_what_few_matches_agree_about_at_full_size_is_matched_by_oblique_views(view, monkeypatch):
    src, dst = view(similarity_homography(SIZE, angle_deg=20))
    monkeypatch.setattr(features, "UNLIKE", 0.5)
    detected = []
    for name in ("_detect", "_detect_plain"):
        bare = getattr(features, name)
        monkeypatch.setattr(features, name, lambda *each, name=name, bare=bare: (detected.append(name), bare(*each))[1])
    match_features(pyramid_of(src), pyramid_of(dst))
    assert detected == ["_detect_plain"] * 2
    monkeypatch.setattr(features, "LEAST_INLIERS", 10_000)
    match_features(pyramid_of(src), pyramid_of(dst))
    assert detected[2:] == ["_detect_plain"] * 2 + ["_detect"] * 2


@pytest.mark.parametrize("count", [2, 63, 64, 65, 700])
@pytest.mark.parametrize("has_integers", [True, False])
def test_features_match_where_the_next_best_is_much_further(rng, monkeypatch, count, has_integers):
    src = torch.randint(0, 256, (600, 128), generator=rng)
    dst = torch.randint(0, 256, (count, 128), generator=rng)
    near = min(count, 300)
    dst[:near] = (src[:near] + torch.randint(-120, 121, (near, 128), generator=rng)).clamp(0, 255)
    dst[-1] = dst[0]  # two that are as near: neither matches
    if not has_integers:
        monkeypatch.delattr(torch, "_int_mm", raising=False)
    from_src, to_dst = features._nearest_neighbours(*((each - 128).to(torch.int8) for each in (src, dst)))
    squared = torch.cdist(src.double(), dst.double()).square()
    (best, second), index = squared.topk(2, largest=False).values.T, squared.argmin(-1)
    matched = torch.nonzero(best < features.RATIO**2 * second)[:, 0]
    assert torch.equal(from_src, matched)
    assert torch.equal(to_dst, index[matched])
    assert 0 not in from_src
    assert count == 2 or near // 3 < len(matched) < near


def test_features_are_taken_as_the_bytes_that_they_are():
    values = torch.arange(256, dtype=torch.float32).reshape(2, 128)
    assert torch.equal(features._as_integers(values.numpy()).int() + 128, values.int())
