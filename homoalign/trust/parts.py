"""Where each part of the overlap would rather lie, and where the corners would go if the parts had their way.

What looks right on the whole may be wrong where it counts: at the corners, beyond what agrees. So every block of the
warped source is sought in dst near the place where it lies, by the structure of both (normalised cross-correlation, all
shifts at once by FFT). Under a right answer most blocks lie best where they are, however little they look alike; under
a wrong one they scatter, or go together somewhere else. A homography through their shifts, robust and from standing
still (Geman and McClure, "Statistical methods for tomographic image reconstruction", 1987, ever narrower), says by how
much the corners would drift, and how well the blocks determine that.

B pairs, C channels, K blocks, H W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad

from homoalign import homography, kernels
from homoalign.homography import image_size
from homoalign.levels.fourier import fast_length
from homoalign.levels.metrics import warp_level
from homoalign.levels.pyramid import Level
from homoalign.levels.structure import Structure, describe
from homoalign.optimisation.schedule import HOMOGRAPHY

BLOCKS = 6
"""Along the shorter side of dst."""

LEAST_BLOCK_PX = 8

REACH = 1 / 18
"""Blocks are sought this share of the shorter side around their place: 27 px at 480."""

LEAST_REACH_PX = 4

LEAST_FILLED = 0.6
"""Least share of a block that is covered by the source."""

LEAST_STRUCTURE = 0.1
"""Least mean square of a block's channels, all together; where all is structure it is about 1."""

FAINT = 0.1
"""Parts of dst with less than this share of a block's mean energy correlate as if they had so much."""

HERE_480 = 5.0
"""A block whose best shift is shorter lies best where it is."""

ELSEWHERE = 2
"""Blocks that are taken to lie best elsewhere beside those that do: of very few, some agree by chance."""

WIDTHS_480 = (16.0, 8.0, 4.0, 4.0)
"""Of the robust loss, in turn: blocks whose shifts lie further from those of the others have no say."""

SHIFT_STD_PX = 0.5
"""Error of a block's shift before the scatter of all is known, pixels of the level; its variance..."""

LEAST_SCATTER = 0.1
"""... is at least this share of that."""

PRIOR_480 = 60.0
"""Standard deviation of the corners of dst where no block says anything; any larger one says the same."""

AGAINST_MODEL = 2.0
"""Chi-squared, for each parameter that the model of motion does not have, from which the blocks speak against it: what
any homography would do to the corners is asked then."""

NOT_BY_CHANCE = 9.2
"""Minus the logarithm of a bound on the chance that so many blocks lie best where they are: 1 in 10,000."""

MOST_480 = 200.0
FURTHEST = 6.0
"""Corners further from the centre than so many half sides are taken for so far."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the blocks say, (B,) float64 each.

    Attributes:
        here: share of the blocks with structure that lie best where they are; less where there are few.
        drift_480: root mean square by which the blocks would move the corners of src, pixels of a dst whose shorter
            side is 480, up to `MOST_480`.
        drift_std_480: its standard deviation, likewise.
        corner_covariance_480: (B, 4, 2, 2) of the corners, where the blocks are all that is known, pixels squared; NaN
            for corners behind the horizon.
        motion: (B, 3, 3) float64, what the blocks would do to the warped source, in centred coordinates of dst.
    """

    here: Tensor
    drift_480: Tensor
    drift_std_480: Tensor
    corner_covariance_480: Tensor
    motion: Tensor

    def select(self, index: Tensor) -> Parts:
        """Return the pairs that `index` (int64) names."""
        return Parts(*(getattr(self, field.name)[index] for field in fields(self)))

    def put(self, index: Tensor, parts: Parts) -> Parts:
        """Return these with the pairs that `index` (int64) names replaced by `parts`."""
        names = [field.name for field in fields(self)]
        return Parts(*(getattr(self, name).index_copy(0, index, getattr(parts, name)) for name in names))

    @classmethod
    def concatenate(cls, told: Sequence[Parts]) -> Parts:
        """Return the pairs of all of them."""
        return cls(*(torch.cat([getattr(parts, field.name) for parts in told]) for field in fields(cls)))

    def in_frame(self, share: float, into_box: Tensor) -> Parts:
        """Return what was told in a box of dst as it is told of the whole.

        Args:
            share: the box's shorter side over dst's.
            into_box: (3, 3), from centred coordinates of dst to those of the box.
        """
        return Parts(
            here=self.here,
            drift_480=share * self.drift_480,
            drift_std_480=share * self.drift_std_480,
            corner_covariance_480=share**2 * self.corner_covariance_480,
            motion=torch.linalg.inv(into_box) @ self.motion @ into_box,
        )


