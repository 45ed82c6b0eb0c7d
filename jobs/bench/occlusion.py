"""`homoalign bench occlusion`: corner error where something else covers part of dst."""

from __future__ import annotations

from collections.abc import Iterator

import click

from jobs.bench.against import show_against
from jobs.bench.bound import mean_corner_error_bound, pixel_variance
from jobs.bench.methods import run_methods
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, motion_options, parse_numbers, render_options
from jobs.bench.pairs import CHANGE, BenchPair, draw_pairs
from jobs.bench.photographs import load_gray
from jobs.errors import UsageError
from jobs.rendering.degrade import occlude
from jobs.rendering.synthetic import PHOTOGRAPHS


@click.command("occlusion", epilog="Example: homoalign bench occlusion --pairs 50 --shares 0,20,40,60")
@motion_options(sigma=5.0)
@click.option("--shares", default="0,20,40", show_default=True, help="Percent of dst that is covered.")
@render_options(pairs=100)
@bench_options
def occlusion_command(
    *, size: int, offset: float, sigma: float, shares: str, render: RenderOptions, options: BenchOptions
) -> None:
    """Compare corner errors where rectangles of another photograph cover part of dst.

    A pair has the same motion and noise under every cover.
    """
    percents = parse_numbers("--shares", shares)
    if max(percents) >= 100:
        raise UsageError(f"--shares {shares}: percent below 100")
    outcomes = run_methods(occlusion_pairs(render, size, offset, sigma, percents), options)
    show_against(
        case_of(percents[0]),
        outcomes,
        title=f"bench occlusion: {render.pairs} pairs of {size} x {size}, corners moved by up to {offset:g} px, "
        f"sigma {sigma:g}",
        column="covered",
        caption=("bound: what the pixels in sight allow an aligner that knows which these are.", "under that cover"),
        render=render,
        options=options,
    )


def case_of(percent: float) -> str:
    """Return the name of a case."""
    return f"{percent:g} %"


def occlusion_pairs(
    render: RenderOptions, size: int, offset_px: float, sigma_8bit: float, percents: tuple[float, ...]
) -> Iterator[BenchPair]:
    """Render each pair once, and cover each share of it: more cover begins with the rectangles of less."""
    for drawn in draw_pairs(render, size=size, offset_px=offset_px):
        views = drawn.views
        others = [name for name in render.photographs if name != drawn.name]
        others = others or [name for name in PHOTOGRAPHS if name != drawn.name]
        for percent in percents:
            rng = drawn.rng(CHANGE)
            other = load_gray(others[int(rng.integers(len(others)))])
            dst, covered = occlude(views.dst, other=other, share=percent / 100, rng=rng)
            bound = mean_corner_error_bound(
                views.dst, views.dst_homo_src, (size, size), variance=pixel_variance(sigma_8bit), usable=~covered
            )
            yield drawn.as_pair(case_of(percent), drawn.noisy(sigma_8bit, dst=dst), bound)
