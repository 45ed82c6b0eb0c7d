"""A flat surround: what an aperture, a rotated tile's nodata corners or a letterbox leave around the picture.

Its edge is the sharpest in the image and belongs to the camera or the mosaic, not to the scene: two pictures through
one aperture agree best frame on frame, wherever the scene went. (Fundus photography calls the rest the field of view.)

A surround is dark or bright and flat, touches a good part of the border, and what its convex hull holds has detail of
its own. Roofs before a night sky do not fill theirs to the edge, and a backlit part has nothing but its outline: these
stay as they are.

B images, H W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

SIDE_PX = 256
"""The surround is looked for on an image whose shorter side is no longer than this."""

DEPTH = 0.06
"""Of the range of intensities: so near to one end of it are all of the surround's."""

LEAST_BORDER = 0.25
"""Share of the border's pixels that touch it."""

ALL_INSIDE = 0.999
"""Of what an enlarged pixel is made of."""

SAMPLING = 7
"""Every such row and column tells the range well enough to see that there can be no surround."""


def find_insides(gray: Tensor) -> tuple[Tensor, Tensor]:
    """Find what a flat surround encloses.

    Args:
        gray: (B, 1, H, W) float32.

    Returns:
        is_framed: (B,) bool on the CPU, whether there is such a surround.
        inside: (B, 1, H, W) float32, 0 on the surround and its edge, else 1.
    """
    height, width = gray.shape[-2:]
    is_framed = _may_be_framed(gray)
    if not bool(is_framed.any()):
        return is_framed, gray.new_ones(()).expand_as(gray)
    from homoalign.levels.inside import find_inside  # OpenCV takes time to load, and most images need none of it

    inside = torch.ones_like(gray)
    pitch = -(-min(height, width) // SIDE_PX)
    for i in torch.nonzero(is_framed)[:, 0].tolist():
        small = gray[i] if pitch == 1 else avg_pool2d(gray[i], pitch, ceil_mode=True, count_include_pad=False)
        found = find_inside(small[0].cpu().numpy(), depth=DEPTH, least_border=LEAST_BORDER)
        if found is None:
            is_framed[i] = False
            continue
        where = torch.from_numpy(found).to(gray)[None, None]
        # Between the pixels' centres, so that the edge has no steps.
        where = interpolate(where, scale_factor=pitch, mode="bilinear") if pitch > 1 else where
        inside[i] = (where[0, :, :height, :width] > ALL_INSIDE).to(gray)
    return is_framed, inside


def _may_be_framed(gray: Tensor) -> Tensor:
    """Return (B,) bool on the CPU, whether enough of the border is alike, and extreme: most images end here."""
    image = gray[:, 0]
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    some = torch.cat([image[:, ::SAMPLING, ::SAMPLING].flatten(1), border], dim=1)
    low, high = some.amin(-1, keepdim=True), some.amax(-1, keepdim=True)
    reach = DEPTH * (high - low)
    near = torch.stack([border <= low + reach, border >= high - reach]).count_nonzero(dim=-1)
    return ((near >= LEAST_BORDER * border.shape[-1]).any(0) & (high > low)[:, 0]).cpu()
