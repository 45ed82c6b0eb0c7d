"""How much of dst an answer explains tells right from wrong where texture is faint."""

import numpy as np
import torch

from homoalign import align
from homoalign.differences.explained import explained_share, explains_more
from homoalign.levels.pyramid import Level, build_pyramid
from homoalign.optimisation.residual import Alignment
from jobs.bench.occlusion import occlusion_pairs
from jobs.bench.options import RenderOptions


def covered_pair(number, *, percent=20.0):
    """A pair of a blurred disc on plain ground, part of it covered by another photograph."""
    render = RenderOptions(pairs=number + 1, seed=5, photographs=("clock_motion",))
    return list(occlusion_pairs(render, 256, 10.0, 5.0, (percent,)))[number]


def shares(pair, *matrices):
    """What matrices explain of a pair whose light is the same."""
    images = (torch.from_numpy(image / 255).float()[None, None] for image in (pair.src, pair.dst))
    src, dst = (build_pyramid(Level(image, None), 5) for image in images)
    one = torch.ones(1, dtype=torch.float64)
    found = [explained_share(src, dst, Alignment(torch.from_numpy(matrix)[None], one, 0 * one)) for matrix in matrices]
    return torch.cat(found)


def test_the_truth_explains_what_nothing_covers():
    pair = covered_pair(2)
    beside = np.array([[1.0, 0, 30], [0, 1, 20], [0, 0, 1]]) @ pair.dst_homo_src
    away = np.array([[1.0, 0, 300], [0, 1, 0], [0, 0, 1]])
    truth, wrong, nothing = shares(pair, pair.dst_homo_src, beside, away)
    assert 0.65 < truth < 0.85
    assert explains_more(truth[None], wrong[None]).all()
    assert not explains_more(wrong[None], truth[None]).any()
    assert nothing == 0


def test_an_answer_that_is_none_explains_nothing():
    pair = covered_pair(0)
    assert shares(pair, np.full((3, 3), np.nan)).tolist() == [0.0]


def test_little_that_is_explained_says_nothing():
    assert not explains_more(torch.tensor([0.4]), torch.tensor([0.1])).any()


def test_edges_of_what_is_in_the_way_do_not_choose_the_answer():
    pairs = [covered_pair(number) for number in (2, 7, 13)]
    errors = [align(pair.src, pair.dst, gt=pair.dst_homo_src).gt_corner_error_px.item() for pair in pairs]
    # 9, 25 and 27 px by structure; which of them the search does not find either, depends on how a machine rounds.
    assert sorted(errors)[1] < 2


def test_strong_texture_is_told_by_structure():
    pair = next(occlusion_pairs(RenderOptions(pairs=1, seed=5, photographs=("camera",)), 256, 10.0, 5.0, (20.0,)))
    assert shares(pair, pair.dst_homo_src).tolist() == [0.0]
