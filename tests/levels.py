"""Levels, pyramids and batches of arrays."""

import numpy as np
import torch

from homoalign.levels.pyramid import Level, build_pyramid, num_levels


def level_of(*images, mask=None):
    """Return a level of images (H, W), float32, all behind the same mask (H, W)."""
    stacked = torch.stack([torch.as_tensor(np.ascontiguousarray(image), dtype=torch.float32) for image in images])
    return Level(
        stacked[:, None], None if mask is None else torch.as_tensor(mask).float().expand(stacked[:, None].shape)
    )


def pyramid_of(*images, mask=None):
    """Return a pyramid of such a level, down to a side of 8 pixels."""
    level = level_of(*images, mask=mask)
    return build_pyramid(level, num_levels([tuple(level.image.shape[-2:])], min_side_px=8, max_levels=12))


def batch_of(drawn, look):
    """Return src and dst (B, 1, H, W) and the truth (B, 3, 3) of drawn pairs: `look` says what is seen of one."""
    src, dst = (torch.from_numpy(np.stack(side))[:, None] for side in zip(*map(look, drawn), strict=True))
    return src, dst, torch.from_numpy(np.stack([one.views.dst_homo_src for one in drawn]))
