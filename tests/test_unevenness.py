"""The scale of a robust loss where noise is louder along edges than on flat ground."""

import dataclasses

import numpy as np
import pytest
import torch
from levels import batch_of, level_of

from homoalign import AlignConfig, Status, align
from homoalign.descent import full_size
from homoalign.differences.unevenness import with_scale_of_steep
from homoalign.optimisation.residual import Alignment, build_problem
from jobs.bench.options import RenderOptions
from jobs.bench.pairs import draw_pairs
from jobs.rendering.degrade import add_noise, compress_jpeg, occlude, to_uint8

NEAR = AlignConfig(use_search=False, use_features=False)
NAMES = ("astronaut", "camera", "cell", "chelsea", "coffee", "coins", "ihc", "moon", "rocket", "text")
FLAT_IN_PART = ("astronaut", "camera", "cell", "chelsea", "coffee", "coins", "rocket", "text")
YES, NO = torch.tensor([True]), torch.tensor([False])


def at_rest(make_pair, name, noise):
    """A photograph and itself in `noise` of it, at their solution: levels, problem and state."""
    image = make_pair(name, size=(160, 200))[0]
    sides = level_of(image), level_of(image + noise(image))
    problem = build_problem(*sides, level=0, max_points=10**6, fit_photometric=True)
    one = torch.ones(1, dtype=torch.float64)
    return sides, problem, Alignment(torch.eye(3, dtype=torch.float64)[None], one, 0 * one)


def even(image, sigma=0.02):
    return sigma * np.random.default_rng(0).standard_normal(image.shape)


def uneven(image):
    slope = np.hypot(*np.gradient(image))
    return even(image) * np.where(slope > np.quantile(slope, 0.7), 1.0, 0.2)


def of_codec(image):
    return compress_jpeg(image, quality=30) - image


@pytest.mark.parametrize("name", FLAT_IN_PART)
def test_the_scale_is_that_of_the_points_which_tell_the_motion(make_pair, name):
    sides, problem, state = at_rest(make_pair, name, uneven)
    found = with_scale_of_steep(problem, state, YES, YES, sides)
    assert found.scale_floor.item() == pytest.approx(0.02, rel=0.25)
    assert dataclasses.replace(found, scale_floor=problem.scale_floor) == problem


@pytest.mark.parametrize("name", NAMES)
def test_even_noise_leaves_the_problem_as_it_is(make_pair, name):
    sides, problem, state = at_rest(make_pair, name, even)
    assert with_scale_of_steep(problem, state, YES, YES, sides) is problem


@pytest.mark.parametrize("name", FLAT_IN_PART)
def test_a_codec_is_known_by_its_blocks_and_nothing_else_is_without_being_heard(make_pair, name):
    sides, problem, state = at_rest(make_pair, name, of_codec)
    assert with_scale_of_steep(problem, state, YES, NO, sides).scale_floor > 2 * problem.scale_floor
    assert with_scale_of_steep(problem, state, NO, YES, sides) is problem
    sides, problem, state = at_rest(make_pair, name, uneven)
    torch.testing.assert_close(
        with_scale_of_steep(problem, state, YES, NO, sides).scale_floor, problem.scale_floor, rtol=0, atol=0
    )


def test_few_steep_points_tell_no_scale():
    """A hot pixel or two, and how they differ, say nothing of edges."""
    rng = np.random.default_rng(0)
    image, noise = 0.4 + 0.01 * rng.standard_normal((160, 200)), 0.002 * rng.standard_normal((160, 200))
    for row, column in ((40, 50), (110, 120)):
        image[row, column] = 1.0
        noise[row - 1 : row + 2, column - 1 : column + 2] *= 100
    sides = level_of(image), level_of(image + noise)
    problem = build_problem(*sides, level=0, max_points=10**6, fit_photometric=True)
    one = torch.ones(1, dtype=torch.float64)
    state = Alignment(torch.eye(3, dtype=torch.float64)[None], one, 0 * one)
    assert with_scale_of_steep(problem, state, YES, YES, sides) is problem


def compressed_pairs(quality, *, names=NAMES, size=192, change=lambda image, _: image):
    """Photographs without noise, as a camera's JPEGs are: the codec's losses are all there is."""
    drawn = draw_pairs(RenderOptions(pairs=len(names), seed=5, photographs=names), size=size, offset_px=7.0)

    def look(one):
        rng = one.rng(2)
        changed = one.views.src, change(one.views.dst, rng)
        return [
            to_uint8(compress_jpeg(add_noise(image, sigma_8bit=0.5, rng=rng), quality=quality)) for image in changed
        ]

    return batch_of(list(drawn), look)


def errors(src, dst, truth, config=NEAR):
    result = align(src, dst, gt=truth, config=config)
    return result, result.gt_corner_error_px.numpy()


@pytest.mark.parametrize("quality", [75, 90])
def test_compressed_pairs_are_told_by_their_edges(monkeypatch, quality):
    pairs = compressed_pairs(quality, names=2 * NAMES)
    _, by_edges = errors(*pairs)
    assert (by_edges < 0.15).all()
    monkeypatch.setattr(full_size, "with_scale_of_steep", lambda problem, *_: problem)
    _, by_flat_ground = errors(*pairs)
    assert np.log(by_edges / by_flat_ground).mean() < np.log(0.9)


@pytest.mark.parametrize("quality", [15, 30])
def test_structure_which_the_grid_of_blocks_holds_in_place_is_not_asked(quality):
    """Local normalisation raises faint blocks to the rank of edges, and both images have them in the same place."""
    pairs = compressed_pairs(quality, names=("astronaut", "brick", "chelsea", "coffee", "rocket", "text"))
    _, found = errors(*pairs)
    _, on_intensities = errors(*pairs, dataclasses.replace(NEAR, signal="intensity"))
    assert np.median(found / on_intensities) == pytest.approx(1.0, abs=0.01)
    assert (found < 1.5 * on_intensities + 0.05).all()


def test_what_lies_in_the_way_of_a_compressed_pair_is_still_left_out(make_pair):
    other = make_pair("grass", size=(192, 192))[0]
    covered = compressed_pairs(40, change=lambda image, rng: occlude(image, other=other, share=0.2, rng=rng)[0])
    result, found = errors(*covered, AlignConfig())
    assert (found < 1).mean() >= 0.9
    assert all(error < 5 for error, status in zip(found, result.status, strict=True) if status == Status.OK)


def test_a_compressed_pair_is_solved_alone_as_beside_others():
    src, dst, _ = compressed_pairs(30, names=("astronaut", "moon", "coins"), size=128)
    together = align(src, dst, config=NEAR)
    for i in range(len(src)):
        assert torch.equal(align(src[i : i + 1], dst[i : i + 1], config=NEAR).dst_homo_src[0], together.dst_homo_src[i])


def test_precision_of_large_compressed_images_is_that_of_all_their_pixels():
    """They are solved on smoothed images, whose floor of precision is interpolation's, not that of the loss."""
    drawn = draw_pairs(
        RenderOptions(pairs=3, seed=2, photographs=("astronaut", "coffee", "chelsea")), size=400, offset_px=9
    )
    src, dst, _ = batch_of(
        list(drawn), lambda one: [to_uint8(compress_jpeg(v, quality=30)) for v in (one.views.src, one.views.dst)]
    )
    some, every = (
        align(src, dst, config=dataclasses.replace(NEAR, final_points=points)).corner_std_px
        for points in (2**15, 2**20)
    )
    assert (some < 2 * every).all()
    assert (some > 0.5 * every).all()
