"""Pairs that cannot support eight parameters: texture on a line, the rest of the frame empty."""

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, align
from homoalign.descent.earned import _nearest
from homoalign.homography import corner_errors
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import build_problem
from jobs.rendering.synthetic import load_scene, random_homography, render_pair, similarity_homography, warp_points

SIZE = (160, 200)
STAY = AlignConfig(use_search=False, use_features=False)


def shifted(rng):
    return np.array([[1, 0, rng.uniform(-8, 8)], [0, 1, rng.uniform(-8, 8)], [0, 0, 1]])


def turned(rng):
    similarity = similarity_homography(SIZE, angle_deg=rng.uniform(-4, 4), scale=rng.uniform(0.95, 1.05))
    return shifted(rng) @ similarity


def band_pair(motion, rng, *, height_px):
    """Two views of a strip of a photograph on a gray ground, and the truth."""
    pair = render_pair(load_scene("astronaut", gray=True), motion, SIZE, rng=rng)
    xy = np.stack(np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0])), axis=-1).reshape(-1, 2).astype(float)
    views = []
    for view, matrix in ((pair.src, np.eye(3)), (pair.dst, motion)):
        y = warp_points(np.linalg.inv(matrix), xy)[:, 1].reshape(SIZE)
        inside = 1 / (1 + np.exp((np.abs(y - SIZE[0] / 2) - height_px / 2) / 2))
        noise = rng.normal(0, 2 / 255, SIZE)
        views.append((0.5 + inside * (view - 0.5) + noise).clip(0, 1).astype(np.float32))
    return *views, motion


def test_texture_on_a_line_does_not_let_the_corners_wander():
    errors = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        src, dst, truth = band_pair(turned(rng), rng, height_px=6)
        errors.append(align(src, dst, gt=truth, config=STAY).gt_corner_error_px.item())
    assert np.median(errors) < 0.2  # 1 to 2 px with eight parameters from so little


def test_perspective_that_is_earned_stays():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        src, dst, truth = band_pair(random_homography(rng, SIZE, 6.0), rng, height_px=24)
        assert align(src, dst, gt=truth, config=STAY).gt_corner_error_px.item() < 0.5  # 2 to 6 px with a similarity


@pytest.mark.parametrize("photograph", ["cell", "moon"])
def test_noise_on_little_texture_takes_no_perspective_away(photograph):
    errors = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truth = random_homography(rng, SIZE, 14.0)
        pair = render_pair(load_scene(photograph, gray=True), truth, SIZE, rng=rng)
        src, dst = (
            (view + rng.normal(0, 24 / 255, SIZE)).clip(0, 1).astype(np.float32) for view in (pair.src, pair.dst)
        )
        intensity = AlignConfig(use_search=False, use_features=False, signal="intensity")
        errors.append(align(src, dst, gt=truth, config=intensity).gt_corner_error_px.item())
    assert np.median(errors) < 2.0  # 9 to 11 px by the likelihood ratio alone


@pytest.mark.parametrize(("kept", "draw"), [(2, shifted), (4, turned), (6, turned)])
def test_the_nearest_motion_of_a_model_is_the_motion_itself_where_it_is_one(kept, draw, numpy_rng):
    truth = torch.from_numpy(draw(numpy_rng))[None]
    level = Level(torch.from_numpy(numpy_rng.random((1, 1, *SIZE), dtype=np.float32)), None)
    problem = build_problem(level, level, level=0, max_points=5000, fit_photometric=False)
    weight = torch.ones_like(problem.template.value)
    assert corner_errors(_nearest(problem, truth, weight, kept), truth, *SIZE).max() < 1e-6


def test_a_pair_that_gives_up_freedom_ends_the_same_beside_others():
    size = (160, 200)
    frame = torch.eye(3, dtype=torch.float64)
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((6, 1, *size), dtype=np.float32))
    problem = build_problem(Level(image, None), Level(image, None), level=0, max_points=10**6, fit_photometric=True)
    matrix = frame + torch.from_numpy(rng.normal(0, [[1e-2] * 3, [1e-2] * 3, [1e-4] * 3], (6, 3, 3)))
    weight = torch.ones_like(problem.template.value)
    for kept in (2, 4, 6):
        together = _nearest(problem, matrix, weight, kept)
        for i in range(6):
            index = torch.tensor([i])
            assert torch.equal(_nearest(problem.select(index), matrix[index], weight[index], kept)[0], together[i])
