"""`confidence` as a function of the evidence, its fit, and the evidence of repeats."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from good_evidence import GOOD, of_pair

from homoalign import Status, align
from homoalign.cascade.rivals import rival_correlation
from homoalign.levels.patterns import local_patterns
from homoalign.levels.pyramid import Level
from homoalign.trust.confidence import confidence, load_calibration
from homoalign.trust.evidence import EVIDENCE, Evidence
from jobs.bench.fit_confidence import fit
from jobs.rendering.synthetic import (
    build_scene,
    load_photograph,
    load_scene,
    render_pair,
    similarity_homography,
    to_gray,
)

NOTHING = GOOD | {"local_correlation": 0.0, "weak_correlation": 0.0, "structure": 0.0, "parts_here": 0.05}
NOTHING |= {"drift_480": 30.0, "drift_std_480": 20.0}


def told(**values):
    """Return the confidence of one pair with this evidence."""
    return confidence(of_pair(**values)).item()


def test_a_good_fit_is_trusted_and_none_is_not():
    assert told(**GOOD) > 0.95
    assert told(**NOTHING) < 0.02


@pytest.mark.parametrize(
    "change",
    [
        {"rival": 1.02},
        {"drift_480": 25.0},
        {"drift_std_480": 25.0},
        {"parts_here": 0.05, "local_correlation": 0.1, "drift_480": 4.0},
        {"parts_here": 0.05, "weak_correlation": 0.1, "drift_std_480": 4.0},
    ],
    ids=["repeats", "the blocks lie elsewhere", "too few blocks", "unlike", "unlike in most blocks"],
)
def test_each_doubt_alone_is_enough(change):
    assert told(**(GOOD | change)) < 0.5


def test_of_two_places_that_are_as_good_either_may_be_right():
    assert 0.4 < told(**(GOOD | {"rival": 1.0})) < 0.55


def test_blocks_that_nobody_asked_are_taken_to_lie_where_they_are():
    unasked = {"parts_here": np.nan, "drift_480": np.nan, "drift_std_480": np.nan}
    clear = {"parts_here": 1.0, "drift_480": 0.0, "drift_std_480": 0.0}
    assert told(**(GOOD | unasked)) == told(**(GOOD | clear)) > 0.97


def test_corners_that_the_blocks_leave_open_are_open_and_no_more():
    assert told(**(GOOD | {"drift_std_480": 45.0})) == told(**(GOOD | {"drift_std_480": 200.0})) > 0


def test_what_looks_unlike_is_trusted_where_the_blocks_hold():
    unlike = GOOD | {"local_correlation": 0.05, "weak_correlation": -0.1}
    assert told(**unlike) > 0.8
    assert told(**(unlike | {"parts_here": 0.1, "drift_480": 6.0})) < 0.3


def test_what_the_solver_predicts_and_structure_as_a_whole_say_nothing_besides():
    assert told(**(GOOD | {"structure": np.nan, "corner_std_480": np.nan, "unexplained": np.nan})) == told(**GOOD)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("parts_here", [0.0, 0.1, 0.5, 1.0]),
        ("local_correlation", [0.0, 0.2, 0.5, 0.8]),
        ("drift_480", [40.0, 10.0, 3.0, 0.1]),
        ("drift_std_480", [40.0, 10.0, 3.0, 0.1]),
        ("rival", [1.0, 0.9, 0.8, 0.0]),
    ],
)
def test_better_evidence_never_means_less_confidence(name, values):
    found = [told(**(GOOD | {name: value})) for value in values]
    assert all(better > worse for worse, better in pairwise(found))


def test_it_is_a_probability_whatever_the_evidence():
    values = torch.tensor([-1e9, -1.0, 0.0, 0.5, 1.0, 1e9, torch.nan, torch.inf], dtype=torch.float64)
    grid = torch.cartesian_prod(*[values[torch.randperm(8)[:4]] for _ in EVIDENCE])
    found = confidence(Evidence.of_table(grid))
    assert ((found >= 0) & (found <= 1)).all()
    assert (confidence(Evidence.of_table(torch.full((1, len(EVIDENCE)), torch.nan, dtype=torch.float64))) == 0).all()


def test_the_fit_finds_what_the_pairs_were_drawn_from(rng):
    drawn = torch.rand(8000, len(EVIDENCE), generator=rng, dtype=torch.float64)
    ranges = torch.tensor([1.2, 1.2, 1, 1, 1.2, 8, 20, 0.8, 1, 20, 10], dtype=torch.float64)
    evidence = Evidence.of_table(drawn * ranges - 0.1)
    truth = dataclasses.replace(load_calibration(), base=2.5, parts_here=0.8, error=1.2, rival=30.0, no_rival=28.0)
    is_right = torch.rand(8000, generator=rng, dtype=torch.float64) < confidence(evidence, truth)
    fitted = fit(evidence, is_right.numpy())
    error = (confidence(evidence, fitted) - confidence(evidence, truth)).abs()
    assert error.mean() < 0.03
    assert (confidence(evidence) - confidence(evidence, truth)).abs().mean() > 0.05


def rival(image, shift_px):
    """Say how an image rivals itself once it is taken for shifted by `shift_px`."""
    level = Level(torch.from_numpy(image)[None, None], None)
    matrix = torch.eye(3, dtype=torch.float64)[None]
    matrix[0, 0, 2] = shift_px
    return rival_correlation(local_patterns(level, level, matrix)).item()


def test_repeats_have_rivals_and_photographs_none(numpy_rng):
    y, x = np.mgrid[:96, :128]
    windows = (0.5 + 0.3 * np.sin(2 * np.pi * x / 16) * np.sin(2 * np.pi * y / 12)).astype(np.float32)
    windows += 0.02 * numpy_rng.standard_normal(windows.shape, dtype=np.float32)
    photograph = render_pair(load_scene("astronaut", gray=True), np.eye(3), (96, 128), rng=numpy_rng).src
    assert rival(windows, 0) > 0.9
    assert rival(photograph, 0) < 0.4
    assert rival(photograph, 8) > 1.2  # it lies better where it belongs


def wall(numpy_rng, *, own_noise):
    """Return two views of windows, the second two windows further, each with or without noise of its own."""
    y, x = np.mgrid[:150, :240]
    scene = (0.5 + 0.3 * np.sin(2 * np.pi * x / 20) * np.sin(2 * np.pi * y / 14)).astype(np.float32)
    scene += 0 if own_noise else 0.03 * numpy_rng.standard_normal(scene.shape, dtype=np.float32)
    views = scene[:, :200], scene[:, 40:]
    sigma = 0.03 if own_noise else 0.01
    return [view + sigma * numpy_rng.standard_normal(view.shape, dtype=np.float32) for view in views]


def test_a_repeat_is_not_ok_and_says_why(numpy_rng):
    result = align(*wall(numpy_rng, own_noise=True))
    assert result.status[0] is not Status.OK
    assert "repeated texture" in result.status_detail[0]


def test_what_lies_as_well_upside_down_is_not_ok_and_says_why():
    rng = np.random.default_rng(0)  # views that share as much of it either way
    photograph = to_gray(load_photograph("astronaut"))
    scene = build_scene((photograph + photograph[::-1, ::-1]) / 2)
    size = (120, 160)
    pair = render_pair(scene, similarity_homography(size, angle_deg=130.0), size, rng=rng)
    src, dst = (view + 0.02 * rng.standard_normal(size, dtype=np.float32) for view in (pair.src, pair.dst))
    result = align(src, dst)
    assert result.initialisation == ["search"]
    assert result.evidence[0, EVIDENCE.index("rival")] > 0.95
    assert result.status[0] is not Status.OK
    assert "repeated texture" in result.status_detail[0]


def test_a_better_rival_is_found_in_the_end(numpy_rng):
    truth = np.array([[1, 0, -40], [0, 1, 0], [0, 0, 1.0]])
    result = align(
        *wall(numpy_rng, own_noise=False), gt=truth
    )  # from identity it looks right, but for the small things
    assert result.gt_corner_error_px.item() < 1
    assert result.confidence.item() > 0.5  # its rivals do almost as well
