"""Stripes of a sensor are taken away before anything is solved, and nothing else is."""

import numpy as np
import pytest
import torch
from levels import batch_of, level_of
from scipy.ndimage import gaussian_filter1d, map_coordinates

from homoalign import AlignConfig, Status, align
from homoalign.levels.stripes import contrasts, move_along, spread, take_stripes_away
from jobs.bench.drawings import draw_chart, draw_screen, draw_slide
from jobs.bench.options import RenderOptions
from jobs.bench.pairs import draw_pair, draw_pairs
from jobs.bench.photographs import load_gray
from jobs.rendering.degrade import add_noise, add_stripes, to_uint8
from jobs.rendering.synthetic import PHOTOGRAPHS, similarity_homography, warp_points

STAY = AlignConfig(use_search=False, use_features=False)
LINES = np.arange(192)


def offsets(rng, sigma_8bit=8.0, count=192):
    return rng.normal(0, sigma_8bit / 255, count)


KINDS = {
    "rows": lambda image, rng: add_stripes(image, offset=offsets(rng)),
    "columns": lambda image, rng: add_stripes(image.T, gain=1 + 2 * offsets(rng)).T,
    "both": lambda image, rng: add_stripes(add_stripes(image, offset=offsets(rng)).T, offset=offsets(rng)).T,
    "lines": lambda image, _: add_stripes(image, gain=np.where(np.arange(len(image)) % 3 == 0, 0.7, 1.0)),
    "detectors": lambda image, rng: add_stripes(image, offset=offsets(rng, count=8)[LINES % 8]),
}


def seen(*images):
    """As 8 bits hold them."""
    return [to_uint8(image) for image in images]


def drawn_pairs(names=("astronaut", "camera", "chelsea", "coffee", "moon", "rocket"), count=6):
    return list(draw_pairs(RenderOptions(pairs=count, seed=3, photographs=names), size=192, offset_px=6.0))


def freed(image, mask=None):
    """Return what is left of one image (H, W), and whether it was found striped."""
    level = level_of(image, mask=mask)
    found, _, strength = take_stripes_away(level, level)
    return found.image[0, 0].numpy(), bool(strength.any())


@pytest.fixture
def as_recorded(align_without):
    return align_without("take_stripes_away")


@pytest.mark.parametrize("kind", KINDS)
def test_striped_pairs_are_aligned_more_precisely(kind, as_recorded, numpy_rng):
    src, dst, truth = batch_of(drawn_pairs(), lambda one: seen(*(KINDS[kind](i, numpy_rng) for i in one.noisy(1.0))))
    now, before = (run(src, dst, gt=truth, config=STAY).gt_corner_error_px for run in (align, as_recorded))
    assert (now / before).log().mean().exp() < 0.5
    assert now.median() < 0.2
    assert now.max() < 1.5


def test_what_a_sensor_adds_to_both_images_does_not_hold_them(as_recorded, numpy_rng):
    pattern = offsets(numpy_rng)
    drawn = drawn_pairs(names=("cell", "moon", "retina"))
    src, dst, truth = batch_of(drawn, lambda one: seen(*(add_stripes(i.T, offset=pattern).T for i in one.noisy(1.0))))
    assert as_recorded(src, dst, gt=truth).gt_corner_error_px.max() > 2
    found = align(src, dst, gt=truth)
    assert found.gt_corner_error_px.max() < 0.7
    assert set(found.status) == {Status.OK}


@pytest.mark.parametrize("name", ["astronaut", "brick", "camera", "clock_motion", "hubble_deep_field", "page", "text"])
@pytest.mark.parametrize("sigma_8bit", [0.0, 5.0])
def test_photographs_stay_as_they_are(name, sigma_8bit, numpy_rng):
    image = load_gray(name)[:320, :480]
    level = level_of(to_uint8(add_noise(image, sigma_8bit=sigma_8bit, rng=numpy_rng)) / 255)
    src, dst, strength = take_stripes_away(level, level)
    assert not strength.any()
    assert src is level
    assert dst is level


@pytest.mark.parametrize("draw", [draw_chart, draw_screen, draw_slide])
@pytest.mark.parametrize("sigma_8bit", [0.0, 2.0])
def test_lines_of_drawings_are_no_stripes(draw, sigma_8bit, numpy_rng):
    assert not freed(to_uint8(add_noise(draw(numpy_rng)[::2, ::2], sigma_8bit=sigma_8bit, rng=numpy_rng)) / 255)[1]


