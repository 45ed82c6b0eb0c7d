"""`homoalign bench tiles`: neighbouring tiles of a mosaic, which share a strip along one side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import get_args

import click
import numpy as np
import numpy.typing as npt
from skimage.registration import phase_cross_correlation

from homoalign.config import Model
from jobs.bench import peers
from jobs.bench.measure import show
from jobs.bench.methods import SIFT, Answer, as_rgb, run_methods
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, render_options
from jobs.bench.pairs import CHANGE, MOTION, BenchPair, Drawn, stream_of
from jobs.bench.photographs import gray_scene
from jobs.bench.score import as_json, found_figures, rows_by_case
from jobs.errors import UsageError
from jobs.rendering.synthetic import Matrix, RenderedPair, render_pair

OVERLAPS = {"20 %": 0.2, "10 %": 0.1, "7 %": 0.07}
"""Share of a tile's width that its neighbour shows too."""

ABSENT = "none"
"""The case of tiles of two photographs: no answer is right."""

JITTER = 0.015
"""A stage is off by up to this share of a tile's width either way."""

PHASE = "phase correlation"
PHASE_OF_STRIPS = "phase correlation of the strips"
"""Of what would overlap if the stage were exact: a method that knows where tiles lie."""

UPSAMPLING = 20
"""Phase correlation tells shifts to one part in so many of a pixel."""


@click.command("tiles", epilog="Example: homoalign bench tiles --pairs 38 --set model=homography")
@click.option("--size", type=click.IntRange(min=64), default=224, show_default=True, help="Side of a tile, px.")
@click.option("--sigma", type=click.FloatRange(0), default=3.0, show_default=True, help="Noise, 8-bit units.")
@click.option(
    "--shade",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Share of the light that corners lack, alike in all tiles.",
)
@click.option(
    "--model",
    type=click.Choice(get_args(Model)),
    default="translation",
    show_default=True,
    help="Of homoalign, whatever --set says.",
)
@render_options(pairs=100)
@bench_options
def tiles_command(
    *, size: int, sigma: float, shade: float, model: Model, render: RenderOptions, options: BenchOptions
) -> None:
    """Align tiles that a stage took side by side, or one below the other.

    They share 20, 10 or 7 % of their width, and nothing says which side that lies on; the stage is off by up to 1.5 %.
    Light falls off toward the corners of each tile. `none`: two photographs, of which no answer is right.
    """
    if len(set(render.photographs)) < 2:
        raise UsageError("--photographs: at least two, for tiles that share nothing")
    options = replace(options, config=replace(options.config, model=model))
    ask = partial(_ask_peers, len(render.photographs))
    outcomes = run_methods(tile_pairs(render, size, sigma, shade), options, ask=ask)
    show(
        f"bench tiles: {render.pairs} pairs, {size} x {size}, sigma {sigma:g}, model {model}",
        rows_by_case(outcomes, "overlap", found_figures),
        caption="right: mean corner error below 5 px at 480. ok | right: of the right ones, those whose status is ok; "
        "wrong but ok: of all. A pair that failed counts as infinite in the median.",
        json_path=options.json_path,
        more={"seed": render.seed, "outcomes": as_json(outcomes)},
    )


def tile_pairs(render: RenderOptions, size: int, sigma_8bit: float, shade: float) -> Iterator[BenchPair]:
    """Render each photograph's tiles in every case; which side they share follows from the pair's number alone."""
    for number in range(render.pairs):
        name = render.photographs[number % len(render.photographs)]
        for case, overlap in OVERLAPS.items():
            views = _shaded(_neighbours(render, number, name, size, overlap), shade)
            yield _as_pair(render, number, name, views, case, sigma_8bit)
        rng = stream_of(render.seed, number, CHANGE)
        other = str(rng.choice([each for each in render.photographs if each != name]))
        ours, theirs = (_neighbours(render, number, each, size, OVERLAPS["10 %"]) for each in (name, other))
        views = _shaded(RenderedPair(ours.src, theirs.dst, ours.dst_homo_src), shade)
        pair = _as_pair(render, number, f"{name}, {other}", views, ABSENT, sigma_8bit)
        yield replace(pair, dst_homo_src=np.full((3, 3), np.nan))


def _neighbours(render: RenderOptions, number: int, name: str, size: int, overlap: float) -> RenderedPair:
    """Render two tiles of a photograph, the second to the right of the first or below it."""
    rng = stream_of(render.seed, number, MOTION)
    step = np.roll([(1 - overlap) * size, 0.0], _axis(number, len(render.photographs)))
    shift = np.eye(3)
    shift[:2, 2] = -step + rng.uniform(-JITTER, JITTER, size=2) * size
    return render_pair(gray_scene(name), shift, (size, size), rng=rng)


def _axis(number: int, photographs: int) -> int:
    """Return 0 for tiles side by side, 1 for one below the other."""
    return number // photographs % 2


def _shaded(views: RenderedPair, shade: float) -> RenderedPair:
    y, x = np.mgrid[-1 : 1 : 1j * len(views.src), -1 : 1 : 1j * len(views.src)]
    light = 1 - shade * (x**2 + y**2) / 2
    return RenderedPair(views.src * light, views.dst * light, views.dst_homo_src)


def _as_pair(
    render: RenderOptions, number: int, name: str, views: RenderedPair, case: str, sigma_8bit: float
) -> BenchPair:
    drawn = Drawn(number=number, name=name, seed=render.seed, views=views)
    return drawn.as_pair(case, drawn.noisy(sigma_8bit), np.nan)


def _ask_peers(photographs: int, pair: BenchPair) -> Iterator[tuple[str, Answer]]:
    """Align one pair by features, and by phase correlation without and with what the stage knows."""
    overlap, axis = OVERLAPS.get(pair.case, OVERLAPS["10 %"]), _axis(pair.number, photographs)

    def timed(call: Callable[[], Matrix | None]) -> Answer:
        start = time.process_time()
        return Answer(call(), {"cpu_s": time.process_time() - start})

    yield PHASE, timed(lambda: _phase_correlate(pair.src, pair.dst, np.zeros(2)))
    yield PHASE_OF_STRIPS, timed(lambda: _correlate_strips(pair, overlap, axis))
    yield SIFT, timed(lambda: peers.sift_magsac(as_rgb(pair.src), as_rgb(pair.dst)))


def _correlate_strips(pair: BenchPair, overlap: float, axis: int) -> Matrix:
    """Correlate the strips that a stage without error would have both tiles show."""
    size = len(pair.src)
    width = round(overlap * size)
    last, first = slice(size - width, size), slice(width)
    src, dst = (pair.src[last], pair.dst[first]) if axis else (pair.src[:, last], pair.dst[:, first])
    return _phase_correlate(src, dst, np.roll([width - size, 0.0], axis))


def _phase_correlate(
    src: npt.NDArray[np.generic], dst: npt.NDArray[np.generic], start: npt.NDArray[np.float64]
) -> Matrix:
    """Return the shift that scikit-image finds on top of a start, x and y."""
    found, *_ = phase_cross_correlation(dst, src, upsample_factor=UPSAMPLING, disambiguate=True)
    matrix = np.eye(3)
    matrix[:2, 2] = start + found[::-1]
    return matrix
