"""Images of few gray levels: smoothed before anything is solved, and nothing else is."""

from functools import partial

import numpy as np
import pytest
import torch
from levels import batch_of, level_of

from homoalign import AlignConfig, align
from homoalign.levels.quantised import smooth_quantised
from jobs.bench.options import RenderOptions
from jobs.bench.pairs import draw_pairs
from jobs.bench.photographs import load_gray
from jobs.rendering.degrade import add_noise, compress_jpeg, dither, posterise, to_uint8

STAY = AlignConfig(use_search=False, use_features=False)


def thresholded(image):
    return posterise(image + 0.05, levels=2)


def faded(image):
    """No more than eight steps of 8 bits."""
    return to_uint8((100 + 8 * image) / 255).astype(np.float32) / 255


KINDS = {"dithered": dither, "thresholded": thresholded, "posterised": partial(posterise, levels=8), "faded": faded}


SMOOTH_TOO = ("astronaut", "camera", "cell", "chelsea", "coffee", "coins", "moon", "rocket")


def pairs_of(kind, *, names=("astronaut", "coffee", "coins"), count=6, size=192):
    render = RenderOptions(pairs=count, seed=3, photographs=names)
    drawn = list(draw_pairs(render, size=size, offset_px=6.0))
    return batch_of(drawn, lambda one: [kind(image) for image in one.noisy(2.0)])


@pytest.fixture
def as_recorded(align_without):
    return align_without("smooth_quantised")


@pytest.mark.parametrize(
    ("kind", "most"), [("dithered", 0.2), ("thresholded", 0.7), ("posterised", 1.2), ("faded", 1.2)]
)
def test_pairs_are_aligned_more_precisely(kind, most, as_recorded):
    """Plateaus that are exactly flat are left out in any case (`template.FLAT`); dots and jagged edges are not."""
    src, dst, truth = pairs_of(KINDS[kind], names=SMOOTH_TOO, count=16)
    now, before = (run(src, dst, gt=truth, config=STAY).gt_corner_error_px for run in (align, as_recorded))
    assert (now / before).log().mean().exp() < most
    assert now.median() < 0.3


@pytest.mark.parametrize(("num_levels", "width"), [(2, 8), (4, 8), (5, 4), (16, 4), (17, 0)])
def test_few_levels_are_smoothed_and_very_few_twice(num_levels, width):
    up = np.arange(num_levels) / (num_levels - 1)
    stairs = np.repeat([*up, *up[-2::-1]], 20)
    level = level_of(np.tile(stairs, (100, 1)))
    found, _, is_smoothed = smooth_quantised(level, level)
    changed = (found.image - level.image).abs()[0, 0, 50] > 1e-6
    assert is_smoothed.tolist() == [width > 0]
    assert int(changed.sum()) == width * 2 * (num_levels - 1)  # each pass reaches two pixels either way


def test_one_image_of_few_levels_is_enough_and_both_are_smoothed_alike():
    photo = load_gray("coffee")[:200, :300]
    few, many = level_of(thresholded(photo)), level_of(photo)
    twice, _, _ = smooth_quantised(few, few)
    for src, dst in ((many, few), (few, many)):
        found_src, found_dst, is_smoothed = smooth_quantised(src, dst)
        assert is_smoothed.all()
        assert not torch.equal((found_src if src is many else found_dst).image, many.image)
        assert torch.equal((found_src if src is few else found_dst).image, twice.image)


def test_some_specks_are_no_levels(numpy_rng):
    image = thresholded(load_gray("coffee")[:200, :300])
    specks = numpy_rng.random(image.shape) < 0.0002
    image[specks] += numpy_rng.uniform(-0.2, 0.2, np.count_nonzero(specks))
    assert len(np.unique(image)) > 8
    assert smooth_quantised(*[level_of(image)] * 2)[2].all()


@pytest.mark.parametrize("name", ["astronaut", "camera", "clock_motion", "hubble_deep_field", "page", "rocket", "text"])
@pytest.mark.parametrize("sigma_8bit", [0.0, 5.0])
def test_photographs_stay_as_they_are(name, sigma_8bit, numpy_rng):
    photo = load_gray(name)[:320, :480]
    for change in (lambda image: image, lambda image: compress_jpeg(image.clip(0, 1), quality=30)):
        src, dst = (
            level_of(to_uint8(change(add_noise(photo, sigma_8bit=sigma_8bit, rng=numpy_rng))) / 255) for _ in range(2)
        )
        found_src, found_dst, is_smoothed = smooth_quantised(src, dst)
        assert not is_smoothed.any()
        assert found_src is src
        assert found_dst is dst


