"""Hypotheses are refined on structure and pruned, each pair's on their own."""

import math

import numpy as np
import pytest
import torch
from levels import pyramid_of

from homoalign import AlignConfig
from homoalign.homography import corner_errors
from homoalign.levels.pyramid import Level, build_pyramid
from homoalign.optimisation.schedule import HOMOGRAPHY
from homoalign.optimisation.structure_problem import LevelRefiner
from homoalign.starts.hypotheses import STAGES, Hypotheses, agreement, keep_distinct, refine

SIZE = (120, 128)
CONFIG = AlignConfig()


def shift(x, y=0.0):
    return torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)


def hypotheses(*rows):
    """(pair, matrix, score) each."""
    pair, matrix, score = zip(*rows, strict=True)
    return Hypotheses(torch.tensor(pair), torch.stack(matrix), torch.tensor(score, dtype=torch.float64))


def errors_px(found, truth):
    truth = torch.as_tensor(truth, dtype=torch.float64).expand(len(found.pair), 3, 3)
    return corner_errors(found.dst_homo_src, truth, *SIZE).mean(-1)


def moved(truth, x, y=0.0):
    return shift(x, y) @ torch.from_numpy(truth)


def test_best_first_sorts_pairs_then_scores():
    found = hypotheses((1, shift(0), 0.1), (0, shift(1), 0.2), (1, shift(2), 0.5), (0, shift(3), 0.9)).best_first()
    assert found.pair.tolist() == [0, 0, 1, 1]
    assert found.score.tolist() == [0.9, 0.2, 0.5, 0.1]
    assert found.dst_homo_src[:, 0, 2].tolist() == [3, 1, 2, 0]


def test_pruning_keeps_the_best_of_those_that_are_alike():
    start = hypotheses(
        (0, shift(0), 0.9), (0, shift(2), 0.8), (0, shift(7), 0.7), (0, shift(30), 0.6), (0, shift(0, 40), 0.5),
        (4, shift(1), 0.3), (4, shift(0), 0.2),
    )  # fmt: skip
    kept = keep_distinct(start, SIZE, tolerance_px=5, keep=3)
    assert kept.pair.tolist() == [0, 0, 0, 4]
    assert kept.score.tolist() == [0.9, 0.7, 0.6, 0.3]
    assert keep_distinct(start, SIZE, tolerance_px=5, keep=1).score.tolist() == [0.9, 0.3]
    assert keep_distinct(start, SIZE, tolerance_px=0, keep=9).score.tolist() == start.score.tolist()


def test_every_pair_keeps_one_even_if_it_is_no_matrix():
    nothing = torch.full((3, 3), torch.nan, dtype=torch.float64)
    kept = keep_distinct(hypotheses((0, nothing, -1.0), (2, nothing, -1.0)), SIZE, tolerance_px=5, keep=2)
    assert kept.pair.tolist() == [0, 2]


@pytest.mark.parametrize("photograph", ["astronaut", "camera", "coffee"])
def test_a_start_three_pixels_off_is_pulled_in(make_pair, photograph):
    src, dst, truth = make_pair(photograph, size=SIZE)
    start = hypotheses((0, moved(truth, 3 * math.cos(1), 3 * math.sin(1)), 0.0))
    assert errors_px(start, truth).item() == pytest.approx(3, abs=0.1)
    found = refine(pyramid_of(src), pyramid_of(dst), start, CONFIG)
    assert errors_px(found, truth).item() < 0.3


def test_what_a_stage_found_is_where_the_next_one_starts(make_pair):
    src, dst, truth = make_pair(size=SIZE)
    levels, start = (pyramid_of(src), pyramid_of(dst)), hypotheses((0, moved(truth, 6, 3), 0.0))
    coarse, fine = (refine(*levels, start, CONFIG, stages) for stages in (STAGES[:1], STAGES[1:2]))
    both = refine(*levels, start, CONFIG, STAGES[:2])
    assert errors_px(fine, truth).item() > 1  # too far for it alone
    assert len(coarse.pair) == len(STAGES[0].states)
    assert errors_px(both, truth).item() < errors_px(coarse, truth)[0]
    assert errors_px(both, truth).item() < 0.3


def test_where_eight_parameters_go_astray_four_go_on(make_pair, monkeypatch):
    src, dst, truth = make_pair(size=SIZE)
    start = hypotheses((0, moved(truth, 4, 2), 0.0))
    bare = LevelRefiner.refine

    def refine_badly(self, dst_homo_src, motion_parameters):
        found, steps = bare(self, dst_homo_src, motion_parameters)
        is_coarse = self._max_points == STAGES[0].max_points
        return (found @ shift(25) if is_coarse and motion_parameters == HOMOGRAPHY else found), steps

    monkeypatch.setattr(LevelRefiner, "refine", refine_badly)
    found = refine(pyramid_of(src), pyramid_of(dst), start, CONFIG)
    assert errors_px(found, truth)[0] < 0.3


