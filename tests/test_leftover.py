"""What compression leaves is noise; what another sharpness, motion or place leaves is not."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from levels import level_of

from homoalign import AlignConfig, Status, align
from homoalign.descent import full_size
from homoalign.differences import leftover
from homoalign.differences.leftover import loudness
from homoalign.homography import corner_errors
from homoalign.levels.noise import residual_noise
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment, build_problem
from jobs.rendering.degrade import add_blur, add_noise, add_vignette, adjust_exposure, compress_jpeg, to_uint8

NEAR = AlignConfig(use_search=False, use_features=False)
ON_INTENSITY = dataclasses.replace(NEAR, signal="intensity")
NAMES = ("astronaut", "camera", "chelsea", "coins", "text")


def views(make_pair, name, change, *, sigma_8bit, size=(160, 160)):
    src, dst, truth = make_pair(name, size=size, max_offset_px=4.0)
    rng = np.random.default_rng(0)
    changed = (change(add_noise(image, sigma_8bit=sigma_8bit, rng=rng), side) for side, image in enumerate((src, dst)))
    return *changed, truth


def compressed(quality):
    return lambda image, _: to_uint8(compress_jpeg(image, quality=quality))


def lit_and_compressed(image, side, quality=40):
    if side:
        image = add_vignette(adjust_exposure(image, gamma=0.7), strength=0.5)
    return to_uint8(compress_jpeg(image, quality=quality))


def uncompressed(image, _):
    return to_uint8(image)


def aligned(make_pair, name, change, *, sigma=0.02, off_px=0.0):
    """Two noisy views of a photograph as a problem at its solution, `off_px` beside it."""
    rng = np.random.default_rng(1)
    src, _, _ = make_pair(name, size=(200, 240))
    src, dst = (
        Level(torch.from_numpy(image + sigma * rng.standard_normal(image.shape).astype(np.float32))[None, None], None)
        for image in (src, change(src))
    )
    problem = build_problem(src, dst, level=0, max_points=10**6, fit_photometric=True)
    matrix = torch.eye(3, dtype=torch.float64)[None].clone()
    matrix[:, 0, 2] = off_px
    one = torch.ones(1, dtype=torch.float64)
    return problem, Alignment(matrix, one, 0 * one), src, dst


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "off_px", "is_noise"),
    [
        (lambda image: image, 0.0, True),
        (lambda image: add_blur(image, sigma_px=1.2), 0.0, False),
        (lambda image: image, 2.0, False),
        (lambda image: image[:, ::-1].copy(), 0.0, False),
        (np.sqrt, 0.0, False),
    ],
    ids=["alike", "blurred", "beside", "another", "lit"],
)
def test_what_is_left_is_noise_only_where_it_does_not_follow_from_the_image(make_pair, name, change, off_px, is_noise):
    problem, state, src, dst = aligned(make_pair, name, change, off_px=off_px)
    shown = residual_noise(src.noise, dst.noise, state.gain) / 3  # as an image whose finest scale a codec took
    found = loudness(problem, state, shown, (src, dst), 2.4).item()
    assert found == (pytest.approx(3.0, rel=0.1) if is_noise else 1.0)


@pytest.mark.parametrize("name", ["brick", "grass", "gravel"])
def test_fine_texture_that_lost_its_sharpness_is_told_by_its_details_alone(make_pair, name):
    problem, state, src, dst = aligned(make_pair, name, lambda image: add_blur(image, sigma_px=0.8), sigma=0.005)
    variance, covariance = torch.stack([src.image.flatten(), dst.image.flatten()]).cov()[0]
    gain = (covariance / variance)[None]  # as the solver would have it
    state = dataclasses.replace(state, gain=gain.double(), bias=(dst.image.mean() - gain * src.image.mean()).double())
    shown = residual_noise(src.noise, dst.noise, state.gain) / 10
    assert loudness(problem, state, shown, (src, dst), 2.4).item() == 1.0


def test_where_blocks_show_a_codecs_errors_may_follow_edges_but_not_under_rich_light(make_pair):
    heard = []
    for name in ("astronaut", "camera", "chelsea", "coffee", "coins", "motorcycle_left"):
        src, dst, truth = make_pair(name, size=(160, 200), max_offset_px=5.0)
        src, dst = (level_of(compress_jpeg(image, quality=8)) for image in (src, dst))
        problem = build_problem(src, dst, level=0, max_points=10**6, fit_photometric=True)
        one = torch.ones(1, dtype=torch.float64)
        state, shown = Alignment(torch.from_numpy(truth)[None], one, 0 * one), residual_noise(src.noise, dst.noise, one)
        heard.append([loudness(problem, state, shown, (src, dst), 2.4, rich).item() > 1 for rich in (None, one > 0)])
    in_plain_light, in_rich_light = np.sum(heard, axis=0)
    assert in_plain_light >= 4
    assert in_rich_light <= in_plain_light - 2


def test_what_is_left_and_no_more_than_is_shown_is_not_louder(make_pair):
    problem, state, src, dst = aligned(make_pair, "camera", lambda image: image)
    shown = residual_noise(src.noise, dst.noise, state.gain)
    assert loudness(problem, state, shown, (src, dst), 2.4).item() == 1.0


def test_noise_is_told_apart_as_torch_does_it_and_on_some_rows_as_on_all(make_pair, by_torch, monkeypatch):
    problem, state, _, _ = aligned(make_pair, "coins", lambda image: image)
    everyone, width = torch.arange(1), torch.full((1,), 0.05, dtype=torch.float64)

    def shares():
        sums = leftover._products(*leftover._some_rows(problem, everyone), state, width)
        return [share for features in ((0, 1), (0, 1, 4)) for share in leftover._shares(sums, features)]

    monkeypatch.setattr(leftover, "POINTS", 2**16)
    of_all = shares()
    torch.testing.assert_close(by_torch(shares), of_all, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(leftover, "POINTS", 10_000)
    torch.testing.assert_close(shares(), of_all, rtol=0.2, atol=0.015)
    torch.testing.assert_close(by_torch(shares), shares(), rtol=1e-3, atol=1e-3)


def test_what_follows_from_nothing_is_told_by_chance_alone(rng):
    features = torch.randn(1, 1000, 5, 100, generator=rng, dtype=torch.float64)
    features[:, :, 0] = 1
    residual = torch.randn(1, 1000, 1, 100, generator=rng, dtype=torch.float64)
    rows = torch.cat([features, residual], dim=2)
    told, _ = leftover._shares((rows / (1 + (residual / 2.385).square())) @ rows.mT, (0, 1, 2, 3))
    assert told.abs().item() < 0.003  # four in a hundred are 0.04


def test_heavy_compression_leaves_the_alignment_on_intensities(make_pair):
    ratios = []
    for name in NAMES:
        src, dst, truth = views(make_pair, name, compressed(30), sigma_8bit=5.0)
        by_itself, on_intensity = (
            align(src, dst, gt=truth, config=config).gt_corner_error_px.item() for config in (NEAR, ON_INTENSITY)
        )
        ratios.append(by_itself / on_intensity)
    assert np.median(ratios) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("change", "sigma_8bit"),
    [(compressed(30), 5.0), (compressed(90), 0.0), (lit_and_compressed, 5.0)],
    ids=["much", "little", "lit"],
)
def test_the_precision_of_compressed_pairs_is_that_of_their_noise(make_pair, change, sigma_8bit):
    """Taken for something else than noise, it would be predicted tens of times as large as it is."""
    in_std = []
    for name in NAMES:
        src, dst, truth = views(make_pair, name, change, sigma_8bit=sigma_8bit, size=(240, 240))
        result = align(src, dst, config=NEAR)
        assert result.status == [Status.OK]
        error = corner_errors(result.dst_homo_src, torch.from_numpy(truth)[None], 240, 240).square().mean().sqrt()
        in_std.append(error.item() / result.corner_std_px.item())
    assert 0.3 < np.median(in_std) < 2
    assert max(in_std) < 4


def test_only_where_what_is_left_told_the_noise_blocks_of_a_codec_widen_the_precision(make_pair, monkeypatch):
    clean, packed = ([*views(make_pair, "coins", change, sigma_8bit=5.0)] for change in (uncompressed, compressed(30)))

    def std(pair):
        return align(*pair[:2], config=NEAR).corner_std_px.item()

    wide = [std(clean), std(packed)]
    monkeypatch.setattr("homoalign.trust.widening.OF_CODEC", 1.0)
    assert std(clean) == wide[0]
    assert std(packed) == pytest.approx(wide[1] / 1.5**0.5)


@pytest.mark.parametrize("change", [compressed(30), lit_and_compressed], ids=["compressed", "lit"])
def test_gradients_are_freed_of_the_noise_that_is_left_not_of_what_the_images_show(make_pair, monkeypatch, change):
    levels, clean = [], full_size.clean_source
    monkeypatch.setattr(full_size, "clean_source", lambda *args: levels.append(args[1]) or clean(*args))
    src, dst, _ = views(make_pair, "astronaut", change, sigma_8bit=5.0, size=(256, 256))
    align(src, dst, config=ON_INTENSITY)
    shown, told = (level.noise.item() for level in levels)
    assert told > 3 * shown
    levels.clear()
    src, dst, _ = views(make_pair, "astronaut", uncompressed, sigma_8bit=5.0)
    align(src, dst, config=ON_INTENSITY)
    assert len(levels) == 1


def test_a_pair_is_heard_with_others_as_it_is_alone(make_pair):
    """Others are heard again where their light is rich, or where they are not explained in the end."""
    lit_a_little = [
        views(make_pair, name, functools.partial(lit_and_compressed, quality=quality), sigma_8bit=1.0)
        for name in NAMES
        for quality in (60, 85)
    ]
    blurred = views(make_pair, "camera", lambda image, side: to_uint8(add_blur(image, sigma_px=1 + side)), sigma_8bit=1)
    pairs = [*lit_a_little, views(make_pair, "coins", compressed(30), sigma_8bit=5.0), blurred]
    sides = [torch.from_numpy(np.stack(side))[:, None] for side in list(zip(*pairs, strict=True))[:2]]
    together = align(*sides, config=NEAR)
    for i, (src, dst, _) in enumerate(pairs):
        alone = align(src, dst, config=NEAR)
        assert torch.equal(alone.corner_std_px[0], together.corner_std_px[i])
        assert torch.equal(alone.dst_homo_src[0], together.dst_homo_src[i])


def test_faint_texture_under_compression_is_no_change_of_light(make_pair):
    """Blocks that a codec evens out look like a slow light, which would take up what little tells the motion."""
    fixed, ratios = dataclasses.replace(ON_INTENSITY, photometric="none"), []
    for _ in range(10):
        src, dst, truth = views(make_pair, "clock_motion", compressed(30), sigma_8bit=5.0, size=(256, 256))
        by_itself, in_one_light = (
            align(src, dst, init=truth, gt=truth, config=config).gt_corner_error_px.item() for config in (NEAR, fixed)
        )
        ratios.append(by_itself / in_one_light)
    assert np.median(ratios) < 1.5


def test_a_difference_in_sharpness_is_not_noise(make_pair, monkeypatch):
    monkeypatch.setattr("homoalign.cascade.attempt.solve_unlike_sharpness", lambda _, solved: solved)
    src, dst, _ = views(
        make_pair, "camera", lambda image, side: to_uint8(add_blur(image, sigma_px=0.1 + 2 * side)), sigma_8bit=1.0
    )
    by_itself, on_intensity = (align(src, dst, config=config).dst_homo_src for config in (NEAR, ON_INTENSITY))
    assert not np.array_equal(by_itself.numpy(), on_intensity.numpy())