@dataclass(frozen=True, slots=True)
class Box:
    """A part of an image, pixels: from `top`, `left` up to, and without, `bottom`, `right`."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    def cut(self, values: Tensor) -> Tensor:
        """Return the part of (..., H, W)."""
        return values[..., self.top : self.bottom, self.left : self.right].contiguous()


def measure_parts(
    src: Level, dst: Level, dst_homo_src: Tensor, free: int = HOMOGRAPHY, box: Box | None = None
) -> Parts:
    """Seek every block of the warped source about its place.

    Args:
        src: source images of a level.
        dst: destination images of the same level.
        dst_homo_src: (B, 3, 3), of that level's pixels.
        free: how many parameters the model of motion has.
        box: the part of dst to look at, narrow; None: all of it.
    """
    warped, covered = warp_level(src, dst, dst_homo_src)
    from_src = describe(Level(warped[:, None], covered[:, None].to(warped)))
    return seek_blocks(from_src, describe(dst), dst_homo_src, image_size(src.image), free, box)


def seek_blocks(
    from_src: Structure,
    in_dst: Structure,
    dst_homo_src: Tensor,
    src_size: tuple[int, int],
    free: int = HOMOGRAPHY,
    box: Box | None = None,
) -> Parts:
    """Seek every block of what is known of the warped source in what is known of dst.

    Args:
        from_src: of the warped source, an even number of channels whose mean square, all together, is about 1.
        in_dst: of dst, likewise.
        dst_homo_src: (B, 3, 3), of that level's pixels.
        src_size: (height, width) of src, pixels.
        free: how many parameters the model of motion has.
        box: the part of dst to look at, narrow; None: all of it.
    """
    size = image_size(in_dst.channels)
    reach = max(LEAST_REACH_PX, round(REACH * min(size)))
    if box is None:
        side = min(max(LEAST_BLOCK_PX, min(size) // BLOCKS), *size)
    else:
        side = min(max(LEAST_BLOCK_PX, round(math.sqrt(math.prod(box.size))) // BLOCKS), *box.size)
    grid = lay_grid(box or Box(0, 0, *size), side)
    seek = _seek_compiled if kernels.serves(in_dst.channels) else _seek
    counts, place = seek(from_src, in_dst, grid, reach)
    shift, places = place - reach, _centres(grid, place.device)
    motion, covariance = _fit_motion(places, shift, counts, size, HOMOGRAPHY)
    parts = _tell(motion, covariance, shift, counts, dst_homo_src, src_size, size)
    if free == HOMOGRAPHY:
        return parts
    by_chance = math.pi * (HERE_480 * min(size) / 480) ** 2 / (2 * reach + 1) ** 2
    is_told = ~_speaks_against(motion[:, free:], covariance[:, free:, free:]) & _is_agreed(parts, counts, by_chance)
    index = torch.nonzero(is_told)[:, 0]
    motion, covariance = _fit_motion(places, shift, counts, size, free)
    return parts.put(index, _tell(motion, covariance, shift, counts, dst_homo_src, src_size, size).select(index))


def lay_grid(box: Box, side: int) -> kernels.Grid:
    """Return as many blocks of this side as a box holds, in its middle."""
    height, width = box.size
    return kernels.Grid(
        top=box.top + height % side // 2,
        left=box.left + width % side // 2,
        rows=height // side,
        columns=width // side,
        side=side,
    )


def _seek(from_src: Structure, in_dst: Structure, grid: kernels.Grid, reach: int) -> tuple[Tensor, Tensor]:
    """Seek the blocks of a grid up to `reach` pixels about their places.

    Returns:
        counts: (B, K) bool, whether a block says anything.
        place: (B, K, 2) float64, x and y of the best shift, from the one by -reach on.
    """
    template = _blocks(torch.cat([from_src.channels, from_src.usable], dim=1), grid, 0)
    energy, filled = template[:, :-1].square().sum(1), template[:, -1]
    counts = (filled.mean((-2, -1)) > LEAST_FILLED) & (energy.mean((-2, -1)) > LEAST_STRUCTURE)
    found = _correlate(template[:, :-1], filled, _blocks(in_dst.channels, grid, reach), 2 * reach + 1)
    return counts, _peak(found)


def _seek_compiled(from_src: Structure, in_dst: Structure, grid: kernels.Grid, reach: int) -> tuple[Tensor, Tensor]:
    """Do what `_seek` does, on the processor."""
    own, known, under = kernels.block_energies(from_src.channels, from_src.usable[:, 0], in_dst.channels, grid, reach)
    area = grid.side**2
    counts = (known > LEAST_FILLED * area) & (own > LEAST_STRUCTURE * area)
    length = fast_length(grid.side + 2 * reach)
    of_template = torch.fft.fft2(kernels.cut(from_src.channels, grid, 0, length))
    of_search = torch.fft.fft2(kernels.cut(in_dst.channels, grid, reach, length))
    both = torch.fft.ifft2(kernels.cross_spectrum(of_template, of_search))
    return counts, kernels.peaks(both, own, under, _faint(own))


def _faint(own: Tensor) -> Tensor:
    """Return (B, K), the least energy that dst is taken to have under a block, of the blocks' energies."""
    return (FAINT * own.mean(-1, keepdim=True) + 1e-6).expand_as(own)


