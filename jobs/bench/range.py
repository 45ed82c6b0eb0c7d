"""`homoalign bench range`: how far apart two images may be, by the deep-homography protocol."""

from __future__ import annotations

import click

from jobs.bench.measure import show
from jobs.bench.methods import run_methods
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, parse_numbers, render_options
from jobs.bench.pairs import Range, draw_range_pairs
from jobs.bench.score import as_json, describe_starts, range_figures, rows_by_case, starts
from jobs.errors import UsageError

PRESETS = {
    "small": Range(size=128, offset_px=32),
    "medium": Range(size=256, offset_px=64),
    "large": Range(size=512, offset_px=160, any_rotation=True, scales=(0.4, 2.5)),
}


@click.command(
    "range", epilog="Example: homoalign bench range --preset medium --pairs 100 --photographs photos/ --json range.json"
)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="small", show_default=True, help="See above.")
@click.option("--size", type=click.IntRange(min=32), help="Side of the patches, px, instead of the preset's.")
@click.option("--offset", type=float, help="Each corner moves by up to this, px; with --size alone a quarter of it.")
@click.option("--any-rotation/--no-any-rotation", default=None, help="Turn by 0 to 360 degrees about the centre too.")
@click.option("--scale", metavar="LOW,HIGH", help="Scale by a factor between these too, log-uniform.")
@click.option("--sigma", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Noise, 8-bit units.")
@render_options(pairs=500)
@bench_options
def range_command(
    *,
    preset: str,
    size: int | None,
    offset: float | None,
    any_rotation: bool | None,
    scale: str | None,
    sigma: float,
    render: RenderOptions,
    options: BenchOptions,
) -> None:
    """Compare capture ranges on patches whose corners move by a quarter of their side and more.

    \b
    small   128 px patches of photographs at 320 x 240, corners moved by up to 32 px: the deep-homography protocol
            (DeTone et al. 2016), without noise
    medium  256 px of 640 x 480, 64 px
    large   512 px of 1280 x 960, 160 px, and any rotation and a scale of 0.4 to 2.5; what lies outside the
            photograph is its mirror image, in both views

    Photographs are cropped to 4:3 and resized to 2.5 times the patch; those that are smaller grow, and are then
    softer than a camera's.
    """
    far = _read_range(preset, size, offset, any_rotation, scale)
    outcomes = run_methods(draw_range_pairs(render, far, sigma_8bit=sigma), options)
    turned = f", any rotation: {'yes' if far.any_rotation else 'no'}, scale {far.scales[0]:g} to {far.scales[1]:g}"
    show(
        f"bench range: {render.pairs} pairs of {far.size} x {far.size}, corners moved by up to {far.offset_px:g} px"
        f"{'' if far.is_classic else turned}, sigma {sigma:g}",
        rows_by_case(outcomes, "", range_figures),
        caption="Failed: 10 px and more, or no matrix; the mean is over the others. Failed but ok: of the failed, "
        "those whose status is ok. Right (below 5 px at 480) not ok: of the right, those whose status is another. "
        f"{describe_starts(outcomes)}",
        json_path=options.json_path,
        more={"seed": render.seed, "starts": starts(outcomes), "outcomes": as_json(outcomes)},
    )


def _read_range(
    preset: str, size: int | None, offset: float | None, any_rotation: bool | None, scale: str | None
) -> Range:
    base = PRESETS[preset]
    offset = base.offset_px if offset is None and size is None else offset
    size = size or base.size
    offset = size / 4 if offset is None else offset
    low, high = base.scales if scale is None else parse_numbers("--scale", scale, count=2)
    if not 0 < low <= high:
        raise UsageError(f"--scale {scale}: it should be LOW,HIGH with 0 < LOW <= HIGH")
    far = Range(
        size=size,
        offset_px=offset,
        any_rotation=base.any_rotation if any_rotation is None else any_rotation,
        scales=(low, high),
    )
    # (15/8 - 1) / 2 of the patch is above and below it in its photograph
    most = size * 7 / 16
    if not 0 <= offset <= most:
        raise UsageError(f"--offset {offset:g}: patches of {size} px leave room for 0 to {most:g} px")
    return far
