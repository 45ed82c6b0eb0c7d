"""The pairs that benchmarks measure on, and how the rendered ones are drawn.

A rendered pair follows from the seed and its number alone, so a longer run holds a shorter one, and the cases of one
benchmark (noise, light, cover) share motion, photograph and noise pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.bench.options import RenderOptions
from jobs.bench.photographs import gray_scene, resized_gray, resized_scene
from jobs.rendering.degrade import add_noise, add_photon_noise, add_speckle, to_uint8
from jobs.rendering.synthetic import (
    Image,
    Matrix,
    RenderedPair,
    Scene,
    Size,
    corner_points,
    homography_from_corners,
    random_homography,
    render_pair,
    similarity_homography,
    warp_points,
)

# Independent streams of random numbers of one pair.
MOTION, NOISE, CHANGE, START = range(4)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchPair:
    """Two images and the truth.

    Attributes:
        number: position in its benchmark, from 0; the same in every case.
        name: what a person finds it by: the photograph, or the manifest's pair_id.
        case: which of the benchmark's cases it is.
        src: (H, W) or (H, W, 3), integers or floats as `homoalign.align` takes them.
        dst: likewise; its size may differ.
        dst_homo_src: (3, 3) float64, the truth; NaN where no answer is right.
        bound_px: Cramer-Rao bound on the mean corner error; NaN where none was asked for.
        src_mask: (H, W) bool, True is used; or None.
        dst_mask: likewise.
        landmarks: (N, 2) points of src and the same of dst, pixels; or None.
    """

    number: int
    name: str
    case: str
    src: npt.NDArray[Any]
    dst: npt.NDArray[Any]
    dst_homo_src: Matrix
    bound_px: float = math.nan
    src_mask: npt.NDArray[np.bool_] | None = None
    dst_mask: npt.NDArray[np.bool_] | None = None
    landmarks: tuple[Matrix, Matrix] | None = None


NOISES = {"white": add_noise, "photons": add_photon_noise, "speckle": add_speckle}
"""Kinds of noise: the same everywhere, growing with the square root of the intensity, growing with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A rendered pair before anything happens to it."""

    number: int
    name: str
    seed: int
    views: RenderedPair

    def rng(self, stream: int) -> np.random.Generator:
        """Return a fresh generator of one of the pair's streams: two calls give the same numbers."""
        return stream_of(self.seed, self.number, stream)

    def noisy(
        self, sigma_8bit: float, *, src: Image | None = None, dst: Image | None = None, kind: str = "white"
    ) -> list[Image]:
        """Return src and dst (the views where not given) with the pair's own noise, one of `NOISES`, not rounded."""
        rng = self.rng(NOISE)
        views = (self.views.src if src is None else src, self.views.dst if dst is None else dst)
        return [NOISES[kind](view, sigma_8bit=sigma_8bit, rng=rng) for view in views]

    def as_pair(self, case: str, images: Sequence[Image], bound_px: float) -> BenchPair:
        """Return src and dst as they are now, rounded to 8 bits, with the truth."""
        src, dst = map(to_uint8, images)
        return BenchPair(
            number=self.number,
            name=self.name,
            case=case,
            src=src,
            dst=dst,
            dst_homo_src=self.views.dst_homo_src,
            bound_px=bound_px,
        )


def stream_of(seed: int, number: int, stream: int) -> np.random.Generator:
    """Return the generator of one stream of one pair."""
    return np.random.default_rng([seed, number, stream])


def draw_pairs(render: RenderOptions, *, size: int, offset_px: float) -> Iterator[Drawn]:
    """Render pairs of `size` x `size`, each corner moved uniformly in a square of half side `offset_px`."""
    for number in range(render.pairs):
        yield draw_pair(render, number, size=(size, size), offset_px=offset_px)


def draw_pair(
    render: RenderOptions, number: int, *, size: Size, offset_px: float, scene: Callable[[str], Scene] = gray_scene
) -> Drawn:
    """Render one pair, each corner moved uniformly in a square.

    Both views come from a finer scene (`rendering.synthetic.render_pair`): the truth is exact and neither resamples the
    other. Where a photograph is smaller than both frames together, the scene goes on mirrored.

    Args:
        render: seed and photographs.
        number: of the pair, from 0.
        size: height, width of both views.
        offset_px: half the square's side.
        scene: gives a photograph's scene by name.
    """
    name = render.photographs[number % len(render.photographs)]
    rng = stream_of(render.seed, number, MOTION)
    dst_homo_src = random_homography(rng, size, offset_px)
    views = render_pair(scene(name), dst_homo_src, size, rng=rng)
    return Drawn(number=number, name=name, seed=render.seed, views=views)


