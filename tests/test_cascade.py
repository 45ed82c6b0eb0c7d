"""Whole attempts, through `align`: where a pair starts, and what it is worth to go on."""

import dataclasses

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, Status, align
from homoalign.cascade import attempt, cascade
from homoalign.homography import corner_errors
from homoalign.status import StopReason
from jobs.bench.options import RenderOptions
from jobs.bench.photometric import photometric_pairs
from jobs.rendering.degrade import add_blur, adjust_exposure, occlude, see_by_other_sensor, to_uint8
from jobs.rendering.synthetic import (
    load_photograph,
    load_scene,
    random_homography,
    render_pair,
    similarity_homography,
    to_gray,
)

SIZE = (120, 160)
BARE = AlignConfig(use_search=False, use_features=False)
ONLY_FEATURES = AlignConfig(use_search=False)
ONLY_SEARCH = AlignConfig(use_features=False)


@pytest.fixture
def view(numpy_rng):
    """Render a pair under a similarity about the centre and a little perspective: (src, dst, dst_homo_src)."""

    def render(photograph="astronaut", *, angle_deg=0.0, scale=1.0, shift=(0.0, 0.0), size=SIZE):
        similarity = similarity_homography(size, angle_deg=angle_deg, scale=scale)
        moved = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]]) @ similarity
        moved = moved @ random_homography(numpy_rng, size, 3.0)
        pair = render_pair(load_scene(photograph, gray=True), moved, size, rng=numpy_rng)
        return pair.src.clip(0, 1), pair.dst.clip(0, 1), pair.dst_homo_src

    return render


def as_batch(*images):
    return torch.stack([torch.as_tensor(np.ascontiguousarray(image)) for image in images])[:, None]


def assert_same(a, b):
    for field in dataclasses.fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=field.name)
        else:
            assert one == other, field.name


@pytest.mark.parametrize(
    ("photograph", "angle_deg", "scale"),
    [("astronaut", 90, 1.0), ("camera", 130, 0.8), ("coffee", 180, 1.4), ("chelsea", -110, 0.6)],
)
def test_turned_and_scaled_pairs_are_searched(view, photograph, angle_deg, scale):
    src, dst, truth = view(photograph, angle_deg=angle_deg, scale=scale)
    result = align(src, dst, gt=truth)
    assert result.status == [Status.OK]
    assert result.initialisation == ["search"]
    assert result.gt_corner_error_px.item() < 1
    assert result.status_detail == [None]


def test_what_identity_solves_ends_there_bit_for_bit(make_pair):
    pairs = [make_pair(name) for name in ("astronaut", "camera", "coffee")]
    src, dst = as_batch(*(pair[0] for pair in pairs)), as_batch(*(pair[1] for pair in pairs))
    whole = align(src, dst)
    assert whole.status == [Status.OK] * 3
    assert whole.initialisation == ["identity"] * 3
    assert_same(whole, align(src, dst, config=BARE))


@pytest.mark.parametrize("trust", [0.0, 1.0])
def test_how_far_an_answer_is_trusted_does_not_change_which_is_found(view, monkeypatch, trust):
    near, turned = view("astronaut"), view("coffee", angle_deg=150)
    src, dst = as_batch(near[0], turned[0]), as_batch(near[1], turned[1])
    before = align(src, dst)
    assert before.initialisation == ["identity", "search"]
    monkeypatch.setattr("homoalign.trust.verdict.predict_confidence", lambda evidence: evidence.overlap * 0 + trust)
    after = align(src, dst)
    assert (after.confidence == trust).all()
    torch.testing.assert_close(after.dst_homo_src, before.dst_homo_src, rtol=0, atol=0)


def test_without_search_and_features_a_pair_stays_what_identity_gives(view):
    src, dst, truth = view(angle_deg=130)
    result = align(src, dst, gt=truth, config=BARE)
    assert result.status[0] is not Status.OK
    assert result.initialisation == ["identity"]
    assert result.gt_corner_error_px.item() > 20


