"""`homoalign bench quantised`: corner error of images of few gray levels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import click

from jobs.bench.against import show_against
from jobs.bench.methods import run_methods
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, motion_options, render_options
from jobs.bench.pairs import BenchPair, draw_pairs
from jobs.rendering.degrade import adjust_exposure, dither, posterise

WHOLE = "256 levels"
POSTERISED = (32, 16, 8, 4, 2)
FADED_8BIT = 8


@click.command("quantised", epilog="Example: homoalign bench quantised --pairs 50 --size 480 --offset 18")
@motion_options(sigma=2.0)
@render_options(pairs=100)
@bench_options
def quantised_command(*, size: int, offset: float, sigma: float, render: RenderOptions, options: BenchOptions) -> None:
    """Compare corner errors by how many gray levels both images have, each pair with the same motion and noise.

    \b
    256 levels    as 8 bits hold them
    32 levels     rounded to so many, black and white among them, after noise; likewise 16, 8, 4
    2 levels      likewise: a scan in black and white
    dithered      in black and white, what that loses spread over the neighbours
    8 steps       of a contrast that leaves eight steps of 255; this one has no noise
    """
    outcomes = run_methods(quantised_pairs(render, size, offset, sigma), options)
    show_against(
        WHOLE,
        outcomes,
        title=f"bench quantised: {render.pairs} pairs of {size} x {size}, corners moved by up to {offset:g} px, "
        f"sigma {sigma:g}",
        column="images",
        caption=("No bound is given: rounding is no noise of its own.", "with all levels"),
        render=render,
        options=options,
    )


def quantised_pairs(render: RenderOptions, size: int, offset_px: float, sigma_8bit: float) -> Iterator[BenchPair]:
    """Render each pair once, add its noise, and round it in every way."""
    for drawn in draw_pairs(render, size=size, offset_px=offset_px):
        noisy = drawn.noisy(sigma_8bit)
        yield drawn.as_pair(WHOLE, noisy, math.nan)
        for levels in POSTERISED:
            rounded = [posterise(image, levels=levels) for image in noisy]
            yield drawn.as_pair(f"{levels} levels", rounded, math.nan)
        yield drawn.as_pair("dithered", [dither(image) for image in noisy], math.nan)
        faded = [
            adjust_exposure(view, gain=FADED_8BIT / 255, bias_8bit=100) for view in (drawn.views.src, drawn.views.dst)
        ]
        yield drawn.as_pair(f"{FADED_8BIT} steps", faded, math.nan)
