"""Noise that grows with brightness: told from the images, and bent away before anything is solved."""

import numpy as np
import pytest
import torch
from levels import batch_of, level_of
from scipy.ndimage import convolve

from homoalign import AlignConfig, align
from homoalign.levels.pyramid import Level
from homoalign.levels.stabilise import stabilise
from jobs.bench.options import RenderOptions
from jobs.bench.pairs import draw_pairs
from jobs.bench.photographs import load_gray
from jobs.rendering.degrade import add_noise, add_photon_noise, add_speckle, compress_jpeg, to_uint8

STAY = AlignConfig(use_search=False, use_features=False)
GROWING = {"photons": (add_photon_noise, 40.0), "speckle": (add_speckle, 60.0)}


def ramp(height=200, width=300, low=0.05, high=0.9):
    return np.tile(np.linspace(low, high, width, dtype=np.float32), (height, 1))


def noisy_twice(image, kind, rng):
    add, sigma_8bit = GROWING[kind]
    return [level_of(to_uint8(add(image, sigma_8bit=sigma_8bit, rng=rng)) / 255) for _ in range(2)]


def pairs_of(kind, *, names=("astronaut", "coffee", "coins"), count=6, size=192):
    render = RenderOptions(pairs=count, seed=3, photographs=names)
    _, sigma_8bit = GROWING.get(kind, (None, 5.0))
    drawn = list(draw_pairs(render, size=size, offset_px=6.0))
    return batch_of(drawn, lambda one: map(to_uint8, one.noisy(sigma_8bit, kind=kind)))


@pytest.fixture
def as_recorded(align_without):
    return align_without("stabilise")


@pytest.mark.parametrize("kind", GROWING)
def test_noise_is_the_same_at_all_intensities_afterwards(kind, numpy_rng):
    before = noisy_twice(ramp(), kind, numpy_rng)
    *after, is_bent = stabilise(*before)
    assert is_bent.all()
    for old, new in zip(before, after, strict=True):
        sides = [(level.image[0, 0, :, 30:60].std(0).mean(), level.image[0, 0, :, 200:230].std(0).mean())
                 for level in (old, new)]  # fmt: skip
        (dark, bright), (dark_now, bright_now) = sides
        assert bright > 1.7 * dark
        assert 0.75 < bright_now / dark_now < 1.33
        assert new.image.min() >= 0
        assert new.image.max() <= 1


def test_a_darker_exposure_of_the_same_sensor_counts_as_alike(numpy_rng):
    of_src, _ = noisy_twice(ramp(), "photons", numpy_rng)
    of_dst, _ = noisy_twice(0.5 * ramp(), "photons", numpy_rng)
    assert stabilise(of_src, of_dst)[2].all()


@pytest.mark.parametrize("name", ["astronaut", "camera", "grass", "hubble_deep_field", "page", "rocket"])
@pytest.mark.parametrize("sigma_8bit", [0.0, 5.0, 20.0])
def test_photographs_and_even_noise_stay_as_they_are(name, sigma_8bit, numpy_rng):
    photo = load_gray(name)[:320, :480]
    for change in (lambda image: image, lambda image: compress_jpeg(image.clip(0, 1), quality=50)):
        src, dst = (
            level_of(to_uint8(change(add_noise(photo, sigma_8bit=sigma_8bit, rng=numpy_rng))) / 255) for _ in range(2)
        )
        found_src, found_dst, is_bent = stabilise(src, dst)
        assert not is_bent.any()
        assert found_src is src
        assert found_dst is dst


def test_images_with_unlike_noise_stay_as_they_are(numpy_rng):
    of_photons, _ = noisy_twice(ramp(), "photons", numpy_rng)
    even = level_of(to_uint8(add_noise(ramp(), sigma_8bit=30, rng=numpy_rng)) / 255)
    assert not stabilise(of_photons, even)[2].any()


def test_of_a_quiet_image_and_a_noisy_one_the_noisy_one_tells(numpy_rng):
    of_photons, _ = noisy_twice(ramp(), "photons", numpy_rng)
    quiet = level_of(to_uint8(add_noise(ramp(), sigma_8bit=2, rng=numpy_rng)) / 255)
    assert stabilise(quiet, of_photons)[2].all()