def test_without_the_search_features_solve_it(view):
    src, dst, truth = view(angle_deg=130, size=(160, 200))
    result = align(src, dst, gt=truth, config=ONLY_FEATURES)
    assert result.status == [Status.OK]
    assert result.initialisation == ["features"]
    assert result.gt_corner_error_px.item() < 0.1


def test_the_search_stays_within_its_bounds(view):
    src, dst, truth = view(angle_deg=130)
    narrow = dataclasses.replace(ONLY_SEARCH, search_max_rotation_deg=40.0, search_max_scale=1.5)
    wide = dataclasses.replace(ONLY_SEARCH, search_max_rotation_deg=130.0, search_max_scale=1.5)
    assert align(src, dst, config=narrow).status[0] is not Status.OK
    found = align(src, dst, gt=truth, config=wide)
    assert found.status == [Status.OK]
    assert found.gt_corner_error_px.item() < 1


@pytest.mark.parametrize("angle_deg", [0, 130])
@pytest.mark.parametrize(
    "change",
    [
        lambda image: 1 - image,
        lambda image: adjust_exposure(1 - image, gamma=2.0),
        lambda image: adjust_exposure(image, gamma=0.4),
    ],
    ids=["inverted", "inverted, gamma 2", "gamma 0.4"],
)
def test_inverted_and_distorted_light_is_solved(view, change, angle_deg):
    src, dst, truth = view(angle_deg=angle_deg)
    result = align(src, change(dst).astype(np.float32), gt=truth)
    assert result.status == [Status.OK]
    assert result.gt_corner_error_px.item() < 1
    if angle_deg == 0:  # what stands is solved where it stands
        assert result.initialisation == ["identity"]


@pytest.mark.parametrize(("photograph", "angle_deg"), [("astronaut", 0), ("coffee", 0), ("camera", 150)])
def test_what_another_photograph_hides_in_part_is_solved(view, numpy_rng, photograph, angle_deg):
    src, dst, truth = view(photograph, angle_deg=angle_deg)
    hidden, covered = occlude(dst, other=load_photograph("gravel"), share=0.3, rng=numpy_rng)
    assert covered.mean() == pytest.approx(0.3, abs=0.01)
    # Whether it is `ok` depends on how little of the frame may agree; the matrix is to be right in any case.
    assert align(src, hidden, gt=truth).gt_corner_error_px.item() < 1


def test_a_shift_of_a_third_of_the_frame_is_solved(view):
    src, dst, truth = view("camera", shift=(55, -25))
    result = align(src, dst, gt=truth)
    assert result.status == [Status.OK]
    assert result.initialisation == ["search"]
    assert result.gt_corner_error_px.item() < 0.5


def test_a_prior_that_is_100_px_off_is_searched_past(view):
    src, dst, truth = view()
    prior = np.array([[1, 0, 100], [0, 1, 0], [0, 0, 1.0]]) @ truth
    assert align(src, dst, init=prior, config=BARE).status[0] is not Status.OK
    result = align(src, dst, init=prior, gt=truth)
    assert result.status == [Status.OK]
    assert result.initialisation == ["search"]
    assert result.gt_corner_error_px.item() < 0.1


@pytest.mark.parametrize("shift", [(28, 103), (-92, 141), (-136, 60)])
def test_bricks_are_laid_where_they_belong_and_not_a_course_off(shift, numpy_rng):
    wall, side, (x, y) = load_photograph("brick"), 300, shift
    left, top = (max(0, -step) + 20 for step in shift)
    src, dst = (wall[row : row + side, column : column + side] for row, column in ((top, left), (top + y, left + x)))
    src, dst = (view + numpy_rng.normal(0, 4 / 255, view.shape).astype(np.float32) for view in (src, dst))
    truth = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]])
    result = align(src.clip(0, 1), dst.clip(0, 1), gt=truth)
    assert result.gt_corner_error_px.item() < 0.5  # a hundred for seven of thirty, all of them ok, by what agrees most
    assert result.status == [Status.OK]


