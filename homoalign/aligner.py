"""`align`: the library's one door. Batched over pairs, on whatever device they are on.

    images -> intensities (cleaned of what is not the scene) -> pyramids -> start -> solver, level by level
      -> metrics -> verdict

B pairs, C channels, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from homoalign import kernels
from homoalign.arguments import Array, Pairs, check_pairs
from homoalign.cleaning import Recorded, align_recorded
from homoalign.config import AlignConfig
from homoalign.homography import image_size
from homoalign.levels.depth import stretch_narrow
from homoalign.levels.intensity import to_gray
from homoalign.levels.pyramid import Level
from homoalign.levels.surround import find_insides
from homoalign.result import AlignResult
from homoalign.starts.initialise import Start, find_start
from homoalign.status import Status

PIXELS_AT_A_TIME = 2**20
"""On a processor pairs are solved in groups of about this many pixels of dst, which the cache holds."""

PAIRS_AT_A_TIME, MOST_PIXELS_AT_A_TIME = 4, 2**21
"""Larger images in groups of so many pairs, which share what a call of torch costs, while the cache does not mind."""


def align(
    src: Array,
    dst: Array,
    *,
    src_mask: Array | None = None,
    dst_mask: Array | None = None,
    init: Array | None = None,
    config: AlignConfig | None = None,
    gt: Array | None = None,
    trace: bool = False,
) -> AlignResult:
    """Find the homographies that lay source images onto destination images.

    Args:
        src: (B, C, H, W) tensor, or a (H, W[, C]) numpy array for one pair; unsigned integers of any depth, or
            floats in [0, 1]. Floats beyond [0, 1] are scaled by the range of what is not masked; NaN pixels count as
            masked. What uses little of a deep range is stretched (`depth.stretch_narrow`).
        dst: likewise; its size and channels may differ from src's. Both on one device.
        src_mask: (B, H, W) tensor, or (H, W) array; nonzero pixels are used. None: all are. The solver `adam` ignores
            masks.
        dst_mask: likewise.
        init: (B, 3, 3) priors of `dst_homo_src`, all NaN where a pair has none; or one (3, 3) matrix.
        config: what changes the answer; the defaults where None.
        gt: (B, 3, 3) or (3, 3) true matrices, for the `gt_` fields only, at any scale; NaN where unknown. Where
            [2, 2] is 0 it counts as unknown: the source's origin lies on the horizon.
        trace: fill `levels`.

    Returns:
        One entry a pair. A pair's content never raises: it gets a status.

    Raises:
        ValueError: a shape is off, or batch sizes or devices differ.
        TypeError: not a dense tensor or an array, a dtype that holds no image, complex matrices, or another config.
    """
    if not isinstance(config, AlignConfig | None):
        raise TypeError(f"config should be an AlignConfig or None, got {type(config).__name__}")
    pairs = check_pairs(src, dst, src_mask=src_mask, dst_mask=dst_mask, init=init, gt=gt)
    batch, group = len(pairs.dst), group_size(pairs.dst)
    with _default_device_cpu(), _whole_products(pairs.dst.device):
        # Half-precision matrix products would move the answer: a caller's autocast ends here.
        # Inference mode ends with it, so that a caller may differentiate through what comes back.
        with torch.inference_mode(), torch.autocast(pairs.dst.device.type, enabled=False):
            parts = [
                _align_group(pairs.slice(i, i + group), config or AlignConfig(), trace) for i in range(0, batch, group)
            ]
        return AlignResult.concatenate(parts) if parts else AlignResult.blank([], [])


def _default_device_cpu() -> AbstractContextManager[object]:
    """Make tensors that name no device be on the CPU, in this thread; torch's own way costs a little at every call."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


