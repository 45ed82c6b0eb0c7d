"""The exhaustive search: similarities are found to the grid's step, within the bounds, whatever light and mask."""

import itertools
import math

import numpy as np
import pytest
import torch
from levels import pyramid_of

from homoalign import AlignConfig
from homoalign.homography import corner_errors
from homoalign.levels.fourier import fast_length
from homoalign.levels.pyramid import Level, build_pyramid
from homoalign.starts import search as search_module
from homoalign.starts.search import (
    ROTATION_STEP_DEG,
    SCALE_STEP,
    _make_canvas,
    _rotations,
    _scales,
    _search_scale,
    search_similarities,
    search_upright,
)
from jobs.rendering.synthetic import load_scene, render_pair, similarity_homography

SIZE = (96, 128)
FRAME_PX = math.hypot(*SIZE)


@pytest.fixture
def similar_pair(numpy_rng):
    """Render a pair that a similarity about the centre, then a shift of dst, relates: (src, dst, dst_homo_src)."""

    def render(photograph="astronaut", *, angle_deg=0.0, scale=1.0, shift=(0.0, 0.0), dst_size=SIZE):
        enlarged = scale * math.sqrt(math.prod(dst_size) / math.prod(SIZE))  # of frame onto frame, as the search's
        similarity = similarity_homography(SIZE, angle_deg=angle_deg, scale=enlarged)
        x, y = (shift[i] + (dst_size[1 - i] - SIZE[1 - i]) / 2 for i in range(2))
        moved = np.array([[1, 0, x], [0, 1, y], [0, 0, 1]]) @ similarity
        pair = render_pair(load_scene(photograph, gray=True), moved, SIZE, rng=numpy_rng, dst_size=dst_size)
        return pair.src.clip(0, 1), pair.dst.clip(0, 1), pair.dst_homo_src

    return render


def search(src, dst, *, keep=5, **config):
    matrices, score = search_similarities(pyramid_of(src), pyramid_of(dst), AlignConfig(**config), keep=keep)
    return matrices[0], score[0]


def errors_px(matrices, truth):
    """Mean corner error of each, dst pixels."""
    truth = torch.from_numpy(np.asarray(truth)).expand(len(matrices), 3, 3)
    return corner_errors(matrices, truth, *SIZE).mean(-1)


def angle_and_scale(matrices):
    angle = torch.atan2(matrices[..., 1, 0], matrices[..., 0, 0])
    return torch.rad2deg(angle), torch.hypot(matrices[..., 1, 0], matrices[..., 0, 0])


@pytest.mark.parametrize(
    ("angle_deg", "scale", "shift"),
    [
        (130, 1, (0, 0)),
        (-90, 1, (10, -5)),
        (180, 1, (0, 0)),
        (0, 0.5, (0, 0)),
        (0, 2, (0, 0)),
        (60, 0.5, (-12, 9)),
        (0, 1, (50, 0)),
        (0, 1, (-40, 30)),
    ],
)
def test_a_similarity_on_the_grid_is_found_first(similar_pair, angle_deg, scale, shift):
    src, dst, truth = similar_pair(angle_deg=angle_deg, scale=scale, shift=shift)
    matrices, score = search(src, dst, search_max_scale=2.0)
    # A canvas pixel is a fiftieth of the frame or so, and it was rendered elsewhere in its own pixels.
    assert errors_px(matrices, truth)[0] < 0.03 * scale * FRAME_PX
    assert score[0] == score.max() > 0.3
    assert (score.diff() <= 0).all()


@pytest.mark.parametrize("photograph", ["camera", "coffee", "chelsea", "brick"])
def test_a_similarity_between_the_grids_points_is_found_to_half_a_step(similar_pair, photograph):
    src, dst, truth = similar_pair(photograph, angle_deg=75, scale=0.65, shift=(5, -8))
    matrices, _ = search(src, dst, search_max_scale=2.0)
    half_step = math.hypot(math.radians(ROTATION_STEP_DEG / 2), math.sqrt(SCALE_STEP) - 1)
    furthest_px = 0.65 * half_step * FRAME_PX / 2
    assert errors_px(matrices, truth).min() < furthest_px + 0.03 * 0.65 * FRAME_PX


def test_a_contrast_that_is_turned_over_is_no_obstacle(similar_pair):
    src, dst, truth = similar_pair(angle_deg=130)
    matrices, _ = search(src, 0.2 + 0.5 * (1 - dst), search_max_scale=1.0)
    assert errors_px(matrices, truth)[0] < 0.03 * FRAME_PX


def test_nothing_outside_the_bounds_is_returned(similar_pair):
    src, dst, _ = similar_pair(angle_deg=130, scale=2)
    matrices, score = search(src, dst, keep=50, search_max_rotation_deg=25, search_max_scale=1.5)
    angle, scale = angle_and_scale(matrices[score > -1])
    assert len(angle) == 50
    assert angle.abs().max() <= 25 + 1e-6
    assert 1 / 1.5 - 1e-6 <= scale.min() <= scale.max() <= 1.5 + 1e-6
    assert {round(value, 6) for value in angle.tolist()} > {0.0}