def test_a_few_levels_under_more_noise_than_a_step_stay_as_they_are(numpy_rng):
    faint = load_gray("coffee")[:200, :300] * 4 + 100 + numpy_rng.normal(0, 1.5, (200, 300))
    levels = [level_of(faint.round() / 255) for _ in range(2)]
    assert len(levels[0].image.unique()) < 20
    assert not smooth_quantised(*levels)[2].any()


def test_stars_on_one_black_are_of_many_levels(numpy_rng):
    sky = np.zeros((200, 300))
    y, x = np.mgrid[:200, :300]
    for row, column, bright in numpy_rng.random((12, 3)):
        sky += (0.2 + bright) * np.exp(-((y - 200 * row) ** 2 + (x - 300 * column) ** 2) / 4)
    flicker = numpy_rng.random(sky.shape) < 0.4
    level = level_of(to_uint8((sky + flicker / 255).clip(0, 1)) / 255)
    assert (level.image < 0.005).float().mean() > 0.9
    assert not smooth_quantised(level, level)[2].any()


def test_what_shows_in_none_of_the_rows_that_are_asked_stays_as_it_is(numpy_rng):
    image = np.zeros((640, 100))
    image[10::20] = numpy_rng.random((32, 100))
    level = level_of(image)
    assert not smooth_quantised(level, level)[2].any()


def test_a_mask_is_not_mixed_in_and_says_nothing_of_the_levels(numpy_rng):
    image = thresholded(load_gray("coffee")[:200, :300])
    mask = torch.ones(200, 300)
    mask[:60] = 0
    image[:60] = numpy_rng.random((60, 300))
    found, _, is_smoothed = smooth_quantised(*[level_of(image, mask=mask)] * 2)
    assert is_smoothed.all()
    assert not smooth_quantised(*[level_of(image)] * 2)[2].any()
    image[:60] = 1 - image[:60]
    again, _, _ = smooth_quantised(*[level_of(image, mask=mask)] * 2)
    torch.testing.assert_close(found.image[..., 60:, :], again.image[..., 60:, :], rtol=0, atol=1e-6)
    white = smooth_quantised(*[level_of(np.ones((200, 300)), mask=mask)] * 2)[0].image[..., 60:, :]
    torch.testing.assert_close(white, torch.ones_like(white))


def test_figures_are_those_of_the_images_as_they_were_recorded(as_recorded):
    src, dst, truth = pairs_of(KINDS["posterised"], count=3)
    now, before = (run(0.5 * src, dst, gt=truth, config=STAY) for run in (align, as_recorded))
    torch.testing.assert_close(now.gain, torch.full_like(now.gain, 2.0), rtol=0.04, atol=0)
    torch.testing.assert_close(now.photometric_l1, before.photometric_l1, rtol=0.1, atol=0)
    torch.testing.assert_close(now.zncc, before.zncc, rtol=0.03, atol=0)


def test_answers_do_not_depend_on_what_else_is_in_the_batch():
    few, plain = pairs_of(dither, count=1), pairs_of(lambda image: image, count=1)
    both = align(*(torch.cat(sides) for sides in zip(few[:2], plain[:2], strict=True)), config=STAY)
    for i, (src, dst, _) in enumerate((few, plain)):
        alone = align(src, dst, config=STAY)
        assert torch.equal(alone.dst_homo_src[0], both.dst_homo_src[i])
        assert torch.equal(alone.confidence[0], both.confidence[i])


@pytest.mark.parametrize("cell_px", [1, 2, 3, 4])
def test_a_pattern_that_smoothing_would_wipe_out_has_its_rivals_still(cell_px):
    board = ((np.indices((256, 256)) // cell_px).sum(0) % 2).astype(np.float32)
    assert smooth_quantised(*[level_of(board)] * 2)[2].tolist() == [cell_px > 2]
    src, dst = (torch.from_numpy(cut)[None, None] for cut in (board[:-cell_px], board[cell_px:]))
    assert align(src, dst, config=STAY).status[0] != "ok"
