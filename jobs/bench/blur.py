"""`homoalign bench blur`: corner error where one of the images is out of focus, or was taken in motion."""

from __future__ import annotations

from collections.abc import Iterator

import click
import numpy as np
import numpy.typing as npt

from jobs.bench.against import show_against
from jobs.bench.bound import mean_corner_error_bound, pixel_variance
from jobs.bench.methods import run_methods
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, motion_options, render_options
from jobs.bench.pairs import CHANGE, BenchPair, Drawn, draw_pairs
from jobs.rendering.degrade import compress_jpeg, convolve_with, defocus_kernel, motion_kernel
from jobs.rendering.synthetic import Image

SHARP = "none"
LEAST_RADIUS_PX, MOST_RADIUS_PX = 1.0, 5.0
LEAST_TRAIL_PX, MOST_TRAIL_PX = 4.0, 14.0


@click.command("blur", epilog="Example: homoalign bench blur --pairs 50 --sigma 5")
@motion_options(least_px=64, sigma=2.0)
@click.option(
    "--jpeg", "quality", type=click.IntRange(1, 95), help="Both images pass through JPEG of this quality, after noise."
)
@render_options(pairs=100)
@bench_options
def blur_command(
    *, size: int, offset: float, sigma: float, quality: int | None, render: RenderOptions, options: BenchOptions
) -> None:
    """Compare corner errors where one image is blurrier, each pair with the same motion and noise in every case.

    \b
    none          both as sharp as they are
    dst, defocus  dst is out of focus: every point a disc of radius 1 to 5 px
    src, defocus  the same, of src
    dst, motion   dst was moving: every point a line of 4 to 14 px, at any angle
    src, motion   the same, of src
    """
    outcomes = run_methods(blur_pairs(render, size, offset, sigma, quality), options)
    show_against(
        SHARP,
        outcomes,
        title=f"bench blur: {render.pairs} pairs of {size} x {size}, corners moved by up to {offset:g} px, "
        f"sigma {sigma:g}" + ("" if quality is None else f", JPEG quality {quality}"),
        column="blur",
        caption=(
            "bound: what the blurred image's gradients and noise allow an aligner that knows the sharp one and the "
            "kernel; it knows nothing of JPEG's losses.",
            "where neither is blurred",
        ),
        render=render,
        options=options,
    )


def blur_pairs(
    render: RenderOptions, size: int, offset_px: float, sigma_8bit: float, quality: int | None = None
) -> Iterator[BenchPair]:
    """Render each pair once, and blur either image in every way, before its noise; `quality` is of JPEG, if any."""

    def taken(drawn: Drawn, src: Image | None = None, dst: Image | None = None) -> list[Image]:
        noisy = drawn.noisy(sigma_8bit, src=src, dst=dst)
        return noisy if quality is None else [compress_jpeg(image, quality=quality) for image in noisy]

    for drawn in draw_pairs(render, size=size, offset_px=offset_px):
        views = drawn.views
        kernels = draw_kernels(drawn.rng(CHANGE))
        sharp = mean_corner_error_bound(
            views.dst, views.dst_homo_src, (size, size), variance=pixel_variance(sigma_8bit)
        )
        yield drawn.as_pair(SHARP, taken(drawn), sharp)
        for name, kernel in kernels.items():
            src, dst = (convolve_with(image, kernel) for image in (views.src, views.dst))
            # To an aligner that knows the other image its noise is nothing.
            variance = pixel_variance(sigma_8bit, gain=0.0)
            bound = mean_corner_error_bound(dst, views.dst_homo_src, (size, size), variance=variance)
            yield drawn.as_pair(f"dst, {name}", taken(drawn, dst=dst), bound)
            yield drawn.as_pair(f"src, {name}", taken(drawn, src=src), bound)


def draw_kernels(rng: np.random.Generator) -> dict[str, npt.NDArray[np.float64]]:
    """Draw one pair's kernels."""
    radius_px = rng.uniform(LEAST_RADIUS_PX, MOST_RADIUS_PX)
    length_px, angle_deg = rng.uniform(LEAST_TRAIL_PX, MOST_TRAIL_PX), rng.uniform(0, 180)
    return {"defocus": defocus_kernel(radius_px), "motion": motion_kernel(length_px, angle_deg)}