def _blocks(values: Tensor, grid: kernels.Grid, margin: int) -> Tensor:
    """Cut (B, C, H, W) into (B, C, K, side + 2 * margin, side + 2 * margin); beyond the border is zero."""
    top, left, rows, columns, side = grid
    around = pad(values, (margin,) * 4)
    cut = around[..., top : top + rows * side + 2 * margin, left : left + columns * side + 2 * margin]
    full = side + 2 * margin
    return cut.unfold(-2, full, side).unfold(-2, full, side).flatten(2, 3)


def _centres(grid: kernels.Grid, device: torch.device) -> Tensor:
    """Return (K, 2) float64, x and y of the blocks' centres."""
    y, x = (
        start + grid.side * torch.arange(count, dtype=torch.float64, device=device) + (grid.side - 1) / 2
        for start, count in ((grid.top, grid.rows), (grid.left, grid.columns))
    )
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)


def _correlate(template: Tensor, filled: Tensor, search: Tensor, count: int) -> Tensor:
    """Correlate each block with dst about its place.

    Args:
        template: (B, C, K, S, S) channels of the warped source, zero where not known.
        filled: (B, K, S, S), 1 where they are known.
        search: (B, C, K, S', S') channels of dst.
        count: of shifts along each axis, S' - S + 1.

    Returns:
        (B, K, count, count) in [-1, 1], rows by shifts along y.
    """
    size = (fast_length(search.shape[-1]),) * 2
    # The real part of a product of conjugates is that of cosines plus that of sines: two channels for one transform.
    of_template, of_search = (torch.fft.fft2(_as_complex(values), s=size) for values in (template, search))
    both = torch.fft.ifft2((of_template.conj() * of_search).sum(1)).real[..., :count, :count]
    of_filled, of_energy = (torch.fft.rfft2(values, s=size) for values in (filled, search.square().sum(1)))
    energy = torch.fft.irfft2(of_filled.conj() * of_energy, s=size)[..., :count, :count]
    own = template.square().sum((1, -2, -1))
    floor = _faint(own)[..., None, None]
    found: Tensor = both / ((own[..., None, None] + 1e-6) * energy.maximum(floor)).sqrt()
    return found


def _as_complex(values: Tensor) -> Tensor:
    """Return (B, C / 2, ...) complex, cosine and sine of each harmonic of (B, C, ...) in one."""
    return torch.complex(values[:, 0::2].contiguous(), values[:, 1::2].contiguous())


