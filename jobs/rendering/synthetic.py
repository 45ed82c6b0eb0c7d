"""Image pairs with exact truth, made from the photographs that ship inside scikit-image's wheel.

A photograph becomes a `Scene`: a continuous function, its cubic spline. A view of it is what a camera with a Gaussian
point spread, fixed in the camera's own pixels, would record. Both images of a pair are such views from oblique frames
of a finer original, so neither is a resample of the other, and the homography between them is exact by construction.

```
photograph -> scene -> two views + dst_homo_src -> degradations (jobs.rendering.degrade) -> encoded files
```

`H_b_a` takes pixels of a to pixels of b, centres at integers. Images are (H, W) or (H, W, 3) float32 in [0, 1].
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.errors import UsageError

Image = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]
Size = tuple[int, int]
"""Height, width."""

PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cell": "cell.png",
    "chelsea": "chelsea.png",
    "clock_motion": "clock_motion.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "ihc": "ihc.png",
    "moon": "moon.png",
    "motorcycle_left": "motorcycle_left.png",
    "motorcycle_right": "motorcycle_right.png",
    "page": "page.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "text": "text.png",
}
"""Photograph to file; all of them are in the wheel, none is ever downloaded."""

PSF_SIGMA_PX = 0.6
"""Point spread of the rendered camera; passes 17 % at the Nyquist frequency, as sharp lenses do."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A photograph as a continuous function of its own pixel coordinates, mirrored past its edges."""

    coefficients: Image
    """(C, H, W) cubic spline coefficients, C is 1 or 3."""

    @property
    def size(self) -> Size:
        """Height and width of the photograph."""
        return self.coefficients.shape[1], self.coefficients.shape[2]


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """Two views of one scene, not yet degraded; values may overshoot [0, 1] by a little, as splines do."""

    src: Image
    dst: Image
    dst_homo_src: Matrix
    """(3, 3) float64, exact, [2, 2] = 1."""


def load_photograph(name: str) -> Image:
    """Read a photograph of scikit-image's wheel.

    Returns:
        (H, W) or (H, W, 3) float32 in [0, 1].

    Raises:
        UsageError: the name is none of `PHOTOGRAPHS`, or scikit-image is not installed.
    """
    from PIL import Image as PillowImage

    if name not in PHOTOGRAPHS:
        raise UsageError(f"photograph {name!r} is none of {', '.join(PHOTOGRAPHS)}")
    package = importlib.util.find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        raise UsageError("the photographs come with scikit-image: pip install 'homoalign[demo]'")
    with PillowImage.open(Path(package.submodule_search_locations[0], "data", PHOTOGRAPHS[name])) as file:
        return np.asarray(file, dtype=np.float32) / np.float32(255)


def build_scene(photograph: Image) -> Scene:
    """Return the cubic spline through a photograph's pixels."""
    from scipy.ndimage import spline_filter  # type: ignore[import-untyped]

    channels = np.atleast_3d(photograph).transpose(2, 0, 1)
    return Scene(np.stack([spline_filter(channel, 3, output=np.float32, mode="mirror") for channel in channels]))


@lru_cache(maxsize=4)
def load_scene(name: str, *, gray: bool = False) -> Scene:
    """Return the scene of a photograph of `PHOTOGRAPHS`, kept for the next call; RGB becomes gray where asked for."""
    photograph = load_photograph(name)
    return build_scene(to_gray(photograph) if gray else photograph)


def to_gray(image: Image) -> Image:
    """Return (H, W): Rec. 601 luma of an RGB image, a gray image as it is."""
    return image @ np.array([0.299, 0.587, 0.114], dtype=np.float32) if image.ndim == 3 else image


def corner_points(size: Size) -> Matrix:
    """Return the (4, 2) centres of the corner pixels: top-left, top-right, bottom-right, bottom-left."""
    height, width = size
    return np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=np.float64)


def warp_points(H_b_a: Matrix, xy_a: Matrix) -> Matrix:
    """Map (N, 2) pixels of a to pixels of b; NaN on or behind the horizon."""
    xyw = np.column_stack([xy_a, np.ones(len(xy_a))]) @ H_b_a.T
    w = np.where(xyw[:, 2:] > 0, xyw[:, 2:], np.nan)
    return xyw[:, :2] / w


def homography_from_corners(xy_a: Matrix, xy_b: Matrix) -> Matrix:
    """Return `H_b_a` that takes four points to four points, each (4, 2)."""
    rows = []
    for (x, y), (u, v) in zip(xy_a, xy_b, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return np.append(np.linalg.solve(np.array(rows), xy_b.reshape(8)), 1.0).reshape(3, 3)


def frame_homography(dst_size: Size, src_size: Size) -> Matrix:
    """Return `dst_homo_src` that lays the src frame, edge to edge, on the dst frame."""
    scale_y, scale_x = dst_size[0] / src_size[0], dst_size[1] / src_size[1]
    return np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]])


def similarity_homography(size: Size, *, angle_deg: float = 0.0, scale: float = 1.0) -> Matrix:
    """Return the homography that turns and scales a frame about its centre."""
    cos, sin = scale * math.cos(math.radians(angle_deg)), scale * math.sin(math.radians(angle_deg))
    centre_y, centre_x = (size[0] - 1) / 2, (size[1] - 1) / 2
    return np.array(
        [
            [cos, -sin, centre_x - cos * centre_x + sin * centre_y],
            [sin, cos, centre_y - sin * centre_x - cos * centre_y],
            [0.0, 0.0, 1.0],
        ]
    )


