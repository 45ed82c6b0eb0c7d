"""Drawings, pages and screens: of what is flat nothing follows, not even how loud noise is."""

import numpy as np
import pytest
import torch
from levels import batch_of, level_of

from homoalign import AlignConfig, Status, align
from homoalign.cascade.rivals import rival_correlation
from homoalign.levels.patterns import local_patterns
from homoalign.optimisation import template
from homoalign.optimisation.template import build_template
from jobs.bench.drawings import DRAWINGS, KINDS, drawn_scene
from jobs.bench.options import RenderOptions
from jobs.bench.pairs import draw_pair
from jobs.rendering.degrade import compress_jpeg, to_uint8

NEAR = AlignConfig(use_search=False, use_features=False)
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coins", "text")


@pytest.fixture(scope="module")
def drawn():
    render = RenderOptions(pairs=len(DRAWINGS), seed=3, photographs=DRAWINGS)
    return [draw_pair(render, i, size=(300, 400), offset_px=12.0, scene=drawn_scene) for i in range(2 * len(KINDS))]


def solved(drawn, quality):
    def look(one):
        sides = (one.views.src, one.views.dst)
        return [to_uint8(compress_jpeg(side, quality=quality) if quality else side) for side in sides]

    src, dst, truth = batch_of(drawn, look)
    return align(src, dst, gt=truth, config=NEAR)


@pytest.mark.parametrize("quality", [None, 75, 30])
def test_drawings_are_aligned_and_their_precision_is_told(drawn, quality):
    result = solved(drawn, quality)
    error = result.gt_corner_error_px
    assert result.status == [Status.OK] * len(drawn)
    assert (error < 0.8).all()
    assert error.median() < 0.1
    assert (error < 1.96 * result.corner_std_px).double().mean() >= 0.8


def test_with_what_is_flat_edges_would_be_outliers(drawn, monkeypatch):
    kept = solved(drawn, 30).gt_corner_error_px
    monkeypatch.setattr(template, "MOST_FLAT", 1.0)
    with_flat = solved(drawn, 30)
    assert with_flat.gt_corner_error_px.median() > 3 * kept.median()
    assert (with_flat.gt_corner_error_px > 1.96 * with_flat.corner_std_px).double().mean() > 0.5


def usable(image, mask=None, max_points=10**6):
    return build_template(level_of(image, mask=mask), max_points).usable


@pytest.mark.parametrize("max_points", [10**6, 400])
def test_flat_points_are_left_out_where_they_are_many(by_torch, max_points):
    image = np.zeros((60, 80))
    image[20:40, 30:70] = np.random.default_rng(0).random((20, 40))
    whole = usable(np.random.default_rng(0).random((60, 80)), max_points=max_points).sum()
    found = usable(image, max_points=max_points)
    assert 0.1 < found.double().mean() < 0.35
    assert torch.equal(by_torch(lambda: usable(image, max_points=max_points)), found)
    image[:, :30] = np.random.default_rng(1).random((60, 30))  # now most of it is not
    image[:10] = image[45:55] = np.random.default_rng(2).random((10, 80))
    image[55:] = image[:5]
    assert usable(image, max_points=max_points).sum() > 0.85 * whole


def test_what_is_masked_counts_neither_way(by_torch):
    image = np.zeros((60, 80))
    image[:, 40:] = np.random.default_rng(0).random((60, 40))
    mask = np.zeros((60, 80), bool)
    mask[:, 40:] = True
    found = usable(image, mask)
    assert found.sum() > 0.99 * 36 * 58
    assert not found.view(60, 80)[:, :40].any()
    assert torch.equal(by_torch(lambda: usable(image, mask)), found)
    assert not usable(image, np.zeros_like(mask)).any()
    assert torch.equal(by_torch(lambda: usable(image, np.zeros_like(mask))), usable(image, np.zeros_like(mask)))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_of_a_noisy_photograph_every_point_counts(make_pair, name):
    image = make_pair(name, size=(120, 160))[0]
    noisy = image + 0.004 * np.random.default_rng(0).standard_normal(image.shape)
    assert usable(noisy).sum() == 118 * 158


def test_a_constant_image_keeps_its_points(by_torch):
    for image in (np.zeros((40, 40)), np.full((40, 40), 0.5)):
        found = usable(image)
        assert torch.equal(by_torch(lambda image=image: usable(image)), found)


def test_a_drawing_is_solved_alone_as_beside_photographs(drawn, make_pair):
    views = drawn[0].views
    photograph = make_pair("camera", size=(300, 400))
    src, dst = (
        torch.from_numpy(np.stack(side))[:, None] for side in ((views.src, photograph[0]), (views.dst, photograph[1]))
    )
    together = align(src, dst, config=NEAR)
    for i in range(2):
        alone = align(src[i : i + 1], dst[i : i + 1], config=NEAR)
        for field in ("dst_homo_src", "corner_std_px", "confidence", "inlier_ratio"):
            assert torch.equal(getattr(alone, field)[0], getattr(together, field)[i])


@pytest.mark.parametrize("seed", range(3))
def test_of_texture_in_one_direction_nobody_knows_how_far_along(seed):
    """A fence or a barcode: noise along the bars determines nothing."""
    rng = np.random.default_rng(seed)
    bars = 20 + 0.8 * np.repeat(200 * rng.integers(0, 2, 60), 4)[None].repeat(180, 0)
    src, dst = (to_uint8((bars + rng.normal(0, 3, bars.shape)) / 255) for _ in range(2))
    for sides in ((src, dst), (src.T, dst.T), (src, src)):
        result = align(*(np.ascontiguousarray(side) for side in sides), config=NEAR)
        assert result.status != [Status.OK]
        assert result.confidence.item() < 0.6


def test_a_ridge_is_a_rival_on_any_device_and_a_smooth_lobe_is_none(by_torch, make_pair):
    bars = level_of(np.repeat(np.random.default_rng(0).random(30), 4)[None].repeat(90, 0))
    smooth = level_of(make_pair("moon", size=(90, 120))[0])
    for level, least, most in ((bars, 0.95, 1.05), (smooth, 0.0, 0.8)):
        patterns = local_patterns(level, level, torch.eye(3, dtype=torch.float64)[None])
        found = rival_correlation(patterns)
        assert least <= found.item() <= most
        torch.testing.assert_close(
            by_torch(lambda patterns=patterns: rival_correlation(patterns)), found, rtol=1e-3, atol=1e-3
        )


def test_drawings_are_the_same_every_time_and_not_alike():
    found = [drawn_scene(name).coefficients for name in DRAWINGS]
    drawn_scene.cache_clear()
    for name, before in zip(DRAWINGS, found, strict=True):
        assert np.array_equal(drawn_scene(name).coefficients, before)
    assert len({one.tobytes() for one in found}) == len(DRAWINGS)