def test_less_than_half_of_a_framed_view_is_enough_where_all_of_it_agrees():
    photograph = to_gray(load_photograph("astronaut"))
    views = []
    for left, top in ((150, 80), (28, 120)):
        view = np.ones((240, 300), dtype=np.float32)
        view[25:-25, 25:-25] = photograph[top + 25 : top + 215, left + 25 : left + 275]
        views.append(view)
    result = align(*views, gt=np.array([[1, 0, 122.0], [0, 1, -40.0], [0, 0, 1]]))
    assert result.overlap.item() < 0.45
    assert result.gt_corner_error_px.item() < 0.05
    assert result.confidence.item() > 0.95


def test_a_good_prior_spares_the_search(view):
    src, dst, truth = view(angle_deg=130)
    prior = np.array([[1, 0, 3], [0, 1, -2], [0, 0, 1.0]]) @ truth
    result = align(src, dst, init=prior, gt=truth)
    assert result.initialisation == ["prior"]
    assert result.gt_corner_error_px.item() < 0.1


@pytest.mark.parametrize("names", [("astronaut", "coffee"), ("chelsea", "grass"), ("page", "camera")])
def test_unrelated_images_are_not_ok_wherever_they_are_started(view, names):
    src, dst = (view(name)[0] for name in names)
    result = align(src, dst)
    assert result.status[0] is not Status.OK
    assert result.status_detail[0]


def test_masks_hold_all_the_way(view):
    src, dst, truth = view(angle_deg=130)
    mask = np.ones(dst.shape, dtype=bool)
    mask[:, 110:] = False
    stained = np.where(mask, dst, src)  # unmasked, it agrees with standing still
    by_mask = align(src, stained, dst_mask=mask, gt=truth)
    by_nan = align(src, np.where(mask, dst, np.nan).astype(np.float32))
    assert by_mask.status == by_nan.status == [Status.OK]
    assert by_mask.gt_corner_error_px.item() < 1
    assert corner_errors(by_nan.dst_homo_src, by_mask.dst_homo_src, *SIZE).max() < 1e-3


def test_a_turned_pair_of_unlike_sizes_is_solved(view):
    src, dst, truth = view(angle_deg=130)
    cropped = truth.copy()
    cropped[:2] -= np.array([[12.0], [7.0]]) * truth[2]
    result = align(src, dst[7:107, 12:152], gt=cropped)
    assert result.status == [Status.OK]
    assert result.gt_corner_error_px.item() < 1


def test_the_trace_is_that_of_the_attempt_that_was_kept(view):
    src, dst, truth = view(angle_deg=130)
    result = align(src, dst, gt=truth, trace=True)
    assert result.initialisation == ["search"]
    (levels,) = result.levels
    assert levels[-1].level == 0
    assert levels[-1].photometric_l1 == pytest.approx(result.photometric_l1.item(), rel=1e-5)
    assert sum(level.num_iterations for level in levels) == result.num_iterations.item()


def make_mixed_batch(view):
    """Pairs for every step of the cascade, some that none solves and some that none may try."""
    near, turned, far = view("astronaut"), view("coffee", angle_deg=150), view("camera", shift=(55, -25))
    inverted = view("chelsea", angle_deg=60, scale=0.7)
    flat = np.full(SIZE, 0.5, np.float32)
    pairs = [
        turned[:2],
        (flat, near[1]),
        near[:2],
        (near[0], turned[1]),
        (inverted[0], 1 - inverted[1]),
        (near[0], np.full(SIZE, np.nan, np.float32)),
        far[:2],
    ]
    return as_batch(*(src for src, _ in pairs)), as_batch(*(dst for _, dst in pairs))