def test_dst_may_be_the_noisier_one_at_all_intensities(numpy_rng):
    of_src, _ = noisy_twice(ramp(), "photons", numpy_rng)
    of_dst = level_of(add_photon_noise(ramp(), sigma_8bit=60, rng=numpy_rng).clip(0, 1))  # fewer photons, amplified
    assert stabilise(of_src, of_dst)[2].all()


def test_what_a_mask_leaves_out_says_nothing(numpy_rng):
    levels, mask = noisy_twice(ramp(400), "photons", numpy_rng), torch.ones(1, 1, 400, 300)
    mask[..., :200, :] = 0
    for level in levels:
        level.image[..., :200, :] = torch.rand(200, 300)
    assert not stabilise(*levels)[2].any()
    assert stabilise(*(Level(level.image, mask) for level in levels))[2].all()


def test_a_texture_that_is_stronger_where_it_is_bright_is_no_noise(numpy_rng):
    texture = convolve(numpy_rng.normal(0, 1, (200, 300)), np.outer([1, 2, 1], [1, 2, 1]) / 16)
    levels = [level_of((ramp() * (1 + 0.8 * texture)).clip(0, 1)) for _ in range(2)]
    assert not stabilise(*levels)[2].any()


def test_noise_that_no_sensor_has_stays_as_it_is(numpy_rng):
    """Strong in between, and weak where it is dark or bright."""
    strength = np.where(np.abs(ramp() - 0.5) < 0.15, 0.12, 0.02)
    levels = [level_of((ramp() + strength * numpy_rng.normal(0, 1, ramp().shape)).clip(0, 1)) for _ in range(2)]
    assert not stabilise(*levels)[2].any()


def test_even_noise_that_is_cut_off_at_black_does_not_grow(numpy_rng):
    dark = ramp(low=-0.15, high=0.5)
    levels = [level_of(to_uint8(add_noise(dark, sigma_8bit=30, rng=numpy_rng)) / 255) for _ in range(2)]
    assert not stabilise(*levels)[2].any()


@pytest.mark.parametrize("shape", [(4, 4), (5, 300), (16, 16), (300, 17)])
def test_small_and_thin_images_are_left_alone(shape, numpy_rng):
    noise = numpy_rng.random(shape)
    src, dst = level_of(noise), level_of(noise)
    src, dst = (Level(level.image, None, torch.ones(1, dtype=torch.float64)) for level in (src, dst))
    assert not stabilise(src, dst)[2].any()


@pytest.mark.parametrize("kind", GROWING)
def test_pairs_are_aligned_more_precisely(kind, as_recorded):
    src, dst, truth = pairs_of(kind)
    now, before = (run(src, dst, gt=truth, config=STAY).gt_corner_error_px for run in (align, as_recorded))
    assert (now / before).log().mean().exp() < 0.85


def test_figures_are_those_of_the_images_as_they_were_recorded(as_recorded):
    src, dst, truth = pairs_of("speckle", count=3)
    bright = (0.5 * src.float()).round().to(torch.uint8)
    now, before = (run(bright, dst, gt=truth, config=STAY) for run in (align, as_recorded))
    torch.testing.assert_close(now.gain, torch.full_like(now.gain, 2.0), rtol=0.04, atol=0)
    torch.testing.assert_close(now.photometric_l1, before.photometric_l1, rtol=0.03, atol=0)
    torch.testing.assert_close(now.zncc, before.zncc, rtol=0.03, atol=0)
    same = align(src, dst, config=AlignConfig(photometric="none", use_search=False, use_features=False))
    assert (same.gain == 1).all()
    assert (same.bias == 0).all()


def test_answers_do_not_depend_on_what_else_is_in_the_batch():
    noisy, plain = pairs_of("photons", count=1), pairs_of("white", count=1)
    both = align(*(torch.cat(sides) for sides in zip(noisy[:2], plain[:2], strict=True)), config=STAY)
    for i, (src, dst, _) in enumerate((noisy, plain)):
        alone = align(src, dst, config=STAY)
        assert torch.equal(alone.dst_homo_src[0], both.dst_homo_src[i])
        assert torch.equal(alone.gain[0], both.gain[i])
        assert torch.equal(alone.confidence[0], both.confidence[i])
