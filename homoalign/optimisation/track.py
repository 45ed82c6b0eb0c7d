"""Pairs on their way through a solver, and what it hands on.

B pairs, H W rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign import homography
from homoalign.arguments import Pairs
from homoalign.config import AlignConfig
from homoalign.homography import image_size
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment
from homoalign.optimisation.trace import LevelTrace, append_level, merged
from homoalign.status import StopReason


@dataclass(frozen=True, slots=True)
class Track:
    """Pairs on their way through the solver.

    Attributes:
        src: pyramid of the gray source images, full size first.
        dst: pyramid of the gray destination images, as many levels.
        pairs: the images as they came, which the tutorial's solver runs on.
        start: where the solver starts, pixels of the first levels.
        gt: (B, 3, 3) truth, likewise and on the images' device; or None.
        config: what changes the answer.
        trace: whether `levels` is wanted.
        coarsest: the level where the solver begins.
        is_near: whether the starts were refined already.
    """

    src: list[Level]
    dst: list[Level]
    pairs: Pairs
    start: Alignment
    gt: Tensor | None
    config: AlignConfig
    trace: bool
    coarsest: int
    is_near: bool

    def select(self, index: Tensor) -> Track:
        """Return the pairs that `index` (int64) names."""
        return replace(
            self,
            src=[level.select(index) for level in self.src],
            dst=[level.select(index) for level in self.dst],
            pairs=self.pairs.select(index.cpu()),
            start=self.start.select(index),
            gt=None if self.gt is None else self.gt[index],
        )

    @property
    def noise(self) -> Tensor:
        """(B, 2) float64, standard deviations of the noise of src and of dst, full size."""
        return torch.stack([self.src[0].noise, self.dst[0].noise], dim=-1)

    def with_noise(self, noise: Tensor) -> Track:
        """Return the pairs with (B, 2) `noise` instead of what the images show."""
        sides = zip((self.src, self.dst), noise.unbind(-1), strict=True)
        src, dst = ([replace(pyramid[0], known_noise=known), *pyramid[1:]] for pyramid, known in sides)
        return replace(self, src=src, dst=dst)

    def is_louder_than(self, other: Track) -> Tensor:
        """Return (B,) bool, where the same pairs have more noise here than in `other`."""
        return (self.noise > other.noise).any(-1)

    def shallow(self, min_side_px: int) -> Track:
        """Return the same without the levels whose shorter side is below this, but with two levels at least."""
        sides = [
            min(*image_size(src.image), *image_size(dst.image)) for src, dst in zip(self.src, self.dst, strict=True)
        ]
        count = max(2, sum(side >= min_side_px for side in sides))
        return replace(self, src=self.src[:count], dst=self.dst[:count], coarsest=min(self.coarsest, count - 1))


@dataclass(frozen=True, slots=True)
class Descent:
    """Where pairs are after some levels.

    Attributes:
        state: so far.
        num_iterations: (B,) int32.
        needs_light: (B,) bool, whether light is to be told before the first run of the full size, as after levels of
            locally normalised images, which say nothing of it.
        levels: traces of the levels so far.
    """

    state: Alignment
    num_iterations: Tensor
    needs_light: Tensor
    levels: list[list[LevelTrace]]

    def put(self, index: Tensor, part: Descent) -> Descent:
        """Return this with the pairs that `index` (int64) names replaced by `part`."""
        levels = list(self.levels)
        for i, pair in zip(index.tolist(), part.levels, strict=True):
            levels[i] = pair
        return Descent(
            self.state.put(index, part.state),
            self.num_iterations.index_copy(0, index, part.num_iterations),
            self.needs_light.index_copy(0, index, part.needs_light),
            levels,
        )


@dataclass(frozen=True, slots=True)
class Solved:
    """What a solver hands to the metrics.

    Attributes:
        alignment: the answers.
        stop_reason: why each pair stopped at its last level.
        num_iterations: (B,) int32, over all levels.
        scale: (B,) robust standard deviation of the residual, intensities in [0, 1]; NaN where not estimated.
        fitted_scale: (B,) the same with all of dst's light fitted; NaN likewise.
        covariance: (B, P, P) of the parameters, the first eight those of sl(3); NaN where not estimated.
        levels: the traces, coarse to fine; empty unless asked for.
        noise: (B, 2) `Track.noise`, by what the last one on intensities left where that tells it better than images do.
        blurrier: (B,) int64, `blur.compare_sharpness`; 0 where not asked.
    """

    alignment: Alignment
    stop_reason: list[StopReason]
    num_iterations: Tensor
    scale: Tensor
    fitted_scale: Tensor
    covariance: Tensor
    levels: list[list[LevelTrace]]
    noise: Tensor
    blurrier: Tensor

    def select(self, index: Tensor) -> Solved:
        """Return the pairs that `index` (int64) names."""
        rows = index.tolist()
        return Solved(
            self.alignment.select(index),
            [self.stop_reason[i] for i in rows],
            self.num_iterations[index],
            self.scale[index],
            self.fitted_scale[index],
            self.covariance[index],
            [self.levels[i] for i in rows],
            self.noise[index],
            self.blurrier[index],
        )

    def put(self, index: Tensor, part: Solved) -> Solved:
        """Return this with the answers of `part`, the next solver's, for the pairs that `index` names."""
        stop, levels = list(self.stop_reason), list(self.levels)
        for k, i in enumerate(index.tolist()):
            stop[i] = part.stop_reason[k]
            levels[i] = merged(levels[i], part.levels[k])
        covariance = self.covariance.clone()
        covariance[index, :8, :8] = part.covariance[:, :8, :8]
        return Solved(
            self.alignment.put(index, part.alignment),
            stop,
            self.num_iterations.index_add(0, index, part.num_iterations),
            self.scale,
            self.fitted_scale,
            covariance,
            levels,
            self.noise,
            self.blurrier,
        )


def append_trace(
    levels: list[list[LevelTrace]], track: Track, level: int, state: Alignment, num_iterations: Tensor
) -> None:
    """Add a finished level to every pair's trace, where traces are wanted."""
    if not track.trace:
        return
    truth = None if track.gt is None else homography.rescale(track.gt, level)
    matrix = homography.rescale(state.dst_homo_src, level)
    append_level(levels, level, track.src[level], track.dst[level], matrix, truth, num_iterations)