def test_a_mixed_batch_gives_each_pair_what_it_gets_alone(view):
    src, dst = make_mixed_batch(view)
    together = align(src, dst)
    assert len(together.status) == len(together.dst_homo_src) == len(together.levels) == len(src)
    assert [status is Status.OK for status in together.status] == [True, False, True, False, True, False, True]
    assert [together.initialisation[i] for i in (0, 2)] == ["search", "identity"]
    for i in range(len(src)):
        alone = align(src[i : i + 1], dst[i : i + 1])
        assert alone.status[0] == together.status[i]
        assert alone.initialisation[0] == together.initialisation[i]
        assert alone.dst_homo_src.isnan().all() == together.dst_homo_src[i].isnan().all()
        if together.dst_homo_src[i].isfinite().all():
            assert corner_errors(alone.dst_homo_src, together.dst_homo_src[i : i + 1], *SIZE).max() < 1e-3
            assert alone.confidence[0].item() == pytest.approx(together.confidence[i].item(), abs=1e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_sends_a_mixed_batch_the_same_way(view):
    src, dst = make_mixed_batch(view)
    on_cpu, on_gpu = align(src, dst), align(src.cuda(), dst.cuda())
    assert on_gpu.status == on_cpu.status
    assert on_gpu.initialisation == on_cpu.initialisation
    ok = torch.tensor([status is Status.OK for status in on_cpu.status])
    assert corner_errors(on_gpu.dst_homo_src[ok], on_cpu.dst_homo_src[ok], *SIZE).max() < 1e-2


def test_a_zoom_that_identity_finds_is_solved_on_levels_of_like_pitch(view):
    for photograph in ("camera", "coffee"):
        src, dst, truth = view(photograph, scale=2.0)
        result = align(src, dst, gt=truth)
        assert result.status == [Status.OK]
        assert result.gt_corner_error_px.item() < 0.2  # 0.9 to 1.3 px where src is compared with every other pixel


@pytest.mark.parametrize("photometric", ["auto", "none"])
def test_what_ends_on_structure_keeps_its_light_and_an_ordered_trace(make_pair, monkeypatch, photometric):
    monkeypatch.setattr("homoalign.cascade.attempt.solve_unlike_sharpness", lambda _, solved: solved)
    src, dst, truth = make_pair("astronaut")
    config = AlignConfig(photometric=photometric)
    result = align(src, add_blur(dst, sigma_px=2.5), gt=truth, config=config, trace=True)
    alone = align(src, add_blur(dst, sigma_px=2.5), config=dataclasses.replace(config, signal="intensity"))
    assert not torch.equal(result.dst_homo_src, alone.dst_homo_src)
    torch.testing.assert_close(result.gain, alone.gain, rtol=0, atol=0)
    torch.testing.assert_close(result.bias, alone.bias, rtol=0, atol=0)
    (levels,) = result.levels
    assert [level.level for level in levels] == sorted({level.level for level in levels}, reverse=True)
    assert sum(level.num_iterations for level in levels) == result.num_iterations.item()
    assert levels[-1].gt_reprojection_l1 == pytest.approx(result.gt_reprojection_l1.item(), rel=1e-3)


def test_what_stands_on_structure_alone_is_solved_where_it_stands():
    """A tone curve that folds: dark and bright look alike in one image, and intensities lead astray."""
    rng = np.random.default_rng(0)
    pair = render_pair(load_scene("camera", gray=True), random_homography(rng, SIZE, 6.0), SIZE, rng=rng)
    src, folded = pair.src.clip(0, 1), (4 * (pair.dst.clip(0, 1) - 0.5) ** 2).astype(np.float32)
    config = dataclasses.replace(BARE, photometric="gain_bias")  # a tone curve with a fold is one
    result = align(src, folded, gt=pair.dst_homo_src, config=config)
    assert result.status == [Status.OK]
    assert result.gt_corner_error_px.item() < 0.5
    on_intensity = align(src, folded, gt=pair.dst_homo_src, config=dataclasses.replace(config, signal="intensity"))
    assert on_intensity.gt_corner_error_px.item() > 2


def test_an_answer_whose_blocks_all_point_elsewhere_is_led_there():
    rng, size = np.random.default_rng(0), (240, 320)
    scene = load_scene("hubble_deep_field", gray=True)
    pair = render_pair(scene, random_homography(rng, size, 10.0), size, rng=rng)
    dst = to_uint8(see_by_other_sensor(pair.dst.clip(0, 1), bends=2, rng=rng))
    beside = np.array([[1, 0, rng.uniform(-14, 14)], [0, 1, rng.uniform(-14, 14)], [0, 0, 1]]) @ pair.dst_homo_src

    def solve():
        return align(to_uint8(pair.src), dst, init=beside, gt=pair.dst_homo_src, config=BARE)

    result = solve()
    assert result.status == [Status.OK]
    assert result.gt_corner_error_px.item() < 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "POINTS_ELSEWHERE", np.inf)
        assert solve().gt_corner_error_px.item() > 5


