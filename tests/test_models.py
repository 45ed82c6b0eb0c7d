"""Models of motion: the answer is of the model exactly, and the truth is found where the model holds it."""

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, Status, align
from homoalign.starts.initialise import find_start
from jobs.rendering.synthetic import load_scene, render_pair, similarity_homography

SIZE = (140, 180)
MODELS = ("translation", "euclidean", "similarity", "affine", "homography")


def truth_of(model):
    shift = np.array([[1, 0, 3.3], [0, 1, -2.1], [0, 0, 1]])
    turn = similarity_homography(SIZE, angle_deg=2.0)
    grow = similarity_homography(SIZE, scale=1.03)
    shear = np.array([[1, 0.02, -1.0], [-0.01, 0.98, 1.2], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [8e-5, -6e-5, 1]])
    matrix = np.eye(3)
    for factor in (shift, turn, grow, shear, tilt)[: MODELS.index(model) + 1]:
        matrix = factor @ matrix
    return matrix / matrix[2, 2]


def render(model, rng):
    pair = render_pair(load_scene("coffee", gray=True), truth_of(model), SIZE, rng=rng)
    return pair.src.clip(0, 1), pair.dst.clip(0, 1), pair.dst_homo_src


def check_model(matrix, model):
    """Raise unless the matrix is of the model, to rounding."""
    A, identity = matrix[:2, :2], torch.eye(2, dtype=torch.float64)
    gram = A.mT @ A
    if model == "translation":
        torch.testing.assert_close(A, identity, rtol=0, atol=1e-9)
    if model == "euclidean":
        torch.testing.assert_close(gram, identity, rtol=0, atol=1e-9)
    if model == "similarity":
        torch.testing.assert_close(gram, gram[0, 0] * identity, rtol=0, atol=1e-9)
    if model != "homography":
        torch.testing.assert_close(matrix[2], torch.tensor([0, 0, 1], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_a_truth_within_the_model_is_found(model, numpy_rng):
    src, dst, truth = render(model, numpy_rng)
    result = align(src, dst, gt=truth, config=AlignConfig(model=model))
    assert result.status == [Status.OK]
    assert result.gt_corner_error_px.item() < 0.03
    check_model(result.dst_homo_src[0], model)


@pytest.mark.parametrize("model", MODELS[:-1])
def test_a_truth_beyond_the_model_is_met_by_a_matrix_of_the_model(model, numpy_rng):
    src, dst, truth = render("homography", numpy_rng)
    result = align(src, dst, gt=truth, config=AlignConfig(model=model))
    check_model(result.dst_homo_src[0], model)
    with pytest.raises(AssertionError):
        check_model(torch.from_numpy(truth), model)


def test_a_prior_beyond_the_model_is_kept(numpy_rng):
    src, dst, truth = render("homography", numpy_rng)
    prior = truth @ np.array([[1, 0, 2.0], [0, 1, -1.5], [0, 0, 1]])
    result = align(src, dst, init=prior, gt=truth, config=AlignConfig(model="translation"))
    # Only a shift was missing.
    assert result.gt_corner_error_px.item() < 0.03


def test_what_the_model_holds_still_has_no_variance(numpy_rng):
    src, dst, _ = render("translation", numpy_rng)
    std = [align(src, dst, config=AlignConfig(model=model)).corner_std_px.item() for model in MODELS]
    assert std[0] < 0.7 * std[2] < 0.7 * std[4]
    assert np.isfinite(std).all()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dst_size", [(132, 200), (90, 180)])
def test_a_cutting_of_another_size_is_found_by_every_model(numpy_rng, model, dst_size):
    shift = np.array([[1, 0, -4.0], [0, 1, 3.0], [0, 0, 1]])
    pair = render_pair(load_scene("coffee", gray=True), shift, SIZE, rng=numpy_rng, dst_size=dst_size)
    result = align(pair.src, pair.dst, gt=pair.dst_homo_src, config=AlignConfig(model=model))
    assert result.status == [Status.OK]
    assert result.gt_corner_error_px.item() < 0.3
    check_model(result.dst_homo_src[0], model)


@pytest.mark.parametrize(
    ("model", "scales"), [("euclidean", (1, 1)), ("similarity", (0.75, 0.75)), ("affine", (1.125, 0.5))]
)
def test_frames_of_unlike_shape_start_as_alike_as_the_model_lets_them(model, scales):
    start = find_start(None, 1, (100, 80), (50, 90), model=model).dst_homo_src[0]
    assert tuple(start.diagonal()[:2].tolist()) == pytest.approx(scales)
    centre = start @ torch.tensor([39.5, 49.5, 1], dtype=torch.float64)
    torch.testing.assert_close(centre[:2], torch.tensor([44.5, 24.5], dtype=torch.float64))