def offset_of(size: Size) -> float:
    """Return the motion that goes with a size where motion is a share of it: 10 px at 256, by the shorter side."""
    return 10 * min(size) / 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """How far a pair of the capture-range protocol is apart.

    Attributes:
        size: of the square patches, px.
        offset_px: each corner moves uniformly in a square of this half side.
        any_rotation: turn by 0 to 360 degrees as well.
        scales: scale by a factor between these, its logarithm uniform.
    """

    size: int
    offset_px: float
    any_rotation: bool = False
    scales: tuple[float, float] = (1.0, 1.0)

    @property
    def photo_size(self) -> Size:
        """Height and width a photograph is resized to: 240 x 320 for patches of 128."""
        return round(self.size * 15 / 8), round(self.size * 5 / 2)

    @property
    def is_classic(self) -> bool:
        """Return whether it is the published protocol: corners alone."""
        return not self.any_rotation and self.scales == (1.0, 1.0)


def draw_range_pairs(render: RenderOptions, far: Range, *, sigma_8bit: float) -> Iterator[BenchPair]:
    """Render pairs of the deep-homography protocol, and of its extension to rotation and scale."""
    for number in range(render.pairs):
        name = render.photographs[number % len(render.photographs)]
        rng = stream_of(render.seed, number, MOTION)
        views = _classic_views(name, far, rng) if far.is_classic else _turned_views(name, far, rng)
        drawn = Drawn(number=number, name=name, seed=render.seed, views=views)
        src, dst = map(to_uint8, drawn.noisy(sigma_8bit))
        yield BenchPair(number=number, name=name, case="", src=src, dst=dst, dst_homo_src=views.dst_homo_src)


def _classic_views(name: str, far: Range, rng: np.random.Generator) -> RenderedPair:
    """Cut a patch from a photograph (dst) and from the same place of the photograph warped (src).

    As in DeTone, Malisiewicz and Rabinovich, "Deep Image Homography Estimation" (2016), and the code of its followers
    (IHN, RHWF, MCNet): a homography takes the patch's corners to the moved ones, and the photograph is warped by its
    inverse, linearly interpolated. All moved corners stay inside the photograph, so src holds no border.

    The warped patch is src, because what the papers score is the four moved corners: so their mean average corner
    error is the mean corner error here. The other way round a corner of the same pair may map to thousands of pixels.
    """
    import cv2

    height, width = far.photo_size
    photo = resized_gray(name, width)
    margin = math.ceil(far.offset_px)
    room = (width - far.size - 2 * margin, height - far.size - 2 * margin)
    left, top = (int(margin + rng.integers(0, side + 1)) for side in room)
    corners = corner_points((far.size, far.size))
    moved_homo_patch = random_homography(rng, (far.size, far.size), far.offset_px)
    place = np.array([left, top], dtype=np.float64)
    moved_homo_photo = homography_from_corners(corners + place, warp_points(moved_homo_patch, corners) + place)
    warped = cv2.warpPerspective(photo, np.linalg.inv(moved_homo_photo), (width, height), flags=cv2.INTER_LINEAR)
    cut = np.s_[top : top + far.size, left : left + far.size]
    return RenderedPair(np.asarray(warped[cut], dtype=np.float32), photo[cut], moved_homo_patch)


def _turned_views(name: str, far: Range, rng: np.random.Generator) -> RenderedPair:
    """Render both views from the resized photograph, which goes on mirrored where dst sees past its edge."""
    size = (far.size, far.size)
    dst_homo_src = random_turned_homography(rng, size, far.offset_px, any_rotation=far.any_rotation, scales=far.scales)
    return render_pair(resized_scene(name, far.photo_size[1]), dst_homo_src, size, rng=rng)


def random_turned_homography(
    rng: np.random.Generator, size: Size, max_offset_px: float, *, any_rotation: bool, scales: tuple[float, float]
) -> Matrix:
    """Return `dst_homo_src` that moves each corner uniformly in a square, then turns and scales about the centre.

    Args:
        rng: where the draws come from.
        size: height, width of both frames.
        max_offset_px: half the square's side.
        any_rotation: turn by 0 to 360 degrees.
        scales: scale by a factor between these, its logarithm uniform.

    Raises:
        ValueError: 1000 draws in a row bring a corner near the horizon.
    """
    for _ in range(1000):
        angle_deg = rng.uniform(0, 360) if any_rotation else 0.0
        scale = math.exp(rng.uniform(*np.log(scales)))
        turn = similarity_homography(size, angle_deg=angle_deg, scale=scale)
        dst_homo_src: Matrix = turn @ random_homography(rng, size, max_offset_px)
        src_homo_dst = np.linalg.inv(dst_homo_src).astype(np.float64)
        if min(_depth_ratio(dst_homo_src, size), _depth_ratio(src_homo_dst, size)) > 0.25:
            return dst_homo_src
    raise ValueError(f"{size}, max_offset_px={max_offset_px}: a corner is at the horizon in each of 1000 draws")


def _depth_ratio(H_b_a: Matrix, size: Size) -> float:
    """Return the least depth of a frame's corners over the greatest; 0 and below is at the horizon or behind it."""
    depth = np.column_stack([corner_points(size), np.ones(4)]) @ H_b_a[2]
    return float(depth.min() / depth.max()) if depth.max() > 0 else -1.0
