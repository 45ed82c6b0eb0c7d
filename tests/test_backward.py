"""The other direction of a pair."""

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, align
from jobs.rendering.synthetic import load_scene, random_homography, render_pair

BOTH = AlignConfig(forward_backward=True)
NEAR = {"use_search": False, "use_features": False, "forward_backward": True}


def noisy_views(name, rng, *, size=(120, 160), dst_size=(140, 150), sigma=0.02):
    motion = random_homography(rng, size, 6.0, dst_size=dst_size)
    pair = render_pair(load_scene(name, gray=True), motion, size, rng=rng, dst_size=dst_size)
    return [image + sigma * rng.standard_normal(image.shape).astype(np.float32) for image in (pair.src, pair.dst)]


def test_it_is_not_measured_unless_asked_for(numpy_rng):
    assert align(*noisy_views("astronaut", numpy_rng)).forward_backward_px.isnan().all()


@pytest.mark.parametrize("name", ["astronaut", "camera", "brick"])
def test_both_directions_of_a_pair_agree_within_what_is_predicted(numpy_rng, name):
    src, dst = noisy_views(name, numpy_rng)
    result = align(src, dst, config=BOTH)
    assert 0 < result.forward_backward_px.item() < 4 * result.corner_std_px.item()
    assert torch.equal(result.dst_homo_src, align(src, dst).dst_homo_src)


def test_of_what_has_nothing_in_common_they_do_not(numpy_rng):
    (src, _), (_, dst) = noisy_views("astronaut", numpy_rng), noisy_views("coffee", numpy_rng)
    result = align(src, dst, config=AlignConfig(**NEAR))
    assert result.dst_homo_src.isfinite().all()
    assert not result.forward_backward_px.item() < 1


def test_masks_change_sides_too(numpy_rng):
    """What is masked in dst is another scene, which the way back must not look at either."""
    src, dst = noisy_views("astronaut", numpy_rng)
    mask = np.ones(dst.shape, bool)
    mask[30:110, 40:100] = False
    dst[~mask] = noisy_views("coffee", numpy_rng)[1][~mask]
    masked = align(src, dst, dst_mask=mask, config=AlignConfig(**NEAR))
    assert masked.forward_backward_px.item() < 4 * masked.corner_std_px.item()


def test_a_pair_without_an_answer_costs_its_neighbour_nothing(numpy_rng):
    src, dst = noisy_views("astronaut", numpy_rng)
    alone = align(src, dst, config=BOTH)
    pairs = [torch.from_numpy(np.stack([image, np.zeros_like(image)]))[:, None] for image in (src, dst)]
    both = align(*pairs, config=BOTH)
    assert both.forward_backward_px[0] == alone.forward_backward_px[0]
    assert both.forward_backward_px[1].isnan()