def test_bars_seen_through_optics_are_the_scene(numpy_rng):
    bars = np.repeat(numpy_rng.uniform(0.2, 0.8, 64), 4)
    image = add_noise(np.tile(gaussian_filter1d(bars, 1.0), (200, 1)), sigma_8bit=1.0, rng=numpy_rng)
    assert not freed(image)[1]


def test_an_image_of_stripes_alone_keeps_them(numpy_rng):
    bars = np.tile(numpy_rng.uniform(0.2, 0.8, 256), (200, 1))
    noisy = add_noise(bars, sigma_8bit=1.0, rng=numpy_rng)
    assert not freed(noisy)[1]
    assert freed(0.1 * noisy + load_gray("coffee")[:200, :256])[1]


def blinds(rng, size=280):
    """Slats before a window: each row is a line of the scene, a pixel wide."""
    return (0.5 + 0.12 * rng.normal(size=(size, 1)) + 0.15 * (load_gray("camera")[:size, :size] - 0.5)).clip(0, 1)


@pytest.mark.parametrize("turn_deg", [0.0, 6.0])
def test_lines_that_move_with_the_scene_stay(turn_deg, as_recorded, numpy_rng):
    scene = blinds(numpy_rng)
    truth = np.eye(3)
    truth[:2, 2] = -5, 7
    if turn_deg:
        truth = truth @ similarity_homography((192, 192), angle_deg=turn_deg)
    y, x = np.mgrid[:192, :192]
    back = np.linalg.inv(truth)
    seen_at = warp_points(back, np.stack([x.ravel(), y.ravel()], axis=-1).astype(np.float64)) + 40
    views = scene[40:232, 40:232], map_coordinates(scene, seen_at.T[::-1], order=1).reshape(192, 192)
    src, dst = (to_uint8(add_noise(view, sigma_8bit=1.0, rng=numpy_rng)) for view in views)
    assert freed(src / 255)[1]
    now, before = (run(src, dst, gt=truth) for run in (align, as_recorded))
    assert torch.equal(now.dst_homo_src, before.dst_homo_src)
    assert now.status == [Status.OK]


@pytest.mark.parametrize("number", [16, 22, 31])
def test_lines_of_even_distance_do_not_pass_for_the_scene(number):
    """They lie on each other under many motions, which leave next to nothing where texture is faint."""
    render = RenderOptions(pairs=38, seed=0, photographs=tuple(PHOTOGRAPHS))
    drawn = draw_pair(render, number, size=(256, 256), offset_px=10.0)
    views = [KINDS["lines"](view, None) for view in (drawn.views.src, drawn.views.dst)]
    src, dst = seen(*drawn.noisy(2.0, src=views[0], dst=views[1]))
    found = align(src, dst, gt=drawn.views.dst_homo_src, config=STAY)
    assert found.gt_corner_error_px < 0.5
    assert found.status == [Status.OK]


def test_what_an_alignment_leaves_is_held_against_what_masks_leave(rng):
    image, mask = torch.rand(2, 40, 50, generator=rng), torch.ones(40, 50)
    mask[:, :20] = 0
    hidden = torch.where(mask > 0, image, 9.0)
    for level, pixels in (
        (level_of(*image), image.flatten(1)),
        (level_of(*hidden, mask=mask), image[..., 20:].flatten(1)),
    ):
        torch.testing.assert_close(spread(level), pixels.double().std(-1), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("shift", "left", "strength", "is_scene"),
    [
        ((0.0, 4.0), 0.01, (0.1, 0.0), True),
        ((4.0, 0.0), 0.01, (0.0, 0.1), True),
        ((0.0, 0.5), 0.01, (0.1, 0.0), False),  # lines that hardly move may be the sensor's
        ((9.0, 0.5), 0.01, (0.1, 0.0), False),  # along themselves they may move
        ((0.0, 4.0), 0.08, (0.1, 0.0), False),  # the sensor's are left
        ((0.0, torch.nan), 0.01, (0.1, 0.0), False),
        ((0.0, 4.0), torch.nan, (0.1, 0.0), False),
    ],
)
def test_lines_are_the_scenes_where_motion_explains_them(shift, left, strength, is_scene):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, 2] = torch.tensor(shift)
    found = move_along(torch.tensor([strength]), torch.tensor([left]), matrix[None], (60, 90))
    assert found.tolist() == [is_scene]


@pytest.mark.parametrize(("gain", "offset"), [(0.0, 8.0), (0.05, 0.0)])
@pytest.mark.parametrize("is_turned", [False, True])
def test_what_is_left_is_the_scene(gain, offset, is_turned, numpy_rng):
    scene = load_gray("astronaut")[:256, :320]
    rows = numpy_rng.normal(size=256)
    striped = add_stripes(scene, gain=1 + gain * rows, offset=offset / 255 * rows)
    found, is_freed = freed(striped.T if is_turned else striped)
    off = (found.T if is_turned else found) - scene
    assert is_freed
    # What changes slowly from line to line may be light, and stays.
    before, after = (np.std(each - gaussian_filter1d(each, 8.0)) for each in ((striped - scene).mean(1), off.mean(1)))
    assert after < 0.33 * before


