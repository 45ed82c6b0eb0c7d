"""What the blocks of an overlap say of the answer under which they overlap."""

import math

import numpy as np
import pytest
import torch
from levels import level_of

from homoalign import homography
from homoalign.optimisation.schedule import MOTION_PARAMETERS
from homoalign.trust.parts import MOST_480, measure_parts
from jobs.rendering.degrade import see_by_other_sensor
from jobs.rendering.synthetic import load_scene, random_homography, render_pair

SIZE = (120, 160)
AT_480 = 480 / SIZE[0]


@pytest.fixture
def view(numpy_rng):
    """Render a pair of a photograph: (src, dst, dst_homo_src)."""

    def render(photograph="astronaut"):
        truth = random_homography(numpy_rng, SIZE, 6.0)
        pair = render_pair(load_scene(photograph, gray=True), truth, SIZE, rng=numpy_rng)
        return pair.src.clip(0, 1), pair.dst.clip(0, 1), pair.dst_homo_src

    return render


def measured(src, dst, dst_homo_src):
    """Return here, drift and its deviation of one pair."""
    parts = measure_parts(level_of(src), level_of(dst), torch.from_numpy(dst_homo_src)[None])
    return parts.here.item(), parts.drift_480.item(), parts.drift_std_480.item()


def shifted(x, y):
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def test_under_the_truth_the_blocks_stay_where_they_are(view):
    src, dst, truth = view()
    here, drift, std = measured(src, dst, truth)
    assert here > 0.95  # all 48 of 50
    assert drift < 1
    assert std < 1


def test_it_does_not_matter_what_another_sensor_makes_of_bright_and_dark(view, numpy_rng):
    src, dst, truth = view("camera")
    here, drift, _ = measured(src, see_by_other_sensor(dst, bends=2, rng=numpy_rng), truth)
    assert here > 0.8
    assert drift < 3


@pytest.mark.parametrize("shift_px", [2, 5])
def test_the_drift_is_how_far_the_corners_are_off(view, shift_px):
    src, dst, truth = view()
    here, drift, std = measured(src, dst, shifted(shift_px, 0) @ truth)
    assert here < 0.1
    assert drift == pytest.approx(shift_px * AT_480, rel=0.15)
    assert std < 1


def test_corners_far_from_all_texture_are_not_determined(view):
    src, dst, truth = view()
    faded = [np.where(np.mgrid[: SIZE[0], : SIZE[1]].sum(0) < 110, image, 0.5) for image in (src, dst)]
    everywhere, in_a_corner = measured(src, dst, truth)[2], measured(*map(np.float32, faded), truth)[2]
    assert in_a_corner > 10 * everywhere


def test_blocks_of_unrelated_images_lie_best_elsewhere(view):
    src, dst = view("astronaut")[0], view("coffee")[1]
    here, drift, std = measured(src, dst, np.eye(3))
    assert here < 0.2
    assert math.hypot(drift, std) > 10


def test_no_matrix_and_no_texture_determine_nothing(view):
    src, dst, _ = view()
    assert measured(src, dst, np.full((3, 3), np.nan)) == (0, MOST_480, MOST_480)
    here, drift, std = measured(np.full_like(src, 0.5), dst, np.eye(3))
    assert (here, drift) == (0, 0)
    assert std > 30  # the prior's


def test_a_pair_is_measured_alike_alone_and_with_others(view):
    pairs = [view(name) for name in ("astronaut", "camera", "coffee")]
    src, dst, matrix = (np.stack(side) for side in zip(*pairs, strict=True))
    matrix[1] = shifted(3, -2) @ matrix[1]
    together = measure_parts(level_of(*src), level_of(*dst), torch.from_numpy(matrix))
    for i in range(3):
        alone = measured(src[i], dst[i], matrix[i])
        assert (together.here[i].item(), together.drift_480[i].item(), together.drift_std_480[i].item()) == (
            pytest.approx(alone, abs=1e-3)
        )


@pytest.mark.parametrize("shift_px", [2, 5])
def test_the_motion_of_the_blocks_leads_back_to_the_truth(view, shift_px):
    src, dst, truth = view()
    wrong = torch.from_numpy(shifted(shift_px, -shift_px) @ truth)[None]
    parts = measure_parts(level_of(src), level_of(dst), wrong)
    right = homography.move(wrong, parts.motion, *SIZE)
    assert homography.corner_errors(right, torch.from_numpy(truth)[None], *SIZE).max() < 0.4


MODELS = ["translation", "euclidean", "similarity", "affine", "homography"]


def in_a_corner(image):
    """Return the image with texture in one corner alone, as a cell lies on dark ground."""
    faded = np.full_like(image, 0.2)
    faded[:60, :60] = image[:60, :60]
    return faded


def told_within(model, src, dst, dst_homo_src):
    free = MOTION_PARAMETERS[model]
    return measure_parts(level_of(src), level_of(dst), torch.from_numpy(dst_homo_src)[None], free)


def test_few_blocks_know_the_corners_of_a_motion_of_few_parameters(view):
    scene = in_a_corner(view()[0])
    std = [told_within(model, scene, scene, np.eye(3)).drift_std_480.item() for model in MODELS]
    assert sorted(std) == std
    assert std[0] < 1
    assert std[-1] > 5 * std[0]


@pytest.mark.parametrize(("model", "is_against"), [("translation", True), ("euclidean", False)])
def test_blocks_that_speak_against_the_model_are_heard(view, model, is_against):
    src, dst, truth = view()
    narrow, wide = (told_within(each, src, dst, turned(truth, 0.8)) for each in (model, "homography"))
    assert narrow.here.item() > 0.5
    assert (narrow.drift_480.item() == wide.drift_480.item()) == is_against
    assert narrow.drift_480.item() > 3


def turned(dst_homo_src, angle_deg):
    """Return a matrix that has dst turned about its centre."""
    centre = shifted((SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2)
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return centre @ turn @ np.linalg.inv(centre) @ dst_homo_src


@pytest.mark.parametrize("model", MODELS[:-1])
def test_blocks_that_agree_by_chance_know_no_less_free_motion(numpy_rng, model):
    src, dst = ([in_a_corner(numpy_rng.uniform(size=SIZE)) for _ in range(40)] for _ in range(2))
    matrix = torch.eye(3, dtype=torch.float64).expand(40, 3, 3)
    narrow, wide = (
        measure_parts(level_of(*src), level_of(*dst), matrix, MOTION_PARAMETERS[each]) for each in (model, "homography")
    )
    assert wide.here.max() > 0.1  # of nine blocks or so
    assert torch.equal(narrow.drift_std_480, wide.drift_std_480)


@pytest.mark.parametrize("model", MODELS)
def test_what_stands_still_in_a_model_moves_no_corner(view, model, by_torch):
    src, dst, truth = view()

    def told():
        parts = told_within(model, src, dst, shifted(0.5, 0) @ truth)
        return torch.cat([parts.drift_480, parts.drift_std_480, parts.motion.flatten()])

    torch.testing.assert_close(told(), by_torch(told), rtol=1e-3, atol=1e-3)
    motion = told()[2:].view(3, 3)
    if model == "translation":
        assert torch.equal(motion[:2, :2], motion[2, 2] * torch.eye(2, dtype=torch.float64))
