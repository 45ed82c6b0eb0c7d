"""What covers a part of dst must cost no more than the pixels it hides."""

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, align
from homoalign.differences.cover import uncover
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment, build_problem
from jobs.rendering.degrade import add_noise, occlude, to_uint8

PHOTOGRAPHS = ("astronaut", "coffee", "page")
NEAR = AlignConfig(use_search=False, use_features=False)


def cover(make_pair, name, share, seed=0):
    src, dst, truth = make_pair(name, size=(160, 160), max_offset_px=4.0)
    rng = np.random.default_rng(seed)
    covered_dst, covered = occlude(dst, other=make_pair("coins")[0], share=share, rng=rng)
    noisy = [to_uint8(add_noise(image, sigma_8bit=3.0, rng=rng)) for image in (src, dst, covered_dst)]
    return *noisy, truth, covered


@pytest.mark.parametrize(("share", "limit"), [(0.2, 1.8), (0.35, 3.0)])
def test_a_cover_costs_little_more_than_what_it_hides(make_pair, share, limit):
    ratios = []
    for name in PHOTOGRAPHS:
        src, dst, covered_dst, truth, _ = cover(make_pair, name, share)
        errors = [align(src, image, gt=truth, config=NEAR).gt_corner_error_px.item() for image in (dst, covered_dst)]
        ratios.append(errors[1] / errors[0])
    assert np.median(ratios) < limit  # a robust loss alone: 2.1 and 5.6


def problem_of(src, dst):
    levels = [Level(torch.as_tensor(image / 255, dtype=torch.float32)[None, None], None) for image in (src, dst)]
    problem = build_problem(*levels, level=0, max_points=src.size, fit_photometric=True)
    one = torch.ones(1, dtype=torch.float64)
    return problem, one


def test_what_covers_is_told_from_what_does_not(make_pair):
    src, _, covered_dst, truth, covered = cover(make_pair, "astronaut", 0.3)
    problem, one = problem_of(src, covered_dst)
    # The light is that of nothing in particular: most of the pixels say what it is.
    state = Alignment(torch.as_tensor(truth, dtype=torch.float64)[None], 0.7 * one, 0.2 * one)
    found = uncover(problem, state)
    _, seen = problem.read_dst(state.dst_homo_src)
    share = (seen & found.problem.template.usable).sum().item() / seen.sum().item()
    assert found.is_cover.all()
    assert found.state.gain.item() == pytest.approx(1.0, abs=0.05)
    assert share == pytest.approx(1 - covered.mean(), abs=0.12)


def test_noise_is_no_cover(make_pair):
    src, dst, _, truth, _ = cover(make_pair, "astronaut", 0.0)
    problem, one = problem_of(src, dst)
    state = Alignment(torch.as_tensor(truth, dtype=torch.float64)[None], one, 0 * one)
    found = uncover(problem, state)
    assert found.share.item() > 0.99
    assert not found.is_cover.any()
