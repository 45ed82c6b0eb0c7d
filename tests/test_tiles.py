"""Tiles that share a strip, as a microscope's stage or a survey takes them, from about where they are said to lie."""

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, Status, align
from jobs.rendering.degrade import add_noise
from jobs.rendering.synthetic import load_photograph, to_gray

SIDE = 240


@pytest.fixture
def tiles(numpy_rng):
    """Cut two tiles of a photograph that share this many columns: (src, dst, dst_homo_src)."""

    def cut(shared, *, photograph="astronaut", sigma_8bit=2.0, below=7):
        image, left = to_gray(load_photograph(photograph)).astype(np.float32), SIDE - shared
        views = image[20 : 20 + SIDE, 10 : 10 + SIDE], image[20 + below :, 10 + left :][:SIDE, :SIDE]
        src, dst = (add_noise(view, sigma_8bit=sigma_8bit, rng=numpy_rng) for view in views)
        return src, dst, np.array([[1, 0, -left], [0, 1, -below], [0, 0, 1.0]])

    return cut


def off(truth, x, y):
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]]) @ truth


@pytest.mark.parametrize(("shared", "model", "most_px"), [(24, "translation", 0.3), (36, "homography", 2.0)])
@pytest.mark.parametrize("photograph", ["astronaut", "camera", "grass"])
@pytest.mark.parametrize("prior_px", [(5, -4), (-7, 6)])
def test_a_strip_is_enough(tiles, shared, model, most_px, photograph, prior_px):
    src, dst, truth = tiles(shared, photograph=photograph)
    config = AlignConfig(model=model, use_search=False, use_features=False)
    found = align(src, dst, init=off(truth, *prior_px), gt=truth, config=config)
    assert found.gt_corner_error_px.item() < most_px
    assert found.overlap.item() < 1.1 * shared / SIDE
    assert found.status == [Status.OK], found.status_detail


def test_a_strip_that_lies_wrong_is_doubted(tiles):
    src, dst, truth = tiles(36)
    config = AlignConfig(use_search=False, use_features=False)
    found = align(src, dst, init=off(truth, 40, 60), gt=truth, config=config)
    assert found.gt_corner_error_px.item() > 10
    assert found.status != [Status.OK]


def test_next_to_nothing_in_common_is_said(tiles):
    src, dst, truth = tiles(9)
    found = align(src, dst, init=truth, config=AlignConfig(model="translation", use_search=False))
    assert found.status == [Status.NO_OVERLAP]
    assert "min_overlap=0.05" in found.status_detail[0]


def test_tiles_of_a_batch_end_as_they_do_alone(tiles):
    pairs = [tiles(shared) for shared in (24, 40, 200)]
    config = AlignConfig(use_search=False, use_features=False)
    src, dst, truth = (np.stack(side) for side in zip(*pairs, strict=True))
    start = np.stack([off(matrix, 4, -3) for matrix in truth])
    together = align(*(torch.from_numpy(side)[:, None] for side in (src, dst)), init=start, config=config)
    for k in range(len(pairs)):
        alone = align(src[k], dst[k], init=start[k], config=config)
        assert torch.equal(together.dst_homo_src[k], alone.dst_homo_src[0])
