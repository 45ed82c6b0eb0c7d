"""`homoalign bench template`: an object, or a tile, that is to be found somewhere in a larger image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from jobs.bench.measure import show
from jobs.bench.methods import run_methods
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, render_options
from jobs.bench.pairs import CHANGE, MOTION, BenchPair, Drawn, stream_of
from jobs.bench.photographs import gray_scene
from jobs.bench.score import as_json, found_figures, rows_by_case
from jobs.errors import UsageError
from jobs.rendering.synthetic import (
    Image,
    Matrix,
    RenderedPair,
    Size,
    corner_points,
    frame_homography,
    random_homography,
    render_pair,
    render_view,
    similarity_homography,
    warp_points,
)

MOST_TURN_DEG = 30.0
MOST_BENT = 0.06
"""Each of the object's corners moves by up to this share of its side in the scene."""
GAINS = (0.7, 1.1)
COVERED = 0.9
"""Side of a square about one of the object's corners that something else hides, as a share of the object's."""


@dataclass(frozen=True, slots=True)
class Case:
    """How the object lies in the scene.

    Attributes:
        share: its side over the scene's shorter one.
        alone: whether all of the scene shows what the object is a part of, as a mosaic does of which it is a tile.
        is_covered: whether something lies over a corner.
        is_there: whether the scene shows it at all.
    """

    share: float
    alone: bool = False
    is_covered: bool = False
    is_there: bool = True


CASES = {
    "1/2": Case(1 / 2),
    "1/3": Case(1 / 3),
    "1/4": Case(1 / 4),
    "1/3, covered": Case(1 / 3, is_covered=True),
    "tile, 1/2": Case(1 / 2, alone=True),
    "tile, 1/4": Case(1 / 4, alone=True),
    "absent": Case(1 / 3, is_there=False),
}


@click.command("template", epilog="Example: homoalign bench template --pairs 50 --size 192")
@click.option("--size", type=click.IntRange(min=64), default=256, show_default=True, help="Side of src, px.")
@click.option("--sigma", type=click.FloatRange(0), default=3.0, show_default=True, help="Noise, 8-bit units.")
@render_options(pairs=100)
@bench_options
def template_command(*, size: int, sigma: float, render: RenderOptions, options: BenchOptions) -> None:
    """Find src, a photograph, in dst, the larger picture of a scene that has it somewhere.

    Objects lie in another photograph, half, a third or a quarter as wide as that is high, turned by up to 30 degrees,
    askew, and lit otherwise; `covered` ones have a corner hidden. Tiles are cut from the same photograph as the scene,
    at the scene's own scale. `absent` ones are nowhere: no answer is right.
    """
    if len(set(render.photographs)) < 2:
        raise UsageError("--photographs: at least two, the object's and the scene's")
    outcomes = run_methods(template_pairs(render, size, sigma), options)
    show(
        f"bench template: {render.pairs} pairs, src of {size} x {size}, sigma {sigma:g}",
        rows_by_case(outcomes, "src in dst", found_figures),
        caption="right: mean corner error below 5 px at 480. ok | right: of the right ones, those whose status is ok; "
        "wrong but ok: of all. A pair that failed counts as infinite in the median.",
        json_path=options.json_path,
        more={"seed": render.seed, "outcomes": as_json(outcomes)},
    )


def template_pairs(render: RenderOptions, size: int, sigma_8bit: float) -> Iterator[BenchPair]:
    """Render each photograph as an object in every case; where it lies follows from the pair's number alone."""
    for number in range(render.pairs):
        name = render.photographs[number % len(render.photographs)]
        for case_name, case in CASES.items():
            views, is_there = _place(render, number, name, size, case), case.is_there
            drawn = Drawn(number=number, name=name, seed=render.seed, views=views)
            pair = drawn.as_pair(case_name, drawn.noisy(sigma_8bit), math.nan)
            yield pair if is_there else replace(pair, dst_homo_src=np.full((3, 3), np.nan))