def test_a_pair_that_runs_out_of_steps_goes_on_from_there():
    rng, size = np.random.default_rng(22), (128, 128)
    pair = render_pair(load_scene("camera", gray=True), random_homography(rng, size, 32.0), size, rng=rng)

    def solve(max_iterations):
        config = dataclasses.replace(BARE, max_iterations=max_iterations)
        return align(pair.src.clip(0, 1), pair.dst.clip(0, 1), gt=pair.dst_homo_src, config=config)

    # Which of these runs out before it is there, depends on how a machine rounds.
    steps = range(3, 13)
    result = [solve(count) for count in steps]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "_go_on", lambda _batch, result, _signal: result)
        stopped = [solve(count) for count in steps]
    ran_out = [one.stop_reason == [StopReason.MAX_ITERATIONS] for one in stopped]
    before, after = (torch.cat([one.gt_corner_error_px for one in some]) for some in (stopped, result))
    assert sum(ran_out) >= 3
    assert (after / before).min() < 0.5
    assert (after / before).max() < 1.1


@pytest.mark.parametrize(("number", "config"), [(11, AlignConfig()), (13, BARE)], ids=["from the start", "normalised"])
def test_a_shade_that_leads_out_of_the_frame_is_found_out(number, config):
    """Of images whose shades are all that coarse levels show, descents and the search may go astray."""
    render = RenderOptions(pairs=number + 1, seed=0, photographs=("retina",))
    pairs = [pair for pair in photometric_pairs(render, 256, 10.0, 5.0) if pair.case == "vignetting"]
    result = align(pairs[number].src, pairs[number].dst, gt=pairs[number].dst_homo_src, config=config)
    assert result.gt_corner_error_px < 0.3  # the frame was left by 150 px and more
    assert result.status == [Status.OK]


def test_what_left_the_frame_is_less_alike_than_a_negative():
    rng = np.random.default_rng(1)
    moved = random_homography(rng, SIZE, 20.0)
    moved = np.array([[1, 0, rng.uniform(-130, 130)], [0, 1, rng.uniform(-90, 90)], [0, 0, 1.0]]) @ moved
    pair = render_pair(load_scene("coffee", gray=True), moved, SIZE, rng=rng)
    src, negative, truth = pair.src.clip(0, 1), 1 - pair.dst.clip(0, 1), pair.dst_homo_src
    assert align(src, negative, init=truth, gt=truth, config=BARE).gt_corner_error_px < 1


def test_how_a_pair_was_solved_changes_no_figure_of_its_neighbour(view, monkeypatch):
    """Structure leaves no scale of intensities: it is told anew, for the pairs that it solved alone."""
    sides = list(zip(*(view(name)[:2] for name in ("camera", "coins")), strict=True))
    src, dst = (torch.from_numpy(np.stack(side))[:, None] for side in sides)
    alone = align(src[1:], dst[1:], config=BARE)

    def without_scale(_, solved):
        return dataclasses.replace(solved, scale=solved.scale.index_fill(0, torch.tensor([0]), torch.nan))

    monkeypatch.setattr(attempt, "try_intensities", without_scale)
    together = align(src, dst, config=BARE)
    assert torch.equal(together.inlier_ratio[1:], alone.inlier_ratio)
