"""`homoalign bench stripes`: corner error of images that their sensor striped."""

from __future__ import annotations

import math
from collections.abc import Iterator

import click
import numpy as np

from jobs.bench.against import show_against
from jobs.bench.methods import run_methods
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, motion_options, render_options
from jobs.bench.pairs import CHANGE, BenchPair, Drawn, draw_pairs
from jobs.rendering.degrade import Levels, add_stripes
from jobs.rendering.synthetic import Image

PLAIN = "none"
DETECTORS = 8
DARKER = 0.7


@click.command("stripes", epilog="Example: homoalign bench stripes --pairs 50 --strength 10")
@click.option(
    "--strength",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="Standard deviation of the stripes, in units of 8-bit intensities at white.",
)
@motion_options(sigma=2.0)
@render_options(pairs=100)
@bench_options
def stripes_command(
    *, strength: float, size: int, offset: float, sigma: float, render: RenderOptions, options: BenchOptions
) -> None:
    """Compare corner errors by the stripes over both images, each pair with the same motion and noise.

    \b
    rows            an offset for each row, another one in each image: row noise
    fixed columns   an offset for each column, the same in both images: a sensor's pattern
    column gains    a gain for each column, twice as strong, another one in each image: a pushbroom scanner
    detectors       a gain and an offset for each of 8 rows in turn: a whiskbroom scanner
    lines           every third row darker by 30 %: a display, filmed
    """
    outcomes = run_methods(striped_pairs(render, size, offset, sigma, strength), options)
    show_against(
        PLAIN,
        outcomes,
        title=f"bench stripes: {render.pairs} pairs of {size} x {size}, corners moved by up to {offset:g} px, "
        f"sigma {sigma:g}, stripes {strength:g}",
        column="stripes",
        caption=("No bound is given: stripes are no white noise.", "without stripes"),
        render=render,
        options=options,
    )


def striped_pairs(
    render: RenderOptions, size: int, offset_px: float, sigma_8bit: float, strength_8bit: float
) -> Iterator[BenchPair]:
    """Render each pair once, stripe it in every way, and add its noise."""
    for drawn in draw_pairs(render, size=size, offset_px=offset_px):
        for case, (src, dst) in _striped(drawn, size, strength_8bit).items():
            yield drawn.as_pair(case, drawn.noisy(sigma_8bit, src=src, dst=dst), math.nan)


def _striped(drawn: Drawn, size: int, strength_8bit: float) -> dict[str, list[Image]]:
    """Return src and dst under each kind of stripes."""
    rng, views = drawn.rng(CHANGE), [drawn.views.src, drawn.views.dst]
    turn, line = np.arange(size) % DETECTORS, np.arange(size)

    def levels(count: int) -> Levels:
        return rng.normal(0, strength_8bit / 255, count)

    fixed = levels(size)
    return {
        PLAIN: views,
        "rows": [add_stripes(view, offset=levels(size)) for view in views],
        "fixed columns": [add_stripes(view.T, offset=fixed).T for view in views],
        "column gains": [add_stripes(view.T, gain=1 + 2 * levels(size)).T for view in views],
        "detectors": [
            add_stripes(view, gain=1 + levels(DETECTORS)[turn], offset=levels(DETECTORS)[turn]) for view in views
        ],
        "lines": [add_stripes(view, gain=np.where(line % 3 == 0, DARKER, 1.0)) for view in views],
    }