def test_without_room_for_rotation_or_scale_only_shifts_are_tried(similar_pair):
    src, dst, truth = similar_pair(shift=(-30, 20))
    matrices, score = search(src, dst, keep=50, search_max_rotation_deg=0, search_max_scale=1)
    assert len(matrices) == 3  # as many peaks as one rotation has
    angle, scale = angle_and_scale(matrices)
    torch.testing.assert_close(angle, torch.zeros_like(angle), rtol=0, atol=1e-9)
    torch.testing.assert_close(scale, torch.ones_like(scale), rtol=0, atol=1e-9)
    assert errors_px(matrices, truth)[0] < 0.03 * FRAME_PX
    assert score[0] == score.max()


@pytest.mark.parametrize("dst_size", [(192, 256), (60, 60), (140, 90)])
def test_images_of_unlike_size_are_searched_about_frame_onto_frame(similar_pair, dst_size):
    src, dst, truth = similar_pair(angle_deg=50, dst_size=dst_size)
    matrices, _ = search(src, dst, search_max_scale=1.5)
    assert errors_px(matrices, truth)[0] < 0.05 * math.hypot(*dst_size)  # a canvas has whole pixels


def test_a_crop_is_found_by_its_shift(similar_pair):
    src, _, _ = similar_pair()
    matrices, _ = search(src, src[20:80, 40:110], search_max_rotation_deg=20, search_max_scale=2.0)
    truth = np.array([[1, 0, -40], [0, 1, -20], [0, 0, 1.0]])
    assert errors_px(matrices, truth).min() < 0.12 * FRAME_PX


def test_what_is_masked_does_not_attract(similar_pair):
    src, dst, truth = similar_pair(shift=(20, 10))
    stained, mask = dst.copy(), np.ones(dst.shape, dtype=bool)
    # src itself, unmoved: where it may be seen, standing still agrees as well as the truth does elsewhere.
    stained[:, 64:], mask[:, 64:] = src[:, 64:], False
    src_levels, config = pyramid_of(src), AlignConfig(search_max_rotation_deg=0, search_max_scale=1)
    masked, _ = search_similarities(src_levels, pyramid_of(stained, mask=mask), config, keep=3)
    seen, _ = search_similarities(src_levels, pyramid_of(stained), config, keep=3)
    assert errors_px(masked[0], truth)[0] < 0.03 * FRAME_PX
    assert errors_px(masked[0], np.eye(3)).min() > 0.1 * FRAME_PX
    assert errors_px(seen[0], np.eye(3)).min() < 0.03 * FRAME_PX


@pytest.mark.parametrize("dst_size", [SIZE, (75, 61)])
@pytest.mark.parametrize("masked", [False, True])
def test_half_a_round_and_its_half_turns_are_a_whole_round(similar_pair, numpy_rng, by_torch, dst_size, masked):
    src, dst, _ = similar_pair(angle_deg=-70, scale=0.8, shift=(9, -4), dst_size=dst_size)
    masks = [numpy_rng.random(image.shape) < 0.999 if masked else None for image in (src, dst)]
    pyramids = [pyramid_of(image, mask=mask) for image, mask in zip((src, dst), masks, strict=True)]
    angles = _rotations(180.0, torch.device("cpu"))

    def found(*, goes_round):
        return _search_scale(*pyramids, 0.8, angles, goes_round=goes_round)

    matrices, score = found(goes_round=False)
    for matrices_round, score_round in (found(goes_round=True), by_torch(lambda: found(goes_round=True))):
        torch.testing.assert_close(score_round, score, atol=1e-5, rtol=0)
        high = score > 0.05  # what scores less is level, and one shift is as good as another
        assert high.count_nonzero() > 20
        torch.testing.assert_close(matrices_round[high], matrices[high], rtol=0, atol=1e-9)


def test_only_a_whole_round_is_searched_by_halves(similar_pair, monkeypatch):
    src, dst, _ = similar_pair()
    turned = []
    bare = search_module.best_shifts
    monkeypatch.setattr(
        search_module, "best_shifts", lambda turn, *more, **kw: (turned.append(turn), bare(turn, *more, **kw))[1]
    )
    for largest in (180, 170):
        search(src, dst, search_max_rotation_deg=largest, search_max_scale=1)
    assert [(len(turn.usable[0]), turn.with_half_turns) for turn in turned] == [(18, True), (35, False)]


