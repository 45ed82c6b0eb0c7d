"""`homoalign bench surround`: corner error where an aperture, nodata or a letterbox frames both images."""

from __future__ import annotations

from collections.abc import Iterator

import click
import numpy as np
import numpy.typing as npt

from jobs.bench.against import show_against
from jobs.bench.bound import mean_corner_error_bound, pixel_variance
from jobs.bench.methods import run_methods
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, motion_options, render_options
from jobs.bench.pairs import CHANGE, BenchPair, draw_pairs
from jobs.rendering.synthetic import Size

BARE = "none"
Where = npt.NDArray[np.bool_]


@click.command("surround", epilog="Example: homoalign bench surround --pairs 50 --size 320")
@motion_options(least_px=64, offset_px=20.0, sigma=2.0)
@render_options(pairs=100)
@bench_options
def surround_command(*, size: int, offset: float, sigma: float, render: RenderOptions, options: BenchOptions) -> None:
    """Compare corner errors where both images have a black surround that does not move with the scene.

    The aperture and the bars of a letterbox are the same in both images, as the camera's are; nodata are the corners
    of a tile that was turned, by another angle in each. A pair has the same motion and noise in every surround.
    """
    outcomes = run_methods(surround_pairs(render, size, offset, sigma), options)
    show_against(
        BARE,
        outcomes,
        title=f"bench surround: {render.pairs} pairs of {size} x {size}, corners moved by up to {offset:g} px, "
        f"sigma {sigma:g}",
        column="surround",
        caption=(
            "bound: what the pixels inside dst's surround allow an aligner that knows which these are.",
            "without a surround",
        ),
        render=render,
        options=options,
    )


def surround_pairs(render: RenderOptions, size: int, offset_px: float, sigma_8bit: float) -> Iterator[BenchPair]:
    """Render each pair once, and frame it in every way; noise lies over the surround, too."""
    for drawn in draw_pairs(render, size=size, offset_px=offset_px):
        views = drawn.views
        for case, insides in draw_insides((size, size), drawn.rng(CHANGE)).items():
            framed = [np.where(inside, view, 0) for view, inside in zip((views.src, views.dst), insides, strict=True)]
            noisy = drawn.noisy(sigma_8bit, src=framed[0], dst=framed[1])
            bound = mean_corner_error_bound(
                views.dst, views.dst_homo_src, (size, size), variance=pixel_variance(sigma_8bit), usable=insides[1]
            )
            yield drawn.as_pair(case, noisy, bound)


def draw_insides(size: Size, rng: np.random.Generator) -> dict[str, tuple[Where, Where]]:
    """Return what src's and dst's surrounds leave, (H, W) each, by case."""
    height, width = size
    y, x = (np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]) / min(size)
    disc = np.hypot(x, y) < rng.uniform(0.48, 0.58)
    bar = rng.uniform(0.08, 0.16)
    between = np.abs(y) < 0.5 * height / min(size) - bar
    turned = []
    for angle in np.radians(rng.uniform(5, 15, 2) * rng.choice([-1, 1], 2)):
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        turned.append(np.maximum(np.abs(along), np.abs(across)) < 0.5)
    return {
        BARE: (np.ones(size, dtype=bool),) * 2,
        "aperture": (disc, disc),
        "letterbox": (between, between),
        "nodata": (turned[0], turned[1]),
    }