def test_parts_that_disagree_are_the_scene(numpy_rng):
    """Each half of every row has stripes of its own: no line is brighter from end to end."""
    scene = load_gray("coffee")[:256, :320].copy()
    scene[:, :160], scene[:, 160:] = (
        add_stripes(half, offset=offsets(numpy_rng, count=256)) for half in (scene[:, :160], scene[:, 160:])
    )
    assert not freed(scene)[1]


def test_a_mask_hides_stripes_and_what_is_masked_makes_none(numpy_rng):
    scene, mask = load_gray("coffee")[:256, :320], np.ones((256, 320), np.float32)
    mask[:, 120:] = 0
    garbage = np.where(mask > 0, scene, numpy_rng.random(256, np.float32)[:, None])
    assert freed(garbage)[1]
    assert not freed(garbage, mask)[1]
    striped = add_stripes(scene, offset=offsets(numpy_rng, count=256))
    mask[:, 120:], mask[::7, :60] = 1, 0
    found, is_freed = freed(np.where(mask > 0, striped, np.nan), mask)
    assert is_freed
    other, _ = freed(np.where(mask > 0, striped, 0.5), mask)
    np.testing.assert_array_equal(found[mask > 0], other[mask > 0])


def test_either_image_is_freed_on_its_own_and_as_it_is_alone(numpy_rng):
    photos = [load_gray(name)[:200, :200] for name in ("coffee", "moon", "rocket")]
    striped = [add_stripes(photo, offset=offsets(numpy_rng, count=200)) for photo in photos]
    src, dst = level_of(striped[0], photos[1], photos[2]), level_of(photos[0], striped[1], photos[2])
    found_src, found_dst, strength = take_stripes_away(src, dst)
    assert (strength > 0).tolist() == [[True, False], [True, False], [False, False]]
    torch.testing.assert_close(strength[:2, 0], torch.full((2,), 8 / 255, dtype=torch.float64), rtol=0.3, atol=0)
    assert torch.equal(found_src.image[1:], src.image[1:])
    assert torch.equal(found_dst.image[[0, 2]], dst.image[[0, 2]])
    for found, image in ((found_src.image[0, 0], striped[0]), (found_dst.image[1, 0], striped[1])):
        np.testing.assert_array_equal(found, freed(image)[0])


@pytest.mark.parametrize("size", [(31, 200), (200, 31), (32, 33), (3000, 34)])
def test_any_size_will_do(size, numpy_rng):
    image = add_stripes(numpy_rng.normal(0.5, 0.05, size).astype(np.float32), offset=offsets(numpy_rng, 20.0, size[0]))
    found, is_freed = freed(image)
    assert is_freed == (min(size) >= 32)
    assert np.isfinite(found).all()


def test_flat_images_have_none():
    assert not freed(np.full((64, 64), 0.5))[1]
    assert not freed(np.full((64, 64), 0.5), np.zeros((64, 64)))[1]


@pytest.mark.parametrize("width", [71, 72])  # a median of an even number of lines is the lower middle one
def test_the_compiled_pass_finds_what_torch_finds(width, by_torch, rng):
    image = torch.rand(3, 50, width, generator=rng)
    image[1] += torch.rand(50, 1, generator=rng)
    found, asked = contrasts(image), by_torch(lambda: contrasts(image))
    assert found.shape == (3, 2, 3)
    torch.testing.assert_close(found, asked, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[..., 0], asked[..., 0], rtol=0, atol=1e-6)
    assert found[1, 0, 0] > 0.8
    everything = contrasts(image, torch.ones_like(image))
    torch.testing.assert_close(everything, asked, rtol=1e-4, atol=1e-5)


def test_figures_are_those_of_the_images_as_they_were_recorded(as_recorded, numpy_rng):
    (drawn,) = drawn_pairs(count=1)
    src, dst, truth = batch_of([drawn], lambda one: seen(*(KINDS["rows"](i, numpy_rng) for i in one.noisy(1.0))))
    now, before = (run(src, dst, gt=truth, config=STAY) for run in (align, as_recorded))
    for name in ("photometric_l1", "zncc", "gain", "bias"):
        assert getattr(now, name).item() == pytest.approx(getattr(before, name).item(), abs=0.02)
    assert now.photometric_l1 > 5 / 255