@contextmanager
def _whole_products(device: torch.device) -> Iterator[None]:
    """Let matrix products on a GPU keep all digits of float32, which those who train often give up for speed."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu" or before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def group_size(dst: Tensor) -> int:
    """Return how many pairs to solve at a time, whose destination images are (B, C, H, W)."""
    if dst.device.type != "cpu":
        return max(1, len(dst))
    pixels = max(1, dst[0:1, 0].numel())
    return max(1, PIXELS_AT_A_TIME // pixels, min(PAIRS_AT_A_TIME, MOST_PIXELS_AT_A_TIME // pixels))


@cache
def warm_up() -> None:
    """Compile what aligning on the processor needs, or load what an earlier process of this machine compiled.

    The former takes most of a minute, the latter some two seconds. Without it the first call of `align` does so; with
    time limits about, or a clock, it is better done before.
    """
    rng = np.random.default_rng(0)
    spots = interpolate(torch.from_numpy(rng.random((1, 3, 8, 8), np.float32)), size=(48, 48), mode="bilinear")
    views = torch.cat([spots, 2.5 * spots.roll(1, dims=-1).square()])  # in another light, too bright in places
    noisy = views + torch.from_numpy(rng.normal(0, 0.03, views.shape))
    src, otherwise_lit = (255 * noisy.clamp(0, 1)).to(torch.uint8)[:, None]
    for points in (64, 4096):  # some pixels, all pixels
        config = AlignConfig(
            points_per_level=points,
            final_points=points,
            search_max_rotation_deg=0.0,
            search_max_scale=1.0,
            use_features=False,
        )
        align(src, otherwise_lit, config=config, gt=torch.eye(3, dtype=torch.float64))
    planes, pixels = src.expand(-1, 3, -1, -1), otherwise_lit.flip(-2).expand(-1, 3, -1, -1).movedim(1, -1)
    for largest_deg in (0.0, 180.0):  # not found: the search is warm too, of some angles and of all
        searched = replace(config, search_max_rotation_deg=largest_deg)
        align(planes, pixels.contiguous().movedim(-1, 1), config=searched)
    kernels.best_two(torch.zeros(1, 2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))  # of features


@dataclass(frozen=True, slots=True)
class _Read:
    """One side of the pairs, in gray.

    Attributes:
        plain: with no mask but the caller's.
        level: likewise, but what is not finite is masked too.
        is_spoiled: (B,) bool on the CPU, where that is anything.
        may_be_framed: whether the caller left it to us to mask what surrounds the picture.
    """

    plain: Level
    level: Level
    is_spoiled: Tensor
    may_be_framed: bool


def _read_gray(image: Tensor, mask: Tensor | None) -> _Read:
    gray, usable = to_gray(image, mask)
    plain = Level(gray, None if mask is None else mask.to(gray.dtype))
    if usable is None or usable is mask:
        return _Read(plain, plain, torch.zeros(len(gray), dtype=torch.bool), mask is None)
    lost = ~usable if mask is None else mask & ~usable
    return _Read(plain, Level(gray, usable.to(gray.dtype)), lost.flatten(1).any(-1).cpu(), mask is None)


def _align_group(pairs: Pairs, config: AlignConfig, trace: bool) -> AlignResult:
    """Align the pairs of a group, those with a surround apart."""
    pairs = stretch_narrow(pairs)
    too_small = _too_small(pairs, config)
    if too_small is not None:
        return AlignResult.blank([Status.TOO_SMALL] * len(pairs.src), [too_small] * len(pairs.src))
    sides = [_read_gray(pairs.src, pairs.src_mask), _read_gray(pairs.dst, pairs.dst_mask)]
    is_masked, levels = sides[0].is_spoiled | sides[1].is_spoiled, [side.level for side in sides]
    if config.ignore_surround and config.solver != "adam":  # the tutorial knows no masks
        for k, side in enumerate(sides):
            is_framed, levels[k] = _leave_out_surround(side)
            is_masked = is_masked | is_framed
    parts, order = [], []
    # Apart, and these with masks on both sides, so that no pair's answer depends on which others it comes with.
    for chosen, (src, dst) in ((~is_masked, [side.plain for side in sides]), (is_masked, map(_with_mask, levels))):
        index = torch.nonzero(chosen)[:, 0]
        if len(index) == len(chosen):  # as most are
            return _align_levels(pairs, src, dst, config, trace)
        if len(index) == 0:
            continue
        here = index.to(src.image.device)
        parts.append(_align_levels(pairs.select(index), src.select(here), dst.select(here), config, trace))
        order.append(index)
    return AlignResult.concatenate(parts).select(torch.cat(order).argsort())


def _with_mask(level: Level) -> Level:
    return level if level.mask is not None else Level(level.image, torch.ones_like(level.image))


def _leave_out_surround(side: _Read) -> tuple[Tensor, Level]:
    """Mask what surrounds the pictures whose caller gave no mask.

    Returns:
        is_framed: (B,) bool on the CPU, which of them have a surround.
        level: the side's, with a mask where any has.
    """
    if not side.may_be_framed:
        return torch.zeros_like(side.is_spoiled), side.level
    is_framed, inside = find_insides(side.level.image)
    if not bool(is_framed.any()):
        return is_framed, side.level
    mask = inside if side.level.mask is None else inside * side.level.mask
    return is_framed, Level(side.level.image, mask.contiguous())


def _align_levels(pairs: Pairs, src: Level, dst: Level, config: AlignConfig, trace: bool) -> AlignResult:
    """Rule out the pairs that cannot be aligned, solve and judge the others, whose full-size levels these are."""
    model = config.model if config.solver == "gauss_newton" else "homography"
    start = find_start(pairs.init, len(pairs.src), image_size(pairs.src), image_size(pairs.dst), model=model)
    ruled_out = _rule_out(src, dst, start, config)
    status, detail = zip(*ruled_out, strict=True)
    result = AlignResult.blank(status, detail)
    alive = torch.tensor([i for i, reason in enumerate(detail) if reason is None], dtype=torch.int64)
    if len(alive) == 0:
        return result
    device = pairs.src.device
    if len(alive) < len(status):
        pairs = pairs.select(alive)
        src, dst = src.select(alive.to(device)), dst.select(alive.to(device))
    recorded = Recorded(
        pairs=pairs,
        src=src,
        dst=dst,
        start=start.dst_homo_src[alive].to(device),
        initialisation=[start.initialisation[i] for i in alive.tolist()],
        config=config,
        trace=trace,
    )
    return result.put(alive, align_recorded(recorded))


def _too_small(pairs: Pairs, config: AlignConfig) -> str | None:
    for side, image in (("src", pairs.src), ("dst", pairs.dst)):
        height, width = image_size(image)
        if min(height, width) < config.min_side_px:
            return f"{side} is {width} x {height} pixels, min_side_px={config.min_side_px}"
    return None


def _rule_out(src: Level, dst: Level, start: Start, config: AlignConfig) -> list[tuple[Status, str | None]]:
    """Return a status and its reason for every pair; OK and None for those that can be tried."""
    # Read together: the host waits for the device once.
    figures = torch.stack([*_contrast(src), *_contrast(dst)]).tolist()
    sides = [("src", figures[0], figures[1]), ("dst", figures[2], figures[3])]
    return [_rule_out_pair(i, sides, start.fault[i], config) for i in range(len(src.image))]


def _rule_out_pair(
    i: int, sides: list[tuple[str, list[float], list[float]]], fault: str | None, config: AlignConfig
) -> tuple[Status, str | None]:
    if fault is not None:
        return Status.INVALID_ROW, fault
    for side, usable, _ in sides:
        if not usable[i] >= config.min_overlap:
            detail = f"the mask, or a flat surround, leaves {usable[i]:.3f} of {side}, min_overlap={config.min_overlap}"
            return Status.NO_OVERLAP, detail
    for side, _, contrast in sides:
        if not contrast[i] >= config.min_contrast:
            detail = f"{side} has a standard deviation of {contrast[i]:.5f}, min_contrast={config.min_contrast}"
            return Status.LOW_TEXTURE, detail
    return Status.OK, None


def _contrast(level: Level) -> tuple[Tensor, Tensor]:
    """Return (B,) float64 share of usable pixels, and (B,) float64 standard deviation of their intensities."""
    image = level.image.flatten(1)
    if level.mask is None:
        return torch.ones_like(level.contrast), level.contrast
    mask = level.mask.flatten(1)
    count = mask.sum(-1, dtype=torch.float64)
    mean = (image * mask).sum(-1, dtype=torch.float64) / count.clamp_min(1)
    off = (image - mean[:, None].to(image)) * mask
    variance = off.square_().sum(-1, dtype=torch.float64) / count.clamp_min(1)
    return count / image.shape[-1], variance.sqrt()
