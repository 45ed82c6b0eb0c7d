"""Deep images of which the scene uses little: they align as those do that use it all."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from homoalign import Status, align
from homoalign.arguments import check_pairs
from homoalign.levels.depth import stretch_narrow, stretch_narrow_image
from jobs.cli import main
from jobs.reports.cards import shrink

# What 0 and 1 of the photograph become, and in what.
KINDS = {
    "12 of 16 bits": (0, 4095, np.uint16),
    "raw counts": (100, 220, np.uint16),
    "radiometric": (29_800, 30_400, np.uint16),
    "32 bits": (1_000_000_000, 1_000_004_000, np.uint32),
    "reflectance": (0.02, 0.05, np.float32),
    "far from zero": (1e6, 1e6 + 3e-3, np.float64),
}


@pytest.fixture
def pair(make_pair):
    """Src, dst in [0, 1] and the truth."""
    return make_pair()


def stored(image, low, high, dtype):
    values = low + image.astype(np.float64) * (high - low)
    return np.rint(values).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrow_range_aligns_as_a_full_one(pair, kind):
    src, dst, truth = pair
    found = align(*(stored(image, *KINDS[kind]) for image in (src, dst)), gt=truth)
    assert found.status == [Status.OK], found.status_detail
    assert found.gt_corner_error_px.item() < 0.1
    assert found.gain.item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dead", [0.0, 65_535.0])
def test_hot_and_dead_pixels_tell_no_range(pair, dead):
    src, dst, truth = pair
    deep = [stored(image, 29_800, 30_400, np.uint16) for image in (src, dst)]
    for k, image in enumerate(deep):
        image[10 + k :: 97, 7::89] = dead
    found = align(*deep, gt=truth)
    assert found.status == [Status.OK], found.status_detail
    assert found.gt_corner_error_px.item() < 0.2


@pytest.mark.parametrize("nodata", [-9999.0, math.nan, math.inf])
def test_nodata_tells_no_range(pair, nodata):
    src, dst, truth = pair
    heights = [stored(image, 400, 450, np.float32) for image in (src, dst)]
    heights[0][20:24, 30:34] = nodata
    found = align(*heights, gt=truth)
    assert found.status == [Status.OK], found.status_detail
    assert found.gt_corner_error_px.item() < 0.2


def test_two_sensors_each_with_its_range(pair):
    src, dst, truth = pair
    found = align((255 * src).astype(np.uint8), stored(dst, 29_800, 30_400, np.uint16), gt=truth)
    assert found.status == [Status.OK], found.status_detail
    assert found.gt_corner_error_px.item() < 0.1


def test_a_narrow_pair_does_not_change_its_neighbours(pair):
    src, dst, _ = pair
    wide, narrow = ([stored(image, *ends, np.uint16)[None] for image in (src, dst)] for ends in ((0, 65_535), (0, 900)))
    colour = [[torch.from_numpy(image).expand(3, -1, -1) for image in images] for images in (wide, narrow)]
    together = align(*(torch.stack(side) for side in zip(*colour, strict=True)))
    for k, alone in enumerate(colour):
        expected = align(*(side[None] for side in alone))
        assert torch.equal(together.dst_homo_src[k], expected.dst_homo_src[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.float64])
def test_what_uses_its_range_stays_as_it_is(dtype, rng):
    image = torch.rand(2, 1, 20, 30, generator=rng, dtype=torch.float64)
    image = image.to(dtype) if dtype.is_floating_point else (image * torch.iinfo(dtype).max).to(dtype)
    pairs = check_pairs(image, image, src_mask=None, dst_mask=None, init=None, gt=None)
    assert stretch_narrow(pairs).src is image


def test_what_is_beyond_colours_decides_nothing(rng):
    colours = 0.9 * torch.rand(1, 3, 20, 30, generator=rng)
    image = torch.cat([colours, torch.full_like(colours[:, :1], 255.0)], dim=1)
    assert stretch_narrow(check_pairs(image, image, src_mask=None, dst_mask=None, init=None, gt=None)).src is image


def test_one_range_for_both_keeps_what_differs_between_them():
    rows = torch.arange(40.0).expand(1, 1, 30, 40)
    pairs = check_pairs(
        (1000 + rows).to(torch.uint16),
        (1000 + 2 * rows).to(torch.uint16),
        src_mask=None,
        dst_mask=None,
        init=None,
        gt=None,
    )
    found = stretch_narrow(pairs)
    torch.testing.assert_close(found.dst - 0.25, 2 * (found.src - 0.25))


def test_flat_images_stay_flat():
    flat = torch.full((1, 1, 20, 20), 700, dtype=torch.uint16)
    assert torch.equal(stretch_narrow_image(flat), flat)
    nothing = torch.zeros(1, 20, 20)
    masked = check_pairs(flat, flat, src_mask=nothing, dst_mask=nothing, init=None, gt=None)
    assert stretch_narrow(masked).src is flat


def test_people_see_them_from_black_to_white(pair, tmp_path):
    deep = [stored(image, *KINDS["12 of 16 bits"]) // 4 for image in pair[:2]]
    seen, _ = shrink(deep[0])
    assert seen.min() < 0.1
    assert seen.max() > 0.9
    files = [str(tmp_path / name) for name in ("src.png", "dst.png", "overlay.png")]
    for file, image in zip(files, deep, strict=False):
        Image.fromarray(image).save(file)
    assert main(["align", *files[:2], "--overlay", files[2]], standalone_mode=False) in (0, None)
    assert np.ptp(np.asarray(Image.open(files[2]))) > 200
