"""The source as the solver sees it: chosen pixels, their intensities and how these change with the motion.

Gradients and their motion under the eight parameters are those of the source alone (Baker and Matthews, "Lucas-Kanade
20 years on", IJCV 2004), so they are computed once and serve every iteration. For the last iterations they are those of
the source without its noise.

B pairs, H W rows and columns, N points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from homoalign import homography, kernels
from homoalign.kept import kept
from homoalign.levels.pyramid import Level, is_everyone, take, usable_pixels

FLAT = 1e-5
"""Points with less than this share of the mean squared slope are flatter than noise would leave them..."""

MOST_FLAT = 0.2
"""... and of so many the scale of what is left begins to suffer: half would leave none."""

FLAT_SAMPLES = 2**12
"""Points, about, from which it is told how many are flat."""


@dataclass(frozen=True, slots=True)
class Template:
    """The chosen points of one level of src.

    Attributes:
        chosen: (B, N) int64, flat pixel indices.
        u: (B, 2, N) float32, centred coordinates.
        value: (B, N) float32, intensities as they were recorded.
        slope: (B, 2, N) float32, how intensities change along x and y, per centred unit.
        brightness: (B, N) float32, how they change with the gain: `value`, or that without its noise.
        usable: (B, N) bool, False for points under a mask, on the border of src, or flat where many are.
        half_side: of src at this level, pixels a centred unit.
        is_whole: whether the points are all pixels, row by row.
        grid: rows and columns of the points, which tell how to read N; None for a part of them.
    """

    chosen: Tensor
    u: Tensor
    value: Tensor
    slope: Tensor
    brightness: Tensor
    usable: Tensor
    half_side: float
    is_whole: bool
    grid: tuple[int, int] | None

    def select(self, index: Tensor) -> Template:
        """Return the pairs that `index` (int64) names; this template itself where it names all in their order."""
        if is_everyone(index, len(self.u)):
            return self
        return replace(
            self,
            chosen=self.chosen[index],
            u=self.u[index],
            value=self.value[index],
            slope=self.slope[index],
            brightness=self.brightness[index],
            usable=self.usable[index],
        )

    def put(self, index: Tensor, part: Template) -> Template:
        """Return this template with what the pairs that `index` (int64) names look like replaced by `part`."""
        return replace(
            self,
            value=self.value.index_copy(0, index, part.value),
            slope=self.slope.index_copy(0, index, part.slope),
            brightness=self.brightness.index_copy(0, index, part.brightness),
        )

    def at(self, part: Template) -> Template:
        """Return `part`, whose points are some of these, which are all pixels, with what these look like."""
        value, brightness = (at_points(some[:, None], part.chosen)[:, 0] for some in (self.value, self.brightness))
        return replace(part, value=value, slope=at_points(self.slope, part.chosen), brightness=brightness)

    def every(self, stride: int) -> Template:
        """Return every `stride`-th point."""
        value = _every(self.value, stride)
        return replace(
            self,
            chosen=self.chosen[:, ::stride],
            u=_every(self.u, stride),
            value=value,
            slope=_every(self.slope, stride),
            brightness=value if self.brightness is self.value else _every(self.brightness, stride),
            usable=self.usable[:, ::stride].contiguous(),
            is_whole=self.is_whole and stride == 1,
            grid=self.grid if stride == 1 else None,
        )

    def every_row(self, stride: int) -> Template:
        """Return every `stride`-th row of a grid of points, a grid again."""
        if self.grid is None:
            raise ValueError("a part of the points has no rows")
        rows, columns = self.grid

        def take_rows(values: Tensor) -> Tensor:
            return values.view(*values.shape[:-1], rows, columns)[..., ::stride, :].flatten(-2)

        value = take_rows(self.value)
        return replace(
            self,
            chosen=take_rows(self.chosen),
            u=take_rows(self.u),
            value=value,
            slope=take_rows(self.slope),
            brightness=value if self.brightness is self.value else take_rows(self.brightness),
            usable=take_rows(self.usable),
            is_whole=self.is_whole and stride == 1,
            grid=(-(-rows // stride), columns),
        )

    def with_slopes_of(self, image: Tensor, index: Tensor, brightness: Tensor | None = None) -> Template:
        """Return this template with the slopes of another image of src for the pairs that `index` names.

        Args:
            image: (b, 1, H, W), for the b pairs of `index`.
            index: (b,) int64.
            brightness: (b, 1, H, W), what the gain is told from; None: `image`.
        """
        everyone = len(index) == len(self.u)
        chosen = take(self.chosen, index)
        if kernels.serves(image):
            slope, level = kernels.slopes_at(image[:, 0], chosen, self.half_side)
        else:
            slope, level = (
                self.half_side * at_points(central_differences(image), chosen),
                at_points(image, chosen)[:, 0],
            )
        if brightness is not None:
            level = at_points(brightness, chosen)[:, 0]
        if everyone:
            return replace(self, slope=slope, brightness=level)
        return replace(
            self, slope=self.slope.index_copy(0, index, slope), brightness=self.brightness.index_copy(0, index, level)
        )

    def slope_of(self, value: Tensor) -> Tensor:
        """Return (B, 2, N) slopes, as `slope`, of other intensities (B, N) of all pixels."""
        if not self.is_whole or self.grid is None:
            raise ValueError("differences need all pixels")
        return self.half_side * at_points(central_differences(value.view(len(value), 1, *self.grid)), self.chosen)

    def jacobian(self) -> Tensor:
        """Return (B, 10, N) d(gain * src + bias) / d parameters at gain = 1."""
        return jacobian_of(self.slope, self.brightness, self.u)

    def block_sums(self, values: Tensor, blocks: int) -> Tensor:
        """Return (B, P, K) sums of (B, P, N) over square blocks, `blocks` of them along the longer side."""
        if self.grid is None:
            raise ValueError("a part of the points makes no grid")
        return block_sums(values.view(*values.shape[:2], *self.grid), blocks)


def side_of_blocks(grid: Sequence[int], blocks: int) -> int:
    """Return the side of square blocks such that `blocks` of them cover the longer side of a grid."""
    return math.ceil(max(grid) / blocks)


def block_sums(values: Tensor, blocks: int) -> Tensor:
    """Return (B, P, K) sums of (B, P, H, W) over square blocks, `blocks` of them along the longer side."""
    return avg_pool2d(values, side_of_blocks(values.shape[-2:], blocks), ceil_mode=True, divisor_override=1).flatten(2)


def build_template(src: Level, max_points: int) -> Template:
    """Choose the points of a level and compute their Jacobian.

    Args:
        src: source images of this level.
        max_points: about how many points; all pixels where there are no more.
    """
    height, width = src.image.shape[-2:]
    cell_side = side_of_cells(height, width, max_points)
    half_side = max(height, width) / 2
    points = _choose(src, cell_side, half_side)
    return Template(
        chosen=points.chosen,
        u=points.u,
        value=points.value,
        slope=points.slope,
        brightness=points.value,
        usable=_without_flat(points),
        half_side=half_side,
        is_whole=cell_side == 1,
        grid=(height // cell_side, width // cell_side),
    )


def _without_flat(points: kernels.Points) -> Tensor:
    """Return (B, N) bool, the usable points but for flat ones, where these are so many that they would set the scale.

    Of a drawing, a page or a screen most pixels are as flat as can be: whatever the motion their residuals are zero, so
    that their median says nothing of noise, and to a loss of that scale every edge is an outlier.
    """
    stride = max(1, points.usable.shape[-1] // FLAT_SAMPLES) | 1  # odd: not in step with the rows of an image
    if kernels.serves(points.slope):
        return kernels.without_flat(points.slope, points.usable, (FLAT, MOST_FLAT), stride)
    steepness = torch.where(points.usable, points.slope.square().sum(1), 0.0)
    some, counted = steepness[:, ::stride], points.usable[:, ::stride]
    count = counted.sum(-1, keepdim=True)
    limit = FLAT * some.sum(-1, keepdim=True) / count.clamp_min(1)
    left = (counted & (some > limit)).sum(-1, keepdim=True)
    is_many = (left > 0) & (count - left > MOST_FLAT * count)
    return torch.where(is_many, points.usable & (steepness > limit), points.usable)


def _choose(src: Level, cell_side: int, half_side: float) -> kernels.Points:
    """Return the points of a level."""
    if kernels.serves(src.image) and cell_side > 1:
        return kernels.steepest_points(src.image[:, 0], usable_pixels(src.image, src.mask)[:, 0], cell_side)
    chosen, usable = steepest_of_cells(src.slope, src.mask, cell_side=cell_side)
    size = src.image.shape[-2:]
    if cell_side > 1:
        u = centred(chosen, *size)
    else:
        u = _grid(size[0], size[1], chosen.device).expand(len(chosen), -1, -1)
        # Kernels would copy what is expanded at every call.
        u = u.contiguous() if kernels.serves(u) else u
    return kernels.Points(
        chosen=chosen,
        usable=usable,
        value=at_points(src.image, chosen)[:, 0],
        slope=half_side * at_points(src.slope, chosen),
        u=u,
    )


def steep_points(template: Template, seen: Tensor) -> Tensor:
    """Return (B, N) like `seen`, 1 at the points that hold most of what all of `seen` (B, N) tell of the motion.

    They are steeper than half of what a point is, on average, by what it tells.
    """
    steepness = template.slope.square().sum(1) * seen
    limit = 0.5 * steepness.square().sum(-1) / steepness.sum(-1).clamp_min(1e-20)
    return (steepness > limit[:, None]).to(seen)


def central_differences(image: Tensor) -> Tensor:
    """Return (B, 2, H, W) central differences of (B, 1, H, W) along x and y, per pixel."""
    padded = pad(image, (1, 1, 1, 1), mode="reflect")[:, 0]
    across, down = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    return torch.stack([across, down], dim=1).mul_(0.5)


def jacobian_of(slope: Tensor, brightness: Tensor, u: Tensor) -> Tensor:
    """Return (B, 10, N): eight rows of motion, then those of gain and bias.

    Args:
        slope: (B, 2, N) per centred unit.
        brightness: (B, N).
        u: (B, 2, N) centred coordinates.
    """
    jacobian = torch.empty(len(u), 10, u.shape[-1], dtype=u.dtype, device=u.device)
    for i, (along_x, along_y) in enumerate(homography.velocities(u[:, 0], u[:, 1])):
        # Not straight into its row: strided passes round otherwise than those of one pair alone.
        jacobian[:, i] = slope[:, 0] * along_x + slope[:, 1] * along_y
    jacobian[:, 8] = brightness
    jacobian[:, 9] = 1.0
    return jacobian


def _every(values: Tensor, stride: int) -> Tensor:
    """Return every `stride`-th of (..., N) float32, contiguous."""
    if kernels.serves(values) and stride > 1:
        return kernels.every(values, stride)
    return values[..., ::stride].contiguous()


def at_points(values: Tensor, chosen: Tensor) -> Tensor:
    """Return (B, C, N) of (B, C, H, W) at pixels; of all of them, in their order, what is there already."""
    values = values.flatten(2)
    if chosen.shape[-1] == values.shape[-1]:
        return values
    return values.gather(2, chosen[:, None].expand(-1, values.shape[1], -1))


def centred(chosen: Tensor, height: int, width: int) -> Tensor:
    """Return (B, 2, N) float32 centred coordinates of flat pixel indices (B, N)."""
    half_side = max(height, width) / 2
    x = ((chosen % width).float() - (width - 1) / 2) / half_side
    y = (torch.div(chosen, width, rounding_mode="floor").float() - (height - 1) / 2) / half_side
    return torch.stack([x, y], dim=1)


@kept(64)
def _grid(height: int, width: int, device: torch.device) -> Tensor:
    """Return (1, 2, H * W) float32 centred coordinates of all pixels."""
    return centred(torch.arange(height * width, device=device)[None], height, width)


def side_of_cells(height: int, width: int, max_points: int) -> int:
    """Smallest side of square cells such that at most about `max_points` of them cover the image; one fits at least."""
    return min(max(1, math.ceil(math.sqrt(height * width / max_points) - 0.05)), height, width)


def steepest_of_cells(slope: Tensor, mask: Tensor | None, *, cell_side: int) -> tuple[Tensor, Tensor]:
    """Pick the steepest usable pixel of every square cell.

    Args:
        slope: (B, 2, H, W).
        mask: (B, 1, H, W) float32 or None.
        cell_side: pixels; the ragged rows and columns at the far ends belong to no cell.

    Returns:
        chosen: (B, N) int64, flat pixel indices.
        usable: (B, N) bool.
    """
    batch, _, height, width = slope.shape
    usable = usable_pixels(slope, mask)
    if cell_side == 1:
        everything = torch.arange(height * width, device=slope.device)
        return everything.expand(batch, -1), usable.flatten(1).expand(batch, -1).contiguous()
    steepness = torch.where(usable, slope.square().sum(1, keepdim=True), -1.0)
    _, chosen = max_pool2d(steepness, cell_side, return_indices=True)
    chosen = chosen.flatten(1)
    return chosen, usable.flatten(1).expand(batch, -1).gather(1, chosen)