def random_homography(
    rng: np.random.Generator, src_size: Size, max_offset_px: float, *, dst_size: Size | None = None
) -> Matrix:
    """Return `dst_homo_src` that lays frame on frame, then moves each corner uniformly in a square.

    Draws again where the corners' quadrilateral would fold.

    Args:
        rng: where the draws come from.
        src_size: height, width.
        max_offset_px: half the square's side, destination pixels.
        dst_size: of the destination; src's without it.

    Raises:
        ValueError: 1000 draws in a row fold, as those of a frame without area do.
    """
    corners = corner_points(src_size)
    laid = warp_points(frame_homography(dst_size or src_size, src_size), corners)
    for _ in range(1000):
        moved = laid + rng.uniform(-max_offset_px, max_offset_px, size=(4, 2))
        edges = np.roll(moved, -1, axis=0) - moved
        following = np.roll(edges, -1, axis=0)
        turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
        if turns.min() > 0:  # convex and not turned over: no point of the frame reaches the horizon
            return homography_from_corners(corners, moved)
    raise ValueError(f"a frame of {src_size} folds in each of 1000 draws with max_offset_px={max_offset_px}")


def render_view(scene: Scene, scene_homo_view: Matrix, size: Size, *, psf_sigma_px: float = PSF_SIGMA_PX) -> Image:
    """Return what a camera in the given frame would record.

    Args:
        scene: what it looks at.
        scene_homo_view: (3, 3) float64, view pixels to scene pixels.
        size: height, width of the view.
        psf_sigma_px: standard deviation of the Gaussian point spread, view pixels.

    Returns:
        (H, W) or (H, W, 3) float32.
    """
    from scipy.ndimage import correlate1d, map_coordinates

    height, width = size
    # Enough samples a pixel that neither the scene's finest detail nor the point spread is itself aliased.
    samples = max(2, math.ceil(_largest_step(scene_homo_view, size)))
    margin = math.ceil(4 * psf_sigma_px)
    y, x = (np.arange(-margin * samples, (side - 1 + margin) * samples + 1) / samples for side in size)
    scene_x, scene_y, w = np.einsum(
        "ij,jhw->ihw", scene_homo_view, np.stack(np.broadcast_arrays(x[None, :], y[:, None], 1.0))
    )
    offsets = np.arange(-margin * samples, margin * samples + 1) / samples
    weights = np.exp(-0.5 * (offsets / psf_sigma_px) ** 2)
    weights /= weights.sum()
    channels = []
    for coefficients in scene.coefficients:
        fine = map_coordinates(coefficients, [scene_y / w, scene_x / w], order=3, mode="mirror", prefilter=False)
        rows = correlate1d(fine, weights, axis=0)[margin * samples :: samples][:height]
        channels.append(correlate1d(rows, weights, axis=1)[:, margin * samples :: samples][:, :width])
    view = np.stack(channels, axis=-1).astype(np.float32)
    return view[..., 0] if len(channels) == 1 else view


def render_pair(
    scene: Scene,
    dst_homo_src: Matrix,
    src_size: Size,
    *,
    rng: np.random.Generator,
    dst_size: Size | None = None,
    density: float = 2.0,
    psf_sigma_px: float = PSF_SIGMA_PX,
) -> RenderedPair:
    """Return two views of the scene that `dst_homo_src` relates, somewhere in it.

    Args:
        scene: what both look at.
        dst_homo_src: (3, 3) float64, src pixels to dst pixels.
        src_size: height, width of src.
        rng: places the frames and tilts them.
        dst_size: height, width of dst; src's without it.
        density: scene pixels a src pixel; fewer, but not below 1, where the scene is too small to hold both frames.
            What is still outside shows the scene mirrored, alike in both views.
        psf_sigma_px: see `render_view`.
    """
    dst_size = dst_size or src_size
    tilt_px = 0.03 * min(src_size)  # oblique to the scene's own grid: src is no plain decimation of it either
    tilt = random_homography(rng, src_size, tilt_px)
    src_homo_dst = np.linalg.inv(dst_homo_src).astype(np.float64)
    seen = np.concatenate([corner_points(src_size), warp_points(src_homo_dst, corner_points(dst_size))])
    seen = warp_points(tilt, seen)
    if np.isnan(seen).any():
        raise ValueError(f"dst_homo_src sends a corner of dst {dst_size} behind the horizon of src {src_size}")
    low = seen.min(axis=0)
    extent: Matrix = seen.max(axis=0) - low
    room = np.array([scene.size[1] - 1, scene.size[0] - 1], dtype=np.float64)
    density = max(1.0, min(density, float((room / extent).min())))
    spare = room - density * extent
    start = np.where(spare > 0, rng.uniform(0, 1, size=2) * spare, spare / 2)
    placed = np.array([[density, 0, start[0] - density * low[0]], [0, density, start[1] - density * low[1]], [0, 0, 1]])
    scene_homo_src = placed @ tilt
    return RenderedPair(
        src=render_view(scene, scene_homo_src, src_size, psf_sigma_px=psf_sigma_px),
        dst=render_view(scene, scene_homo_src @ src_homo_dst, dst_size, psf_sigma_px=psf_sigma_px),
        dst_homo_src=dst_homo_src / dst_homo_src[2, 2],
    )


def _largest_step(scene_homo_view: Matrix, size: Size) -> float:
    """Return the most scene pixels that one step of one view pixel crosses, at the frame's corners."""
    corners = corner_points(size)
    here = warp_points(scene_homo_view, corners)
    steps = [warp_points(scene_homo_view, corners + np.array(step)) - here for step in ((0.5, 0), (0, 0.5))]
    return 2 * float(np.nanmax(np.linalg.norm(np.stack(steps), axis=-1)))
