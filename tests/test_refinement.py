"""The last iterations under noise: what src's own noise must not do to gain and motion."""

import numpy as np
import pytest

from homoalign import AlignConfig, align
from jobs.synthetic import load_scene, random_homography, render_pair

SIGMA = 20 / 255


def test_noise_above_the_contrast_does_not_flatten_the_gain(numpy_rng):
    """Regression on noisy brick, whose contrast is below its noise, would give a gain of about 0.25."""
    size = (256, 256)
    motion = random_homography(numpy_rng, size, 5.0)
    pair = render_pair(load_scene("brick", gray=True), motion, size, rng=numpy_rng)
    src, dst = (
        (image + SIGMA * numpy_rng.standard_normal(image.shape)).astype(np.float32) for image in (pair.src, pair.dst)
    )
    result = align(src, dst, gt=pair.dst_homo_src, config=AlignConfig(use_search=False))
    assert result.gain.item() == pytest.approx(1, abs=0.15)
    assert result.gt_corner_error_px.item() < 0.15
