"""What blocks say of a source that is only a part of what dst shows."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from levels import level_of

import homoalign
from homoalign import homography
from homoalign.cascade import attempt, rivals, weighing
from homoalign.cascade.elsewhere import shift_answers
from homoalign.cascade.rivals import rival_correlation, rival_in_scene
from homoalign.levels.patterns import local_patterns
from homoalign.levels.pyramid import Level
from homoalign.status import Status
from homoalign.trust.footprint import LEAST_SIDE_PX, footprints, measure_in_footprint, narrow_overlaps
from homoalign.trust.parts import Box, measure_parts
from homoalign.trust.witnesses import ask_witnesses, error_480, measure_parts_by_intensity
from jobs.bench.options import RenderOptions
from jobs.bench.template import template_pairs
from jobs.bench.tiles import ABSENT, tile_pairs
from jobs.rendering.synthetic import load_scene, render_pair

SRC_SIZE, DST_SIZE = (60, 60), (150, 200)
AT_480 = 480 / DST_SIZE[0]
SIGNALS = [measure_parts, measure_parts_by_intensity]


def placed(x, y):
    """Return dst_homo_src, (1, 3, 3), of a source that starts there, a hair askew."""
    return torch.tensor([[[1.0, 0.02, x], [-0.01, 1.0, y], [0.0001, 0.0, 1.0]]], dtype=torch.float64)


@pytest.fixture
def view(numpy_rng):
    """Render a small part of a photograph, and all of it: Levels."""

    def render(dst_homo_src, photograph="astronaut"):
        scene = load_scene(photograph, gray=True)
        pair = render_pair(scene, dst_homo_src[0].numpy(), SRC_SIZE, rng=numpy_rng, dst_size=DST_SIZE)
        return level_of(pair.src.clip(0, 1)), level_of(pair.dst.clip(0, 1))

    return render


@pytest.mark.parametrize("measure", SIGNALS)
def test_a_grid_over_the_source_knows_where_its_corners_lie(view, measure):
    truth = placed(90.0, 40.0)
    src, dst = view(truth)
    whole, parts = measure(src, dst, truth), measure_in_footprint(measure, src, dst, truth)
    assert parts.drift_std_480.item() < min(1.5, whole.drift_std_480.item() / 2)
    assert parts.drift_480.item() < 2
    assert parts.here.item() > 0.85


@pytest.mark.parametrize("measure", SIGNALS)
def test_it_is_told_in_pixels_and_coordinates_of_the_whole(view, measure):
    truth = placed(90.0, 40.0)
    src, dst = view(truth)
    beside = placed(92.0, 40.0)
    parts = measure_in_footprint(measure, src, dst, beside)
    off = homography.corner_errors(beside, truth, *SRC_SIZE).mean().item()
    assert parts.drift_480.item() == pytest.approx(AT_480 * off, rel=0.2)
    moved = homography.move(beside, parts.motion, *DST_SIZE)
    assert homography.corner_errors(moved, truth, *SRC_SIZE).mean() < 0.3
    spread = parts.corner_covariance_480[0].diagonal(dim1=-2, dim2=-1).sum(-1).mean().sqrt()
    assert spread.item() == pytest.approx(parts.drift_std_480.item())


def test_a_pair_is_told_the_same_among_others(view):
    small, large = placed(90.0, 40.0), torch.tensor([[[3.0, 0, 5], [0, 2.2, 3], [0, 0, 1]]], dtype=torch.float64)
    elsewhere = placed(20.0, 60.0)
    matrices = [large, small, large, elsewhere]
    views = [view(matrix) for matrix in matrices]
    src, dst = (Level(torch.cat([pair[side].image for pair in views]), None) for side in (0, 1))
    together = measure_in_footprint(measure_parts, src, dst, torch.cat(matrices))
    for i, (pair, matrix) in enumerate(zip(views, matrices, strict=True)):
        alone = measure_in_footprint(measure_parts, *pair, matrix)
        for field in fields(alone):
            value = getattr(together, field.name)[i]
            torch.testing.assert_close(value, getattr(alone, field.name)[0], rtol=1e-9, atol=1e-9, msg=field.name)


def test_masks_are_cut_out_as_well(view):
    truth = placed(90.0, 40.0)
    src, dst = view(truth)
    masked = dst.image.clone()
    mask = torch.ones_like(masked)
    masked[..., 60:80, 110:130], mask[..., 60:80, 110:130] = 1.0, 0.0  # in the middle of what src covers
    spoilt, parts = (measure_in_footprint(measure_parts, src, Level(masked, known), truth) for known in (None, mask))
    assert parts.here.item() > spoilt.here.item()


def test_where_a_small_source_lies():
    (box,) = footprints(placed(90.0, 40.0), SRC_SIZE, DST_SIZE)
    assert box is not None
    assert (box.left, box.top) == (85, 34)  # 4 px of reach and one more
    assert 90 + 60 < box.right < 90 + 75
    assert 40 + 60 < box.bottom < 40 + 75


@pytest.mark.parametrize(
    ("why", "matrix", "src_size"),
    [
        ("it is not small", placed(10.0, 10.0), (60, 130)),
        ("it has few pixels", placed(90.0, 40.0), (LEAST_SIDE_PX // 2, 60)),
        ("half of it is not seen", placed(170.0, 40.0), SRC_SIZE),
        ("it is nowhere near", placed(-500.0, 40.0), SRC_SIZE),
        ("nobody knows where it is", torch.full((1, 3, 3), torch.nan, dtype=torch.float64), SRC_SIZE),
    ],
)
def test_other_sources_are_measured_in_the_frame(why, matrix, src_size):
    assert footprints(matrix, src_size, DST_SIZE) == [None], why


def test_an_object_that_is_found_in_its_scene_is_trusted_and_one_that_is_not_there_is_not():
    render = RenderOptions(pairs=2, seed=3, photographs=("astronaut", "coffee"))
    pairs = [pair for pair in template_pairs(render, 192, 3.0) if pair.case in ("1/3, covered", "absent")]
    for pair in pairs:
        found = homoalign.align(pair.src, pair.dst)
        assert (found.status[0] is Status.OK) == (pair.case != "absent"), pair
        if pair.case != "absent":
            error = homography.corner_errors(found.dst_homo_src, torch.from_numpy(pair.dst_homo_src)[None], 192, 192)
            assert error.mean() < 1
            assert float(np.nanmax(error.numpy())) < 4 * found.corner_std_px.item()


def with_copies(numpy_rng, *places):
    """Return a template, and a scene of another photograph that shows it at places, (x, y) each: one pyramid each."""
    scene = load_scene("astronaut", gray=True)
    view = render_pair(scene, placed(0.0, 0.0)[0].numpy(), SRC_SIZE, rng=numpy_rng, dst_size=SRC_SIZE)
    pair = render_pair(load_scene("coffee", gray=True), np.eye(3), DST_SIZE, rng=numpy_rng)
    dst = pair.dst.copy()
    for x, y in places:
        dst[y : y + SRC_SIZE[0], x : x + SRC_SIZE[1]] = view.src
    return level_of(view.src.clip(0, 1)), level_of(dst.clip(0, 1))


def at(x, y):
    return torch.tensor([[[1.0, 0, x], [0, 1, y], [0, 0, 1]]], dtype=torch.float64)


def test_another_copy_anywhere_in_the_scene_is_a_rival(numpy_rng):
    answer = at(10.0, 20.0)
    one = with_copies(numpy_rng, (10, 20))
    two = with_copies(numpy_rng, (10, 20), (135, 80))
    assert rival_in_scene(*one, answer).item() < 0.5
    assert rival_in_scene(*two, answer).item() == pytest.approx(1, abs=0.05)
    assert rival_correlation(local_patterns(*two, answer)).item() < 0.5  # beside src it sees nothing
    for here, there in (((10.0, 20.0), (135.0, 80.0)), ((135.0, 80.0), (10.0, 20.0))):
        pyramids = [[level] for level in two]
        shifted = shift_answers(*pyramids, at(*here), 1, torch.tensor([True]))
        torch.testing.assert_close(shifted.dst_homo_src, at(*there), rtol=0, atol=0.01)


def test_an_object_that_the_scene_shows_twice_is_doubted(numpy_rng):
    for places in (((10, 20),), ((10, 20), (135, 80))):
        src, dst = (level.image for level in with_copies(numpy_rng, *places))
        found = homoalign.align(src, dst, init=at(11.0, 20.5))
        assert (found.status[0] is Status.OK) == (len(places) == 1)


def test_copies_are_looked_at_where_they_lie_in_the_scene(numpy_rng, monkeypatch):
    asked = []
    bare = weighing.shift_answers

    def spy(*arguments):
        asked.append(arguments[4].tolist())
        return bare(*arguments)

    monkeypatch.setattr(weighing, "shift_answers", spy)
    src, dst = (level.image for level in with_copies(numpy_rng, (10, 20), (135, 80)))
    homoalign.align(src, dst, init=at(11.0, 20.5))
    assert asked == [[True]]


def test_witnesses_look_where_the_source_lies(view):
    truth = placed(90.0, 40.0)
    src, dst = view(truth)
    doubtful = measure_parts(src, dst, truth)
    told = ask_witnesses([src], [dst], truth, doubtful, torch.ones(1, dtype=torch.float64))
    assert error_480(told).item() < error_480(measure_parts_by_intensity(src, dst, truth)).item()
    assert error_480(told).item() < error_480(doubtful).item()


@pytest.mark.parametrize(("most_pixels", "is_sought"), [(10_000, True), (3_000, False)])
def test_rivals_of_a_tile_are_sought_on_a_level_that_is_not_large(numpy_rng, monkeypatch, most_pixels, is_sought):
    """A tile of 150 pixels in a mosaic of 12 megapixels took 15 CPU-s and 4 GB at full size."""
    monkeypatch.setattr(attempt, "MOST_SCENE_PIXELS", most_pixels)
    monkeypatch.setattr(attempt, "LEAST_SIDE_PX", 20)
    sizes = []
    bare = rivals.rival_in_scene

    def spy(src, dst, matrix):
        sizes.append(dst.image[0].numel())
        return bare(src, dst, matrix)

    monkeypatch.setattr(rivals, "rival_in_scene", spy)
    src, dst = (level.image for level in with_copies(numpy_rng, (10, 20), (134, 80)))
    found = homoalign.align(src, dst, init=at(11.0, 20.5))
    assert set(sizes) == ({75 * 100} if is_sought else set())
    assert (found.status[0] is Status.OK) != is_sought


TILE = (160, 160)


def neighbours(numpy_rng, x, y=0.0, photograph="astronaut"):
    """Return two tiles, Levels, the second of which starts there in the first, and the truth."""
    truth = torch.tensor([[[1.0, 0, -x], [0, 1, -y], [0, 0, 1]]], dtype=torch.float64)
    pair = render_pair(load_scene(photograph, gray=True), truth[0].numpy(), TILE, rng=numpy_rng)
    return level_of(pair.src.clip(0, 1)), level_of(pair.dst.clip(0, 1)), truth


@pytest.mark.parametrize("measure", SIGNALS)
def test_small_blocks_tell_a_strip_what_those_of_the_frame_do_not(numpy_rng, measure):
    src, dst, truth = neighbours(numpy_rng, 148.0)
    whole, parts = measure(src, dst, truth, 2), measure_in_footprint(measure, src, dst, truth, 2)
    assert whole.drift_std_480.item() > 20
    assert parts.drift_std_480.item() < 1
    assert parts.drift_480.item() < 1
    assert parts.here.item() > 0.7


def test_a_strip_says_where_it_would_rather_lie(numpy_rng):
    src, dst, truth = neighbours(numpy_rng, 130.0, 4.0)
    beside = truth.clone()
    beside[0, 0, 2] += 3
    beside[0, 1, 2] -= 2
    parts = measure_in_footprint(measure_parts, src, dst, beside, 2)
    assert parts.here.item() < 0.1
    assert parts.drift_480.item() == pytest.approx(np.hypot(3, 2) * 480 / TILE[0], rel=0.3)


def test_a_strip_says_where_it_would_rather_lie_from_where_it_is(numpy_rng):
    src, dst, truth = neighbours(numpy_rng, -130.0)  # on dst's right
    turn = torch.tensor([[1, -0.012, 0], [0.012, 1, 0], [0, 0, 1]], dtype=torch.float64)
    centre = torch.tensor([[1, 0, 79.5], [0, 1, 79.5], [0, 0, 1]], dtype=torch.float64)
    beside = (centre @ turn @ torch.linalg.inv(centre)) @ truth
    parts = measure_in_footprint(measure_parts, src, dst, beside, 3)
    moved = homography.move(beside, parts.motion, *TILE)
    before, after = (homography.corner_errors(matrix, truth, *TILE).mean() for matrix in (beside, moved))
    assert after < 0.4 * before


def test_strips_and_other_pairs_are_told_as_they_are_alone(numpy_rng):
    made = [neighbours(numpy_rng, *at) for at in ((140.0, 0.0), (10.0, 5.0), (3.0, 130.0), (90.0, 0.0))]
    src, dst = (Level(torch.cat([pair[side].image for pair in made]), None) for side in (0, 1))
    together = measure_in_footprint(measure_parts, src, dst, torch.cat([truth for *_, truth in made]), 2)
    for i, pair in enumerate(made):
        alone = measure_in_footprint(measure_parts, *pair, 2)
        for field in fields(alone):
            assert torch.equal(getattr(together, field.name)[i], getattr(alone, field.name)[0])


@pytest.mark.parametrize(
    ("shift", "box"),
    [
        ((140, 0), Box(0, 0, 160, 20)),
        ((0, -140), Box(140, 0, 160, 160)),
        ((-120, 130), Box(0, 120, 30, 160)),
        ((100, 100), None),  # not narrow
        ((155, 0), None),  # no block is
        ((200, 0), None),
        ((np.nan, 0), None),
    ],
)
def test_narrow_overlaps_are_those_of_a_third_of_a_side(shift, box):
    matrix = torch.tensor([[[1.0, 0, -shift[0]], [0, 1, -shift[1]], [0, 0, 1]]], dtype=torch.float64)
    assert narrow_overlaps(matrix, TILE, TILE) == [box]


@pytest.mark.parametrize("overlap", ["20 %", "10 %", "7 %"])
def test_tiles_are_found_and_trusted(overlap):
    render = RenderOptions(pairs=2, seed=3, photographs=("astronaut", "camera"))
    for pair in tile_pairs(render, 160, 2.0, 0.3):
        if pair.case not in (overlap, ABSENT):
            continue
        images = (torch.from_numpy(image)[None, None] for image in (pair.src, pair.dst))
        result = homoalign.align(*images, config=homoalign.AlignConfig(model="translation"))
        if pair.case == ABSENT:
            assert result.status[0] is not Status.OK
        else:
            truth = torch.from_numpy(pair.dst_homo_src)[None]
            assert homography.corner_errors(result.dst_homo_src, truth, 160, 160).mean() < 0.2
            assert result.status[0] is Status.OK
