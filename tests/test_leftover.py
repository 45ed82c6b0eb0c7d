"""What compression leaves is noise; what another sharpness leaves is not."""

import numpy as np
import pytest

from homoalign import AlignConfig, align
from jobs.degrade import add_blur, add_noise, compress_jpeg, to_uint8

NEAR = AlignConfig(use_search=False, use_features=False)


def views(make_pair, name, change, *, sigma_8bit):
    src, dst, truth = make_pair(name, size=(160, 160), max_offset_px=4.0)
    rng = np.random.default_rng(0)
    changed = (change(add_noise(image, sigma_8bit=sigma_8bit, rng=rng), side) for side, image in enumerate((src, dst)))
    return *changed, truth


def test_heavy_compression_leaves_the_alignment_on_intensities(make_pair):
    ratios = []
    for name in ("astronaut", "camera", "chelsea", "coins", "text"):
        src, dst, truth = views(
            make_pair, name, lambda image, _: to_uint8(compress_jpeg(image, quality=30)), sigma_8bit=5.0
        )
        by_itself, on_intensity = (
            align(src, dst, gt=truth, config=config).gt_corner_error_px.item()
            for config in (NEAR, AlignConfig(use_search=False, use_features=False, signal="intensity"))
        )
        ratios.append(by_itself / on_intensity)
    assert np.median(ratios) == pytest.approx(1.0, abs=0.05)


def test_a_difference_in_sharpness_is_not_noise(make_pair):
    src, dst, truth = views(
        make_pair, "camera", lambda image, side: to_uint8(add_blur(image, sigma_px=0.1 + 2 * side)), sigma_8bit=1.0
    )
    by_itself, on_intensity = (
        align(src, dst, gt=truth, config=config).dst_homo_src
        for config in (NEAR, AlignConfig(use_search=False, use_features=False, signal="intensity"))
    )
    assert not np.array_equal(by_itself.numpy(), on_intensity.numpy())
