"""Dead pixels, lost lines and other small holes of masks cost no point around them; wide holes and edges stay."""

import numpy as np
import pytest
import torch
from levels import batch_of, level_of

from homoalign import AlignConfig, Status, align
from homoalign.levels.holes import fill_small_holes
from jobs.bench.options import RenderOptions
from jobs.bench.pairs import draw_pairs
from jobs.bench.photographs import load_gray

STAY = AlignConfig(use_search=False, use_features=False)


def ramp(height=40, width=60):
    y, x = np.mgrid[:height, :width]
    return 0.2 + 0.008 * x + 0.004 * y


def of_rows(every, wide, size=(40, 60)):
    """Lose `wide` rows of `every`."""
    return np.broadcast_to((np.arange(size[0]) % every < every - wide)[:, None], size).astype(np.float32)


def scattered(share, rng, size=(40, 60)):
    return (rng.random(size) >= share).astype(np.float32)


@pytest.mark.parametrize("lost", ["rows", "columns", "pixels", "two rows"])
def test_small_holes_are_filled_with_what_is_around_them(lost):
    dots = np.ones((40, 60), np.float32)
    dots[2::5, 3::7] = 0
    masks = {
        "rows": np.roll(of_rows(4, 1), 1, axis=0),
        "columns": np.roll(of_rows(4, 1, (60, 40)), 1, axis=0).T,
        "pixels": dots,
        "two rows": np.roll(of_rows(5, 2), 1, axis=0),
    }
    mask = masks[lost]
    filled = fill_small_holes(level_of(np.where(mask > 0, ramp(), np.nan), mask=mask))
    off = (filled.image[0, 0].numpy() - ramp())[2:-2, 2:-2]
    assert bool((filled.mask == 1).all())
    # A pixel with neighbours on one side alone is as these are.
    assert np.abs(off).max() < (5e-3 if lost == "two rows" else 1e-6)


def test_wide_holes_and_edges_stay_as_they_are():
    y, x = np.mgrid[:80, :100]
    for mask in (x > 30, (y > 9) & (y < 70), (x % 30 > 9) & (y % 20 > 2), of_rows(8, 3, (80, 100))):
        level = level_of(ramp(80, 100), mask=mask)
        assert fill_small_holes(level) is level
    for mask in (np.hypot(x - 50, y - 40) < 33, np.hypot(x - 50, y - 40) > 20, x + y > 60):
        filled = fill_small_holes(level_of(ramp(80, 100), mask=mask)).mask.numpy()[0, 0]
        assert filled.sum() - mask.sum() <= 16  # notches of an edge that runs aslant


def test_images_without_a_mask_stay_as_they_are():
    level = level_of(ramp())
    assert fill_small_holes(level) is level


def test_what_a_hole_hides_says_nothing(numpy_rng):
    mask = scattered(0.3, numpy_rng)
    mask[:12, :20] = 0
    image = numpy_rng.random((40, 60), np.float32)
    other = np.where(mask > 0, image, 1 - image)
    unknown = np.where(mask > 0, image, np.nan)
    one, two, three = (fill_small_holes(level_of(each, mask=mask)) for each in (image, other, unknown))
    assert torch.equal(one.mask, two.mask)
    assert not bool(one.mask[0, 0, 2:10, 2:18].any())
    used = one.mask > 0
    assert torch.equal(one.image[used], two.image[used])
    assert torch.equal(one.image[used], three.image[used])


def test_alone_and_together_holes_are_filled_alike(numpy_rng):
    images = [load_gray(name)[:60, :80] for name in ("coffee", "camera")]
    mask = scattered(0.2, numpy_rng, (60, 80))
    together = fill_small_holes(level_of(*images, mask=mask))
    for i, image in enumerate(images):
        assert torch.equal(together.image[i], fill_small_holes(level_of(image, mask=mask)).image[0])


@pytest.mark.parametrize(("lost", "most_px"), [("a tenth", 0.02), ("a third", 0.05), ("every other row", 0.2)])
def test_pairs_with_holes_are_aligned_as_if_there_were_none(lost, most_px, numpy_rng):
    size = (192, 192)
    drawn = list(
        draw_pairs(RenderOptions(pairs=3, seed=3, photographs=("coffee", "camera", "coins")), size=192, offset_px=6)
    )

    def hole(image):
        known = (
            of_rows(2, 1, size)
            if lost == "every other row"
            else scattered({"a tenth": 0.1, "a third": 1 / 3}[lost], numpy_rng, size)
        )
        return np.where(known > 0, image, np.nan).astype(np.float32)

    src, dst, truth = batch_of(drawn, lambda one: [hole(image) for image in one.noisy(1.0)])
    found = align(src, dst, gt=truth, config=STAY)
    assert found.gt_corner_error_px.max() < most_px
    assert set(found.status) == {Status.OK}
    assert bool(found.corner_std_px.isfinite().all())
    assert found.overlap.min() > 0.8