def _place(render: RenderOptions, number: int, name: str, size: int, case: Case) -> RenderedPair:
    """Lay an object into a scene, or cut a tile from it."""
    rng, change = (stream_of(render.seed, number, stream) for stream in (MOTION, CHANGE))
    dst_size = size * 3 // 2, 2 * size
    side = round(case.share * dst_size[0])
    if case.alone:
        src_size = side, side
        askew = random_homography(rng, dst_size, MOST_BENT / 2 * dst_size[0])
        dst_homo_src = askew @ _somewhere(rng, src_size, side, dst_size)
        return render_pair(gray_scene(name), dst_homo_src, src_size, rng=rng, dst_size=dst_size)
    src_size = size, size
    dst_homo_src = _somewhere(rng, src_size, side, dst_size) @ random_homography(rng, src_size, MOST_BENT * size)
    # Of the object's plane no more is seen than the object: beyond it there may be a horizon.
    corners = warp_points(dst_homo_src, corner_points(src_size))
    start = (np.floor(corners.min(0)).astype(int) - 1).clip(min=0)
    end = (np.ceil(corners.max(0)).astype(int) + 2).clip(max=dst_size[::-1])
    to_box = _shift(-start) @ dst_homo_src
    box_size = int(end[1] - start[1]), int(end[0] - start[0])
    views = render_pair(gray_scene(name), to_box, src_size, rng=rng, dst_size=box_size)
    dst, cover = (_other_view(render, name, dst_size, change) for _ in range(2))
    box = np.s_[start[1] : end[1], start[0] : end[0]]
    seen = _covered(to_box, src_size, box_size) & case.is_there
    if case.is_covered:
        seen &= ~_square(corners[0] - start, COVERED * side, box_size)
        dst[box] = np.where(_covered(to_box, src_size, box_size), cover[box], dst[box])
    dst[box] = np.where(seen, change.uniform(*GAINS) * views.dst, dst[box])
    return RenderedPair(src=views.src, dst=dst, dst_homo_src=dst_homo_src / dst_homo_src[2, 2])


def _somewhere(rng: np.random.Generator, src_size: Size, side: float, dst_size: Size) -> Matrix:
    """Draw where a square lies whose side in dst is `side` pixels, all of it inside: (3, 3), a similarity."""
    reach = 0.8 * side  # half a diagonal, and what corners move by
    centre = [rng.uniform(min(reach, length / 2), max(length - reach, length / 2)) for length in dst_size[::-1]]
    angle_deg = rng.uniform(-MOST_TURN_DEG, MOST_TURN_DEG)
    turn = similarity_homography(src_size, angle_deg=angle_deg, scale=side / src_size[0])
    return _shift(np.array(centre) - (np.array(src_size[::-1]) - 1) / 2) @ turn


def _shift(xy: npt.NDArray[Any]) -> Matrix:
    return np.array([[1.0, 0, xy[0]], [0, 1, xy[1]], [0, 0, 1]])


def _covered(dst_homo_src: Matrix, src_size: Size, dst_size: Size) -> npt.NDArray[np.bool_]:
    """Return (H, W), where dst sees src."""
    y, x = np.mgrid[: dst_size[0], : dst_size[1]]
    src_homo_dst = np.linalg.inv(dst_homo_src).astype(np.float64)
    seen = warp_points(src_homo_dst, np.stack([x.ravel(), y.ravel()], axis=-1))
    inside = ((seen >= -0.5) & (seen <= np.array(src_size[::-1]) - 0.5)).all(axis=1)
    return np.asarray(inside.reshape(dst_size))


def _square(centre: Matrix, side: float, size: Size) -> npt.NDArray[np.bool_]:
    """Return (H, W), where a square lies about x and y."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.asarray((np.abs(x - centre[0]) < side / 2) & (np.abs(y - centre[1]) < side / 2))


def _other_view(render: RenderOptions, name: str, size: Size, rng: np.random.Generator) -> Image:
    """Return a frame of another of the photographs."""
    other = gray_scene(str(rng.choice([each for each in render.photographs if each != name])))
    return render_view(other, frame_homography(other.size, size), size)