def test_two_pairs_are_searched_as_each_alone(similar_pair):
    pairs = [similar_pair("astronaut", angle_deg=130), similar_pair("coffee", shift=(30, 0))]
    src, dst = (pyramid_of(*images) for images in list(zip(*pairs, strict=True))[:2])
    config = AlignConfig(search_max_scale=1.5)
    matrices, score = search_similarities(src, dst, config, keep=5)
    for i in range(2):
        index = torch.tensor([i])
        alone = [[level.select(index) for level in levels] for levels in (src, dst)]
        matrix_alone, score_alone = search_similarities(*alone, config, keep=5)
        torch.testing.assert_close(score[i], score_alone[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(matrices[i], matrix_alone[0], rtol=0, atol=1e-9)


def test_images_without_structure_give_scores_that_are_no_numbers_to_trust(similar_pair):
    src, dst, _ = similar_pair()
    _, score = search(np.full_like(src, 0.5), dst, search_max_rotation_deg=20, search_max_scale=1)
    assert score.isfinite().all()
    assert score.max() < 0.05  # what agrees scores above 0.3
    empty = [Level(level.image, torch.zeros_like(level.image)) for level in pyramid_of(src)]
    _, score = search_similarities(
        empty, pyramid_of(dst), AlignConfig(search_max_rotation_deg=20, search_max_scale=1), keep=3
    )
    assert (score == -1).all()


@pytest.mark.parametrize("largest", [1.0, 1.2, 2.0, 4.0, 7.3])
def test_scales_are_symmetric_about_one_and_no_step_is_too_wide(largest):
    scales = _scales(largest)
    assert 1.0 in scales
    assert scales[0] == pytest.approx(1 / largest)
    assert scales[-1] == pytest.approx(largest)
    assert [1 / scale for scale in reversed(scales)] == pytest.approx(scales)
    assert all(b / a <= SCALE_STEP * (1 + 1e-9) for a, b in itertools.pairwise(scales))


@pytest.mark.parametrize(("largest_deg", "count"), [(0, 1), (5, 3), (10, 3), (25, 7), (179, 37), (180, 36), (400, 36)])
def test_rotations_reach_the_bound_and_go_round_once(largest_deg, count):
    angles = torch.rad2deg(_rotations(largest_deg, torch.device("cpu")))
    assert len(angles) == count
    assert angles.unique().numel() == count
    assert angles.abs().max() <= min(largest_deg, 180) + 1e-9
    assert angles.diff().abs().max() <= ROTATION_STEP_DEG + 1e-9 if count > 1 else True
    assert angles.abs().min() < 1e-9


def test_fast_lengths_are_even_long_enough_and_of_small_factors():
    for least in range(1, 300):
        length = fast_length(least, step=2)
        assert length >= least
        assert length % 2 == 0
        assert all(fast_length(other, step=2) == length for other in range(least, length + 1))
        while length % 2 == 0:
            length //= 2
        while length % 3 == 0:
            length //= 3
        while length % 5 == 0:
            length //= 5
        assert length == 1


def test_strips_are_searched_on_canvases_of_bounded_length(monkeypatch, numpy_rng):
    texture = numpy_rng.random((16, 2400), dtype=np.float32)
    strip = np.repeat(texture, 8, axis=1)[:, ::8]  # 16 x 2400
    src, dst = (
        torch.from_numpy(np.ascontiguousarray(view))[None, None] for view in (strip[:, :1600], strip[:, 500:2100])
    )
    sides = []

    def make_canvas(pyramid, pitch):
        canvas = _make_canvas(pyramid, pitch)
        sides.extend(canvas.structure.channels.shape[-2:])
        return canvas

    monkeypatch.setattr("homoalign.starts.search._make_canvas", make_canvas)
    pyramids = [build_pyramid(Level(image, None), 1) for image in (src, dst)]
    found, _ = search_similarities(*pyramids, AlignConfig(search_max_scale=1.0), keep=5)
    assert max(sides) <= 256  # 640, and squares of that at every angle, for a geometric mean of 64
    assert found.shape == (1, 5, 3, 3)


@pytest.mark.parametrize(
    ("shift", "dst_size"),
    [
        ((112.0, 1.0), SIZE),
        ((-2.0, -84.0), SIZE),
        ((100.0, 60.0), SIZE),
        ((60.0, 50.0), (80, 200)),
        ((-3.0, 2.0), SIZE),
    ],
)
def test_the_best_shift_of_tiles_is_the_right_one(similar_pair, shift, dst_size):
    scale = math.sqrt(math.prod(SIZE) / math.prod(dst_size))  # pixels of one size
    src, dst, truth = similar_pair(shift=shift, dst_size=dst_size, scale=scale)
    matrices, score = search_upright(pyramid_of(src), pyramid_of(dst), keep=4)
    assert errors_px(matrices[0], truth)[0] < 1
    assert score[0].tolist() == sorted(score[0].tolist(), reverse=True)
    assert torch.equal(matrices[0, :, :2, :2], torch.eye(2, dtype=torch.float64).expand(4, 2, 2))


def test_masked_pixels_hold_no_tile(similar_pair):
    src, dst, truth = similar_pair(shift=(100.0, 0.0))
    for hidden, is_found in ((np.s_[:, 64:], True), (np.s_[:, :32], False)):  # src shows the strip on its left
        kept = np.ones(SIZE)
        kept[hidden] = 0
        matrices, _ = search_upright(pyramid_of(src, mask=kept), pyramid_of(dst), keep=1)
        assert (errors_px(matrices[0], truth)[0] < 1) == is_found