def _peak(found: Tensor) -> Tensor:
    """Return (B, K, 2) float64, x and y of the largest entry of (B, K, N, N), by parabolas to a part of a pixel."""
    count = found.shape[-1]
    best = found.flatten(2).argmax(-1)
    y, x = best // count, best % count
    around = pad(found, (1, 1, 1, 1), mode="replicate").flatten(2)
    stride = count + 2
    here = (y + 1) * stride + x + 1

    def value(offset: int) -> Tensor:
        return around.gather(2, (here + offset)[..., None])[..., 0].double()

    def vertex(step: int) -> Tensor:
        before, middle, after = value(-step), value(0), value(step)
        return (0.5 * (after - before) / (2 * middle - before - after).clamp_min(1e-4)).clamp(-0.5, 0.5)

    return torch.stack([x + vertex(1), y + vertex(stride)], dim=-1)


def _fit_motion(
    places: Tensor, shift: Tensor, counts: Tensor, dst_size: tuple[int, int], free: int
) -> tuple[Tensor, Tensor]:
    """Fit the motion that the blocks ask for.

    Args:
        places: (K, 2) float64, dst pixels.
        shift: (B, K, 2) float64, pixels.
        counts: (B, K) bool, whether a block says anything.
        dst_size: (height, width), pixels.
        free: of how many parameters, the first ones of `homography.velocities`; the others stand still.

    Returns:
        motion: (B, 8) float64.
        covariance: (B, 8, 8), zero for what stands still.
    """
    at_480 = 480 / min(dst_size)
    of_blocks = _jacobian(places, dst_size)
    frame = _jacobian(homography.image_corners(*dst_size, device=shift.device), dst_size).flatten(0, 1)
    prior = frame.mT @ frame / (4 * PRIOR_480**2)
    still = torch.arange(HOMOGRAPHY, device=shift.device) >= free
    of_blocks = of_blocks.masked_fill(still, 0.0)
    prior = prior.masked_fill(still | still[:, None], 0.0) + torch.diag(still.to(prior))
    shift, variance = at_480 * shift, (at_480 * SHIFT_STD_PX) ** 2
    if kernels.serves(shift, torch.float64):
        widths = shift.new_tensor(WIDTHS_480)
        settings = (variance, LEAST_SCATTER, free)
        motion, covariance = kernels.common_motion(of_blocks, shift, counts, prior, widths, settings)
    else:
        motion, covariance = _common_motion(of_blocks, shift, counts, prior, variance, free)
    return motion, covariance.masked_fill(still | still[:, None], 0.0)


def _is_agreed(parts: Parts, counts: Tensor, by_chance: float) -> Tensor:
    """Return (B,) bool, whether more blocks lie best where they are than would by chance: few parameters fit any few.

    By Chernoff's bound on a binomial tail ("A measure of asymptotic efficiency for tests of a hypothesis based on the
    sum of observations", Annals of Mathematical Statistics 1952).
    """
    count = counts.sum(-1).double()
    share = (parts.here * (count + ELSEWHERE) / count.clamp_min(1)).clamp(1e-9, 1 - 1e-9)
    divergence = share * (share / by_chance).log() + (1 - share) * ((1 - share) / (1 - by_chance)).log()
    agreed: Tensor = (share > by_chance) & (count * divergence > NOT_BY_CHANCE)
    return agreed


def _speaks_against(motion: Tensor, covariance: Tensor) -> Tensor:
    """Return (B,) bool, whether parameters (B, p) are unlike zero for all that their covariance (B, p, p) leaves open.

    By their Mahalanobis distance (Wald, "Tests of statistical hypotheses concerning several parameters when the number
    of observations is large", Transactions of the American Mathematical Society 1943).
    """
    whitened, info = torch.linalg.solve_ex(covariance, motion[..., None])
    distance = (motion * whitened[..., 0]).sum(-1)
    speaks: Tensor = (info != 0) | ~(distance <= AGAINST_MODEL * motion.shape[-1])
    return speaks


