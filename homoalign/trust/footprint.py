"""Blocks of a source that covers only a part of dst, as a template in its scene: laid over that part, not the frame.

Of a grid over all of dst such a source would cover few blocks, which leave its corners open.

B pairs, H W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from homoalign.homography import image_corners, image_size, pixels_from_centred, warp_points
from homoalign.levels.pyramid import Level
from homoalign.optimisation.schedule import HOMOGRAPHY
from homoalign.trust.evidence import Evidence
from homoalign.trust.parts import LEAST_BLOCK_PX, LEAST_REACH_PX, REACH, Box, Parts

MOST_OF_FRAME = 0.6
"""Sources whose sides are larger shares of dst's are measured in the whole frame..."""

LEAST_SIDE_PX = 40
"""... and so are those of shorter sides, which hold no grid of blocks..."""

LEAST_SEEN = 0.6
"""... and those of which less is seen: what lies beyond dst's border a finer grid does not tell either."""

NARROW = 1 / 3
"""Overlaps of no more than this share of dst's width or height are too narrow for the frame's blocks."""

Measure = Callable[[Level, Level, Tensor, int, Box | None], Parts]
"""`parts.measure_parts`, or what does so by another signal."""


def is_template(evidence: Evidence) -> Tensor:
    """Return (B,) bool, where src, or most of it, covers a small part of dst: it might lie anywhere there."""
    small: Tensor = (evidence.overlap < MOST_OF_FRAME**2) & (evidence.src_overlap > LEAST_SEEN) & evidence.is_finite
    return small


def measure_in_footprint(
    measure: Measure, src: Level, dst: Level, dst_homo_src: Tensor, free: int = HOMOGRAPHY
) -> Parts:
    """Measure the parts of pairs, of small sources in what they cover of dst, of narrow overlaps by small blocks.

    Args:
        measure: how parts are measured.
        src: source images of a level.
        dst: destination images of the same level.
        dst_homo_src: (B, 3, 3), of that level's pixels.
        free: how many parameters the model of motion has.
    """
    sizes = image_size(src.image), image_size(dst.image)
    boxes, strips = footprints(dst_homo_src, *sizes), narrow_overlaps(dst_homo_src, *sizes)
    small = {i: box for i, box in enumerate(boxes) if box is not None}
    narrow = {i: box for i, box in enumerate(strips) if box is not None and i not in small}
    if not small and not narrow:
        return measure(src, dst, dst_homo_src, free, None)
    others = [i for i in range(len(boxes)) if i not in small and i not in narrow]

    def pairs(numbers: list[int]) -> tuple[Level, Level, Tensor]:
        index = torch.tensor(numbers, device=dst_homo_src.device)
        return src.select(index), dst.select(index), dst_homo_src[index]

    told = [measure(*pairs(others), free, None)] if others else []
    told += [measure(*pairs([i]), free, box) for i, box in narrow.items()]
    told += [_measure_in(box, measure, *pairs([i]), free) for i, box in small.items()]
    back = torch.tensor([*others, *narrow, *small], device=dst_homo_src.device).argsort()
    return Parts.concatenate(told).select(back)


def narrow_overlaps(dst_homo_src: Tensor, src_size: tuple[int, int], dst_size: tuple[int, int]) -> list[Box | None]:
    """Return which part of dst each source covers, of those that cover a narrow one; None of others.

    Args:
        dst_homo_src: (B, 3, 3).
        src_size: (height, width), pixels.
        dst_size: (height, width), pixels.
    """
    return [_narrow_overlap(*ends, dst_size) for ends in _ends(dst_homo_src, src_size)]


def _narrow_overlap(first: list[float], last: list[float], dst_size: tuple[int, int]) -> Box | None:
    """Return the part of dst that what lies from `first` to `last`, x and y, covers."""
    if not all(map(math.isfinite, [*first, *last])):
        return None
    height, width = dst_size
    left, top = (max(0, math.floor(start)) for start in first)
    right, bottom = (min(length, math.ceil(end) + 1) for end, length in zip(last, (width, height), strict=True))
    box = Box(top, left, bottom, right)
    is_narrow = box.size[0] <= NARROW * height or box.size[1] <= NARROW * width
    return box if is_narrow and min(box.size) >= LEAST_BLOCK_PX else None


def _ends(dst_homo_src: Tensor, src_size: tuple[int, int]) -> list[tuple[list[float], list[float]]]:
    """Return the least and the largest x and y of the warped sources' corners."""
    corners = image_corners(*src_size, device=dst_homo_src.device).expand(len(dst_homo_src), 4, 2)
    covered = warp_points(dst_homo_src, corners).cpu()
    return list(zip(covered.amin(1).tolist(), covered.amax(1).tolist(), strict=True))


def footprints(dst_homo_src: Tensor, src_size: tuple[int, int], dst_size: tuple[int, int]) -> list[Box | None]:
    """Return which part of dst each small source covers, with the reach about it; None of others.

    Args:
        dst_homo_src: (B, 3, 3).
        src_size: (height, width), pixels.
        dst_size: (height, width), pixels.
    """
    return [_footprint(*ends, dst_size) for ends in _ends(dst_homo_src, src_size)]


def _footprint(first: list[float], last: list[float], dst_size: tuple[int, int]) -> Box | None:
    """Return a box about what lies from `first` to `last`, x and y."""
    if not all(map(math.isfinite, [*first, *last])):
        return None
    height, width = dst_size
    sides = last[0] - first[0], last[1] - first[1]
    reach = math.ceil(max(LEAST_REACH_PX, REACH * min(sides))) + 1
    left, top = (max(0, math.floor(start) - reach) for start in first)
    right, bottom = (min(length, math.ceil(end) + 1 + reach) for end, length in zip(last, (width, height), strict=True))
    box = Box(top, left, bottom, right)
    seen_x, seen_y = (
        (min(end, length - 1) - max(start, 0)) / max(end - start, 1e-6)
        for start, end, length in zip(first, last, (width, height), strict=True)
    )
    is_small = sides[0] <= MOST_OF_FRAME * width and sides[1] <= MOST_OF_FRAME * height
    return box if is_small and min(box.size) >= LEAST_SIDE_PX and min(seen_x, seen_y) >= LEAST_SEEN else None


def _measure_in(box: Box, measure: Measure, src: Level, dst: Level, dst_homo_src: Tensor, free: int) -> Parts:
    """Measure one pair's parts in a box of dst; they are told in the whole frame."""
    mask = None if dst.mask is None else box.cut(dst.mask)
    inside = Level(box.cut(dst.image), mask, dst.known_noise)
    to_box = torch.eye(3, dtype=torch.float64, device=dst_homo_src.device)
    to_box[0, 2], to_box[1, 2] = -box.left, -box.top
    parts = measure(src, inside, to_box @ dst_homo_src, free, None)
    size = image_size(dst.image)
    from_centred, of_box = (pixels_from_centred(*s, device=dst_homo_src.device) for s in (size, box.size))
    into = torch.linalg.inv(of_box) @ to_box @ from_centred
    return parts.in_frame(min(box.size) / min(size), into)
