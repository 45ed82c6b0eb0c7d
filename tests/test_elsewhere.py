"""Repeats that only show once perspective is followed are rivals too."""

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, Status, align, weighing
from homoalign.elsewhere import refine_shifted, shift_answers
from homoalign.homography import corner_errors
from homoalign.pyramid import Level, build_pyramid
from jobs.synthetic import (
    build_scene,
    corner_points,
    homography_from_corners,
    load_scene,
    random_homography,
    render_pair,
    similarity_homography,
)

SIZE = (128, 128)


def board(numpy_rng):
    """Two views of a chessboard that fills both, seen obliquely: either may lie a square off."""
    y, x = np.mgrid[:400, :400]
    squares = 0.15 + 0.7 * ((x // 26 + y // 26) % 2)
    scene = build_scene(squares.astype(np.float32))
    corners = corner_points(SIZE)
    oblique = homography_from_corners(corners, corners + np.array([[14.0, 6], [-16, 20], [12, -14], [-6, -18]]))
    pair = render_pair(scene, oblique, SIZE, rng=numpy_rng)
    return [view + 0.01 * numpy_rng.standard_normal(SIZE, dtype=np.float32) for view in (pair.src, pair.dst)]


def pyramids(*images):
    levels = (Level(torch.as_tensor(image, dtype=torch.float32)[None, None], None) for image in images)
    return [build_pyramid(level, 4) for level in levels]


def test_a_board_seen_obliquely_is_not_ok_and_says_why(numpy_rng, monkeypatch):
    views = board(numpy_rng)
    result = align(*views)
    assert result.status[0] is not Status.OK
    assert "repeated texture" in result.status_detail[0]
    monkeypatch.setattr(weighing, "RIVALLED", 99.0)
    assert align(*views).confidence.item() > result.confidence.item() + 0.3


@pytest.mark.parametrize("zoom", [1.0, 0.5])
def test_what_was_shifted_away_is_led_back(numpy_rng, zoom):
    truth = similarity_homography(SIZE, scale=zoom)
    pair = render_pair(load_scene("coffee", gray=True), truth, SIZE, rng=numpy_rng)
    src, dst = pyramids(pair.src, pair.dst)
    beside = torch.from_numpy(pair.dst_homo_src @ random_homography(numpy_rng, SIZE, 4.0))[None]
    beside[:, :2] += 9 * beside[:, 2:]
    shifted = shift_answers(src, dst, beside, 3)
    assert len(shifted.pair) == 3
    found = refine_shifted(src, dst, shifted, AlignConfig())
    truth = torch.from_numpy(pair.dst_homo_src).expand(3, 3, 3)
    assert corner_errors(shifted.dst_homo_src, truth, *SIZE).mean(-1).min() > 1
    assert corner_errors(found.dst_homo_src, truth, *SIZE).mean(-1).min() < 0.3


def test_a_lower_model_stays_one(numpy_rng):
    src, dst = pyramids(*board(numpy_rng))
    shifted = shift_answers(src, dst, torch.eye(3, dtype=torch.float64)[None], 4)
    found = refine_shifted(src, dst, shifted, AlignConfig(model="translation"))
    linear = torch.eye(3, dtype=torch.float64).expand(len(found.pair), 3, 3)[:, :, :2]
    torch.testing.assert_close(found.dst_homo_src[:, :, :2], linear)


def test_of_what_shows_nothing_together_nothing_is_proposed(numpy_rng):
    away = torch.eye(3, dtype=torch.float64)[None].clone()
    away[:, 0, 2] = 300
    assert len(shift_answers(*pyramids(*board(numpy_rng)), away, 4).pair) == 0


def test_a_photograph_is_not_looked_at_elsewhere(numpy_rng, monkeypatch):
    monkeypatch.setattr(weighing, "shift_answers", lambda *_: pytest.fail("it has no rival"))
    pair = render_pair(load_scene("astronaut", gray=True), np.eye(3), SIZE, rng=numpy_rng)
    assert align(pair.src.clip(0, 1), pair.dst.clip(0, 1)).status[0] is Status.OK


@pytest.fixture
def squares_off(numpy_rng):
    """An oblique board, its truth, and priors that are right and a square off in src."""
    y, x = np.mgrid[:400, :400]
    scene = build_scene((0.15 + 0.7 * ((x // 26 + y // 26) % 2)).astype(np.float32))
    corners = corner_points(SIZE)
    oblique = homography_from_corners(corners, corners + np.array([[12.0, 5], [-14, 18], [10, -12], [-5, -16]]))
    pair = render_pair(scene, oblique, SIZE, rng=numpy_rng)
    noise = numpy_rng.standard_normal((2, *SIZE), dtype=np.float32)
    a_square = np.array([[1.0, 0, 13], [0, 1, 13], [0, 0, 1]])  # of 26 pixels of the scene, which has two a pixel
    return pair.src + 0.01 * noise[0], pair.dst + 0.01 * noise[1], pair.dst_homo_src, pair.dst_homo_src @ a_square


@pytest.mark.parametrize("model", ["translation", "similarity", "homography"])
def test_a_square_off_an_oblique_prior_is_not_ok_whatever_may_move(squares_off, model):
    src, dst, truth, beside = squares_off
    result = align(src, dst, init=beside, gt=truth, config=AlignConfig(model=model, use_search=False))
    assert result.gt_corner_error_px > 10
    assert result.status[0] is not Status.OK


def test_a_rival_that_is_followed_stays_in_the_priors_model(squares_off):
    _, _, truth, beside = squares_off
    src, dst = pyramids(*squares_off[:2])
    found = shift_answers(src, dst, torch.from_numpy(beside)[None], 8)
    found = refine_shifted(src, dst, found, AlignConfig(model="affine"))
    relative = torch.linalg.inv(torch.from_numpy(beside)) @ found.dst_homo_src
    assert (relative[:, 2, :2] / relative[:, 2, 2:]).abs().max() < 1e-12
    assert corner_errors(found.dst_homo_src, torch.from_numpy(truth)[None], *SIZE).mean(-1).min() < 1


def test_a_prior_is_right_among_equals(squares_off):
    src, dst, truth, _ = squares_off
    result = align(src, dst, init=truth, gt=truth)
    assert result.gt_corner_error_px < 0.1


def test_what_lies_as_well_in_the_negative_says_why(squares_off):
    src, dst, _, _ = squares_off
    result = align(src, 1 - dst)
    assert "repeated texture" in result.status_detail[0]
