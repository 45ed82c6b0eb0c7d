"""Repeats that only show once perspective is followed are rivals too."""

import itertools

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, Status, align
from homoalign.cascade import cascade, elsewhere, settled, weighing
from homoalign.cascade.elsewhere import refine_shifted, shift_answers
from homoalign.homography import corner_errors
from homoalign.levels.pyramid import Level, build_pyramid
from homoalign.optimisation.schedule import solve_run
from jobs.rendering.synthetic import (
    build_scene,
    corner_points,
    homography_from_corners,
    load_scene,
    random_homography,
    render_pair,
    similarity_homography,
)

SIZE = (128, 128)


def views_of_a_board(numpy_rng, moves):
    """A chessboard that fills both views, the second as its corners are moved; either may lie a square off."""
    y, x = np.mgrid[:400, :400]
    scene = build_scene((0.15 + 0.7 * ((x // 26 + y // 26) % 2)).astype(np.float32))
    corners = corner_points(SIZE)
    pair = render_pair(scene, homography_from_corners(corners, corners + np.array(moves)), SIZE, rng=numpy_rng)
    noise = 0.01 * numpy_rng.standard_normal((2, *SIZE), dtype=np.float32)
    return pair.src + noise[0], pair.dst + noise[1], pair.dst_homo_src


def board(numpy_rng):
    return views_of_a_board(numpy_rng, [[14.0, 6], [-16, 20], [12, -14], [-6, -18]])[:2]


def pyramid(*images):
    """Of one side of some pairs."""
    return build_pyramid(
        Level(torch.stack([torch.as_tensor(i, dtype=torch.float32) for i in images])[:, None], None), 4
    )


def pyramids(src, dst):
    return pyramid(src), pyramid(dst)


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
    """An oblique board, its truth, and the same with src a square off along both sides."""
    src, dst, truth = views_of_a_board(numpy_rng, [[12.0, 5], [-14, 18], [10, -12], [-5, -16]])
    a_square = np.array([[1.0, 0, 13], [0, 1, 13], [0, 0, 1]])  # of 26 pixels of the scene, which has two a pixel
    return src, dst, truth, truth @ a_square


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


def hardly_better_each_time(monkeypatch):
    """Make every start be tried, and each answer look a hair better than the one before."""
    monkeypatch.setattr(settled, "GOOD_ENOUGH", 2.0)
    falling = itertools.count(0, -1e-3)  # an answer is scored before the one that it would replace

    def told(result):
        return torch.full((len(result.status),), next(falling), dtype=torch.float64)

    monkeypatch.setattr(cascade, "_score", lambda _, result: told(result))
    monkeypatch.setattr(cascade, "goodness_of", lambda result: 0.9 + told(result))


def test_what_is_hardly_better_does_not_leave_a_prior(squares_off, monkeypatch):
    src, dst, truth, _ = squares_off
    hardly_better_each_time(monkeypatch)
    assert align(src, dst, init=truth).initialisation == ["prior"]
    assert align(src, dst).initialisation != ["identity"]


def test_what_lies_as_well_in_the_negative_says_why(squares_off):
    src, dst, truth, _ = squares_off
    config = AlignConfig(signal="structure", use_search=False, use_features=False)
    result = align(src, 1 - dst, init=truth, gt=truth, config=config)
    assert result.gt_corner_error_px < 0.1
    assert result.evidence[0, 0] < -0.9
    assert "repeated texture" in result.status_detail[0]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_pairs_of_unlike_zoom_are_looked_at_each_on_its_own(numpy_rng, order):
    pairs = []
    for zoom in (1.0, 0.25):
        truth = similarity_homography(SIZE, scale=zoom)
        pair = render_pair(load_scene("coffee", gray=True), truth, SIZE, rng=numpy_rng)
        beside = torch.from_numpy(pair.dst_homo_src)
        beside[:2] += 9 * beside[2:]
        pairs.append((pair.src, pair.dst, beside))
    pairs = [pairs[k] for k in order]

    def look(*some):
        src, dst = (pyramid(*(pair[side] for pair in some)) for side in (0, 1))
        shifted = shift_answers(src, dst, torch.stack([pair[2] for pair in some]), 3)
        return refine_shifted(src, dst, shifted, AlignConfig())

    together = look(*pairs)
    for k, pair in enumerate(pairs):
        mine = together.dst_homo_src[together.pair == k]
        torch.testing.assert_close(mine, look(pair).dst_homo_src, rtol=0, atol=1e-9)


def test_without_light_none_is_fitted(squares_off, monkeypatch):
    solved = []

    def solve(problem, state, run, config):
        solved.append((problem.freedom.light, state.gain, state.bias))
        return solve_run(problem, state, run, config)

    monkeypatch.setattr(elsewhere, "solve_run", solve)
    src, dst = pyramids(*squares_off[:2])
    shifted = shift_answers(src, dst, torch.from_numpy(squares_off[2])[None], 3)
    refine_shifted(src, dst, shifted, AlignConfig(photometric="none"))
    assert len(solved) > 0
    for has_light, gain, bias in solved:
        assert not has_light
        assert (gain == 1).all()
        assert (bias == 0).all()