def test_inverted_contrast_is_refined_as_well(make_pair):
    src, dst, truth = make_pair(size=SIZE)
    found = refine(pyramid_of(src), pyramid_of(1 - dst**2), hypotheses((0, moved(truth, 3), 0.0)), CONFIG)
    assert errors_px(found, truth).item() < 0.3


def test_right_ones_score_high_and_wrong_ones_lower(make_pair):
    src, dst, truth = make_pair(size=SIZE)
    turned = torch.from_numpy(truth) @ torch.tensor([[-1.0, 0, 127], [0, -1, 119], [0, 0, 1]], dtype=torch.float64)
    start = hypotheses((0, moved(truth, 40), 0.9), (0, turned, 0.8), (0, moved(truth, 3), 0.1))
    found = refine(pyramid_of(src), pyramid_of(dst), start, CONFIG)
    assert (found.score.diff() <= 0).all()
    assert errors_px(found, truth)[0] < 0.3
    assert found.score[0] > 0.5
    assert len(found.score) > 1
    assert found.score[1:].max() < 0.3


def test_agreement_is_what_refining_scored(make_pair):
    src, dst, truth = make_pair(size=SIZE)
    levels = pyramid_of(src), pyramid_of(dst)
    found = refine(*levels, hypotheses((0, moved(truth, 2), 0.0), (0, moved(truth, 40), 0.0)), CONFIG)
    torch.testing.assert_close(
        agreement(*levels, found, side_px=128, config=CONFIG), found.score, rtol=0, atol=1e-6
    )  # fmt: skip


def test_agreement_falls_as_the_matrix_leaves_the_truth(make_pair):
    src, dst, truth = make_pair(size=SIZE)
    rows = [(0, moved(truth, off_px), 0.0) for off_px in (0, 1, 2, 4, 30)]
    score = agreement(pyramid_of(src), pyramid_of(dst), hypotheses(*rows), side_px=128, config=CONFIG)
    assert (score[:4].diff() < 0).all()
    assert score[0] > 0.6
    assert score[4].abs() < 0.25


def test_what_is_no_view_of_the_frame_scores_minus_one(make_pair):
    src, dst, _ = make_pair(size=SIZE)
    nothing = torch.full((3, 3), torch.nan, dtype=torch.float64)
    behind = shift(0)
    behind[2, 0] = -0.02  # w is negative from column 50 on
    score = agreement(
        pyramid_of(src), pyramid_of(dst), hypotheses((0, nothing, 0.0), (0, behind, 0.0)), side_px=128, config=CONFIG
    )
    assert score.tolist() == [-1, -1]


def test_a_hypothesis_that_is_no_matrix_does_not_touch_the_others(make_pair):
    src, dst, truth = make_pair(size=SIZE)
    nothing = torch.full((3, 3), torch.nan, dtype=torch.float64)
    good = (0, moved(truth, 3), 0.5)
    alone = refine(pyramid_of(src), pyramid_of(dst), hypotheses(good), CONFIG)
    beside = refine(pyramid_of(src), pyramid_of(dst), hypotheses(good, (0, nothing, 0.4)), CONFIG)
    torch.testing.assert_close(beside.dst_homo_src[0], alone.dst_homo_src[0], rtol=0, atol=1e-6)
    assert beside.score[1] == -1


def test_a_zoom_is_refined_on_levels_of_like_pitch(make_pair):
    src, dst, truth = make_pair(size=(240, 256))
    zoomed = np.diag([0.25, 0.25, 1]) @ truth
    small = build_pyramid(Level(torch.as_tensor(dst)[None, None], None), 3)[2].image[0, 0]
    start = hypotheses((0, moved(zoomed, 1), 0.0))
    found = refine(pyramid_of(src), pyramid_of(small.numpy()), start, CONFIG)
    error = corner_errors(found.dst_homo_src, torch.from_numpy(zoomed)[None], 240, 256).mean()
    assert error < 0.15  # pixels of an image of 60 x 64


def test_pairs_are_refined_together_as_each_alone(make_pair):
    pairs = [make_pair(name, size=SIZE) for name in ("astronaut", "coffee")]
    src, dst = (pyramid_of(*images) for images in list(zip(*pairs, strict=True))[:2])
    offsets = [[(3, 1), (-25, 10)], [(-2, 2), (4, 0), (30, 30)]]
    rows = [(i, moved(pairs[i][2], *offset), -float(k)) for i in range(2) for k, offset in enumerate(offsets[i])]
    together = refine(src, dst, hypotheses(*rows), CONFIG)
    for i in range(2):
        index = torch.tensor([i])
        one = [[level.select(index) for level in levels] for levels in (src, dst)]
        alone = refine(*one, hypotheses(*((0, matrix, score) for pair, matrix, score in rows if pair == i)), CONFIG)
        mine = together.select(torch.nonzero(together.pair == i)[:, 0])
        assert len(mine.pair) == len(alone.pair)
        torch.testing.assert_close(mine.score, alone.score, rtol=0, atol=1e-4)
        best = corner_errors(mine.dst_homo_src[:1], alone.dst_homo_src[:1], *SIZE)
        assert best.max() < 1e-3
