"""An exhaustive coarse search over rotation, scale and translation: where the solver may start.

Every rotation and scale of a grid is tried at all translations at once (`shifts.py`), by the structure channels of
canvases of about 64 pixels a side. A rotated image's channels are the rotated channels of the image, turned by their
harmonic of the angle, so that they are computed once a scale.

B pairs, R rotations, M harmonics, H W rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from homoalign.config import AlignConfig
from homoalign.homography import image_size
from homoalign.levels.pyramid import Level
from homoalign.levels.structure import CHANNELS, HARMONICS, Structure, describe
from homoalign.optimisation.schedule import MOTION_PARAMETERS
from homoalign.starts.shifts import CANVAS_SIDE_PX, Turned, as_complex, best_shifts

LONGEST_CANVAS_PX = 256
"""No side of a canvas is longer. Only strips ask for more, and those of 100 : 1 for gigabytes and minutes."""

HALF_TURN_DEG = 180.0
ROTATION_STEP_DEG = 10.0
SCALE_STEP = 2**0.4

LEAST_OVERLAP, LEAST_SIDE = 0.15, 1 / 6
"""Of the smaller canvas, and of its sides; a smaller overlap agrees too easily by chance."""

PEAKS_PER_ROTATION = 3

UPRIGHT_SIDE_PX = 256
"""Geometric mean of the sides of both canvases where nothing is turned or scaled..."""

UPRIGHT_OVERLAP, UPRIGHT_SIDE = 0.02, 0.015
"""... so that neighbouring tiles of a mosaic are found, whatever little they share."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """Images resampled for one scale of the search.

    Attributes:
        structure: their channels.
        full_homo_canvas: (3, 3) float64, canvas pixels to full-size pixels.
    """

    structure: Structure
    full_homo_canvas: Tensor


def search_similarities(src: list[Level], dst: list[Level], config: AlignConfig, *, keep: int) -> tuple[Tensor, Tensor]:
    """Find the similarities under which the structure of src agrees best with that of dst.

    Args:
        src: pyramid of the source images, full size first.
        dst: pyramid of the destination images.
        config: bounds the search; so does its model of motion.
        keep: how many to return a pair.

    Returns:
        dst_homo_src: (B, keep, 3, 3) float64, full-size pixels, best first.
        score: (B, keep) float64, correlation times the square root of the overlap in canvas pixels, over
            CANVAS_SIDE_PX; entries that the grid is too small to fill have -1.
    """
    matrices, scores = [], []
    may_turn, may_scale = (MOTION_PARAMETERS[config.model] >= MOTION_PARAMETERS[k] for k in ("euclidean", "similarity"))
    rotations = _rotations(config.search_max_rotation_deg if may_turn else 0.0, src[0].image.device)
    goes_round = may_turn and config.search_max_rotation_deg >= HALF_TURN_DEG
    src_side, dst_side = (math.sqrt(math.prod(image_size(pyramid[0].image))) for pyramid in (src, dst))
    of_frames = dst_side / src_side if may_scale else 1.0
    for scale in _scales(config.search_max_scale if may_scale else 1.0):
        found, score = _search_scale(src, dst, scale * of_frames, rotations, goes_round=goes_round)
        matrices.append(found)
        scores.append(score)
    score, matrix = torch.cat(scores, dim=1), torch.cat(matrices, dim=1)
    score, order = score.topk(min(keep, score.shape[1]), dim=1)
    return matrix.gather(1, order[..., None, None].expand(-1, -1, 3, 3)), score.double()


def _scales(largest: float) -> list[float]:
    """Return scales from 1 / largest to largest, geometrically spaced and symmetric about 1."""
    steps = math.ceil(math.log(largest) / math.log(SCALE_STEP) - 1e-9)
    return [largest ** (k / steps) for k in range(-steps, steps + 1)] if steps else [1.0]


def _rotations(largest_deg: float, device: torch.device) -> Tensor:
    """Return (R,) angles from -largest to largest, radians.

    All of them once where it is 180 degrees or more: first those of half a round, then these turned by 180 degrees.
    """
    largest_deg = min(largest_deg, HALF_TURN_DEG)
    steps = math.ceil(largest_deg / ROTATION_STEP_DEG - 1e-9)
    if largest_deg >= HALF_TURN_DEG:
        return torch.arange(-steps, steps, dtype=torch.float64, device=device) * (math.pi / steps)
    return torch.arange(-steps, steps + 1, dtype=torch.float64, device=device) * (
        math.radians(largest_deg) / max(steps, 1)
    )


def _search_scale(
    src: list[Level], dst: list[Level], dst_per_src: float, rotation: Tensor, *, goes_round: bool
) -> tuple[Tensor, Tensor]:
    """Search all rotations and translations at one scale.

    Args:
        src: pyramid of the source images.
        dst: pyramid of the destination images.
        dst_per_src: the scale, dst pixels for a src pixel.
        rotation: (R,) float64, radians.
        goes_round: whether the second half of the rotations is the first, turned by 180 degrees.

    Returns:
        dst_homo_src: (B, R * PEAKS_PER_ROTATION, 3, 3) float64, full-size pixels.
        score: (B, R * PEAKS_PER_ROTATION).
    """
    src_side, dst_side = (math.sqrt(math.prod(image_size(pyramid[0].image))) for pyramid in (src, dst))
    # No canvas is finer than its image.
    src_pitch = max(math.sqrt(src_side * dst_side / dst_per_src) / CANVAS_SIDE_PX, 1, 1 / dst_per_src)
    # A strip's is turned, and padded to a square, at every angle.
    src_longest, dst_longest = (max(image_size(pyramid[0].image)) for pyramid in (src, dst))
    src_pitch = max(src_pitch, src_longest / LONGEST_CANVAS_PX, dst_longest / dst_per_src / LONGEST_CANVAS_PX)
    from_src, onto_dst = _make_canvas(src, src_pitch), _make_canvas(dst, src_pitch * dst_per_src)
    turned = _turn(
        from_src.structure, rotation[: len(rotation) // 2] if goes_round else rotation, goes_round=goes_round
    )
    min_overlap = LEAST_OVERLAP * _smaller_area(from_src, onto_dst)
    score, x, y = best_shifts(
        turned, onto_dst.structure, min_overlap=min_overlap, least_side=LEAST_SIDE, count=PEAKS_PER_ROTATION
    )
    turned_homo_src = _turns(rotation, image_size(from_src.structure.usable), image_size(turned.usable)[0])
    return _shifted(turned_homo_src, x, y, from_src, onto_dst), score.flatten(1)


def search_upright(src: list[Level], dst: list[Level], *, keep: int) -> tuple[Tensor, Tensor]:
    """Find the shifts under which the structure of src agrees best with that of dst, neither turned nor scaled.

    Args:
        src: pyramid of the source images, full size first.
        dst: pyramid of the destination images.
        keep: how many to return a pair.

    Returns:
        dst_homo_src: (B, keep, 3, 3) float64, full-size pixels, best first.
        score: (B, keep) float64, as of `search_similarities`.
    """
    sizes = [image_size(pyramid[0].image) for pyramid in (src, dst)]
    area = math.sqrt(math.prod(sizes[0]) * math.prod(sizes[1]))
    pitch = max(math.sqrt(area) / UPRIGHT_SIDE_PX, max(*sizes[0], *sizes[1]) / (4 * UPRIGHT_SIDE_PX), 1)
    from_src, onto_dst = _make_canvas(src, pitch), _make_canvas(dst, pitch)
    upright = Turned(as_complex(from_src.structure.channels)[:, None], from_src.structure.usable, with_half_turns=False)
    min_overlap = UPRIGHT_OVERLAP * _smaller_area(from_src, onto_dst)
    score, x, y = best_shifts(upright, onto_dst.structure, min_overlap=min_overlap, least_side=UPRIGHT_SIDE, count=keep)
    same = torch.eye(3, dtype=torch.float64, device=score.device)[None]
    return _shifted(same, x, y, from_src, onto_dst), score.flatten(1).double()


def _shifted(turned_homo_src: Tensor, x: Tensor, y: Tensor, from_src: Canvas, onto_dst: Canvas) -> Tensor:
    """Return (B, R * K, 3, 3) float64, full-size pixels, of shifts (B, R, K) of canvases turned by (R, 3, 3)."""
    batch, _, peaks = x.shape
    canvas_homo_canvas = turned_homo_src[None, :, None].repeat(batch, 1, peaks, 1, 1)
    canvas_homo_canvas[..., 0, 2] += x
    canvas_homo_canvas[..., 1, 2] += y
    canvas_homo_full = torch.linalg.inv_ex(from_src.full_homo_canvas).inverse
    matrix: Tensor = onto_dst.full_homo_canvas @ canvas_homo_canvas @ canvas_homo_full
    return matrix.flatten(1, 2)


def _smaller_area(a: Canvas, b: Canvas) -> int:
    return min(math.prod(image_size(canvas.structure.channels)) for canvas in (a, b))


def _make_canvas(pyramid: list[Level], pitch: float) -> Canvas:
    """Resample images such that a canvas pixel is `pitch` full-size pixels wide, and describe them."""
    height, width = image_size(pyramid[0].image)
    rows, columns = max(6, round(height / pitch)), max(6, round(width / pitch))
    level = min(len(pyramid) - 1, math.floor(math.log2(pitch) + 1e-6))
    image, mask = pyramid[level].image, pyramid[level].mask
    left, top = (width - 1 - pitch * (columns - 1)) / 2, (height - 1 - pitch * (rows - 1)) / 2
    device = image.device
    x = (torch.arange(columns, dtype=image.dtype, device=device) * pitch + left) / 2**level
    y = (torch.arange(rows, dtype=image.dtype, device=device) * pitch + top) / 2**level
    unit_x, unit_y = (2 * v / (side - 1) - 1 for v, side in ((x, image.shape[-1]), (y, image.shape[-2])))
    grid = torch.stack(torch.meshgrid(unit_x, unit_y, indexing="xy"), dim=-1).expand(len(image), -1, -1, -1)

    def resample(values: Tensor) -> Tensor:
        return grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=True)

    canvas = Level(resample(image), None if mask is None else (resample(mask) > 0.999).to(image))
    full_homo_canvas = torch.tensor([[pitch, 0, left], [0, pitch, top], [0, 0, 1]], dtype=torch.float64, device=device)
    return Canvas(describe(canvas), full_homo_canvas)


def _turn(structure: Structure, rotation: Tensor, *, goes_round: bool) -> Turned:
    """Rotate images about their centres onto square canvases that hold them at any angle."""
    height, width = image_size(structure.usable)
    side = math.ceil(math.hypot(height, width))
    offset = torch.arange(side, dtype=structure.channels.dtype, device=rotation.device) - (side - 1) / 2
    y, x = offset[:, None], offset
    c, s = (part.to(offset)[:, None, None] for part in (rotation.cos(), rotation.sin()))
    grid = torch.stack([(c * x + s * y) / ((width - 1) / 2), (c * y - s * x) / ((height - 1) / 2)], dim=-1)
    batch, rotations = len(structure.usable), len(rotation)
    # All rotations below one another, as one image: else each would need a copy to be read from.
    grid = grid.flatten(0, 1)[None].expand(batch, -1, -1, -1)
    images = torch.cat([structure.channels, structure.usable], dim=1)
    turned = grid_sample(images, grid, padding_mode="zeros", align_corners=True)
    turned = turned.view(batch, CHANNELS + 1, rotations, side, side).transpose(1, 2)
    harmonic = torch.tensor(HARMONICS, device=rotation.device)
    angle = (rotation[:, None] * harmonic).to(turned)  # (R, M)
    channels = as_complex(turned[:, :, :CHANNELS]) * torch.polar(torch.ones_like(angle), angle)[..., None, None]
    return Turned(channels, turned[:, :, CHANNELS], with_half_turns=goes_round)


def _turns(rotation: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Return (R, 3, 3) float64, pixels of images of this size to those of the square ones that `_turn` makes."""
    height, width = size
    turns = torch.eye(3, dtype=torch.float64, device=rotation.device).repeat(len(rotation), 1, 1)
    turns[:, 0, 0], turns[:, 0, 1] = rotation.cos(), -rotation.sin()
    turns[:, 1, 0], turns[:, 1, 1] = rotation.sin(), rotation.cos()
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64, device=rotation.device)
    turns[:, :2, 2] = (side - 1) / 2 - turns[:, :2, :2] @ centre
    return turns