def _jacobian(xy: Tensor, dst_size: tuple[int, int]) -> Tensor:
    """Return (..., 2, 8), how points (..., 2) of dst move with the parameters, pixels at 480."""
    from_centred = homography.pixels_from_centred(*dst_size, device=xy.device)
    half_side, centre = from_centred[0, 0], from_centred[:2, 2]
    u = ((xy - centre) / half_side).clamp(-FURTHEST, FURTHEST)
    motion = homography.velocities(u[..., 0], u[..., 1])
    full = torch.stack([torch.stack(pair, dim=-1) for pair in motion], dim=-1)
    return 480 / min(dst_size) * half_side * full


def _tell(
    motion: Tensor,
    covariance: Tensor,
    shift: Tensor,
    counts: Tensor,
    dst_homo_src: Tensor,
    src_size: tuple[int, int],
    dst_size: tuple[int, int],
) -> Parts:
    """Say what the blocks' motion, as `_fit_motion` returns it, would do to the corners of src.

    Args:
        motion: (B, 8) float64.
        covariance: (B, 8, 8).
        shift: (B, K, 2) float64, of the blocks, pixels.
        counts: (B, K) bool, whether a block says anything.
        dst_homo_src: (B, 3, 3).
        src_size: (height, width), pixels.
        dst_size: (height, width), pixels.
    """
    corners = homography.image_corners(*src_size, device=shift.device).expand(len(shift), 4, 2)
    of_corners = _jacobian(homography.warp_points(dst_homo_src, corners), dst_size)  # (B, 4, 2, 8)
    drift = torch.einsum("bcip,bp->bci", of_corners, motion).square().sum(-1).mean(-1).sqrt()
    corner_covariance = of_corners @ covariance[:, None] @ of_corners.mT
    spread = corner_covariance.diagonal(dim1=-2, dim2=-1).sum(-1).mean(-1).sqrt()
    is_here = counts & ((480 / min(dst_size) * shift).square().sum(-1) < HERE_480**2)
    return Parts(
        here=is_here.sum(-1) / (counts.sum(-1) + ELSEWHERE).double(),
        drift_480=drift.nan_to_num(MOST_480).clamp_max(MOST_480),
        drift_std_480=spread.nan_to_num(MOST_480).clamp_max(MOST_480),
        corner_covariance_480=corner_covariance,
        motion=homography.motion_of_step(motion),
    )


def _common_motion(
    jacobian: Tensor, shift: Tensor, counts: Tensor, prior: Tensor, variance: float, free: int
) -> tuple[Tensor, Tensor]:
    """Fit one motion to the blocks' shifts, robustly.

    Args:
        jacobian: (K, 2, 8) float64, of shifts over motions, pixels at 480.
        shift: (B, K, 2) float64, likewise.
        counts: (B, K) bool, whether a block says anything.
        prior: (8, 8) float64, information on the motion where no block says anything.
        variance: of a shift before the scatter of all is known.
        free: how many of the eight parameters there are.

    Returns:
        motion: (B, 8) float64.
        covariance: (B, 8, 8).
    """
    motion = shift.new_zeros(len(shift), 8)
    for width in WIDTHS_480:
        squared = (shift - _moved(jacobian, motion)).square().sum(-1)
        weight = counts * (width**2 / (width**2 + squared)).square()
        told = torch.einsum("bk,kip,kiq->bpq", weight, jacobian, jacobian) / variance
        asked = torch.einsum("bk,kip,bki->bp", weight, jacobian, shift) / variance
        motion = torch.linalg.solve_ex(told + prior, asked).result
    squared = (shift - _moved(jacobian, motion)).square().sum(-1)
    scatter = (weight * squared).sum(-1) / (2 * weight.sum(-1) - free).clamp_min(1)
    information = told * (variance / scatter.clamp_min(LEAST_SCATTER * variance))[:, None, None] + prior
    return motion, torch.linalg.inv_ex(information).inverse


def _moved(jacobian: Tensor, motion: Tensor) -> Tensor:
    """Return (B, K, 2), what (B, 8) motions do where (K, 2, 8) is their Jacobian."""
    return torch.einsum("kip,bp->bki", jacobian, motion)
