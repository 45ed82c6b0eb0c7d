"""`homoalign bench precision`: corner error under noise, as a multiple of what the noise allows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import click

from jobs.bench.bound import mean_corner_error_bound, pixel_variance
from jobs.bench.measure import show
from jobs.bench.methods import run_methods
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, motion_options, parse_numbers, render_options
from jobs.bench.pairs import NOISES, BenchPair, draw_pairs
from jobs.bench.score import as_json, precision_figures, rows_by_case


@click.command(
    "precision", epilog="Example: homoalign bench precision --pairs 50 --sigmas 0,5,20 --json precision.json"
)
@motion_options()
@click.option(
    "--sigmas", default="0,5,20", show_default=True, help="Noise of both images, 8-bit units; but for white, at white."
)
@click.option("--noise", type=click.Choice(list(NOISES)), default="white", show_default=True, help="What noise.")
@render_options(pairs=100)
@bench_options
def precision_command(
    *, size: int, offset: float, sigmas: str, noise: str, render: RenderOptions, options: BenchOptions
) -> None:
    """Compare corner error with the Cramer-Rao bound under noise, from small motions.

    Both views are rendered from a finer scene, so the truth is exact; noise is added, then both are rounded to 8 bits.
    The bound is that of white noise: for noise that grows with intensity none is given.
    """
    levels = parse_numbers("--sigmas", sigmas)
    outcomes = run_methods(precision_pairs(render, size, offset, levels, noise), options)
    show(
        f"bench precision: {render.pairs} pairs of {size} x {size}, corners moved by up to {offset:g} px",
        rows_by_case(outcomes, "noise", precision_figures),
        caption="Medians over pairs; a pair that failed counts as infinite. bound: the mean corner error to expect of "
        "an aligner that attains the Cramer-Rao bound; an efficient one's median lies some percent below it.",
        json_path=options.json_path,
        more={"seed": render.seed, "outcomes": as_json(outcomes)},
    )


def precision_pairs(
    render: RenderOptions, size: int, offset_px: float, sigmas_8bit: tuple[float, ...], noise: str = "white"
) -> Iterator[BenchPair]:
    """Render each pair once, and add each noise, of one of the kinds of `NOISES`, to it."""
    for drawn in draw_pairs(render, size=size, offset_px=offset_px):
        views = drawn.views
        for sigma in sigmas_8bit:
            bound = math.nan
            if noise == "white":
                variance = pixel_variance(sigma)
                bound = mean_corner_error_bound(views.dst, views.dst_homo_src, (size, size), variance=variance)
            yield drawn.as_pair(f"sigma {sigma:g}", drawn.noisy(sigma, kind=noise), bound)
