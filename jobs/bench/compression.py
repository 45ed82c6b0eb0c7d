"""`homoalign bench compression`: corner error of images that went through a lossy file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import click

from jobs.bench.against import show_against
from jobs.bench.drawings import DRAWINGS, drawn_scene
from jobs.bench.methods import run_methods
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, motion_options, render_options
from jobs.bench.pairs import BenchPair, draw_pair
from jobs.bench.photographs import gray_scene
from jobs.rendering.degrade import compress_jpeg, compress_webp
from jobs.rendering.synthetic import Scene

LOSSLESS = "lossless"
JPEG_QUALITIES = (90, 75, 50, 30, 15)
WEBP_QUALITIES = (75, 30)


@click.command("compression", epilog="Example: homoalign bench compression --pairs 50 --drawings --sigma 0")
@click.option("--drawings", is_flag=True, help="Slides, charts and screens instead of photographs, drawn by code.")
@motion_options(sigma=1.0)
@render_options(pairs=100)
@bench_options
def compression_command(
    *, drawings: bool, size: int, offset: float, sigma: float, render: RenderOptions, options: BenchOptions
) -> None:
    """Compare corner errors by how much both images' files have lost, each pair with the same motion and noise.

    \b
    lossless      as 8 bits hold them
    JPEG 90       both images as JPEG of that quality; likewise 75, 50, 30, 15
    WebP 75       likewise; and 30

    The default noise is that of a camera in good light: what is left of two JPEGs is what these have lost.
    """
    scene = gray_scene
    if drawings:
        render, scene = replace(render, photographs=DRAWINGS), drawn_scene
    outcomes = run_methods(compression_pairs(render, size, offset, sigma, scene=scene), options)
    show_against(
        LOSSLESS,
        outcomes,
        title=f"bench compression: {render.pairs} pairs of {size} x {size}, corners moved by up to {offset:g} px, "
        f"sigma {sigma:g}",
        column="files",
        caption=("No bound is given: what a codec loses is no noise of its own.", "without loss"),
        render=render,
        options=options,
    )


def compression_pairs(
    render: RenderOptions,
    size: int,
    offset_px: float,
    sigma_8bit: float,
    *,
    scene: Callable[[str], Scene] = gray_scene,
) -> Iterator[BenchPair]:
    """Render each pair once, add its noise, and pass both images through every kind of file."""
    for number in range(render.pairs):
        drawn = draw_pair(render, number, size=(size, size), offset_px=offset_px, scene=scene)
        noisy = drawn.noisy(sigma_8bit)
        yield drawn.as_pair(LOSSLESS, noisy, math.nan)
        for quality in JPEG_QUALITIES:
            coded = [compress_jpeg(image, quality=quality) for image in noisy]
            yield drawn.as_pair(f"JPEG {quality}", coded, math.nan)
        for quality in WEBP_QUALITIES:
            coded = [compress_webp(image, quality=quality) for image in noisy]
            yield drawn.as_pair(f"WebP {quality}", coded, math.nan)
